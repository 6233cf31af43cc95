"""MoCo: weigh running estimates of the task gradients instead of those of one batch.

Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent
Approach", ICLR 2023, in the form of the authors' code that LibMTL follows. In step t (from 1), with
beta_t = beta / t^decay and gamma_t = gamma / t^decay:
y_k <- y_k - beta_t (y_k - L_k g_k / |g_k|), then
lambda <- softmax(lambda - gamma_t (Y^T Y + rho 1) lambda), and the update is Y lambda. Y starts at
0, lambda at 1 / K. Defaults: ``beta=0.5``, ``gamma=0.1``, ``rho=0``, ``decay=0.5``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep
from turbotrain_plugin.balancing.guards import check_argument

__all__ = ["MoCo"]


class MoCo(StepBalancer):
    """Keeps K estimates as large as the shared parameters; they are part of the saved state.

    The weights it reports are lambda: they weigh the estimates, not this batch's gradients, and sum
    to one. The length of the update is that of the losses, whatever the gradients' scale: common
    scales of the gradients change nothing, scales of the losses do. A permutation of the tasks
    permutes the weights.

    Args:
        beta: Share of the new gradient in an estimate, in the first step.
        gamma: Learning rate of lambda, in the first step.
        rho: Weight of the L2 term on lambda.
        decay: Power of the step by which beta and gamma fall.

    Note:
        Steps are counted over balanced steps. A task without a gradient keeps its estimate and its
        lambda and takes no part in the step; LibMTL goes on in its stale direction. No epsilon
        stands beside |g_k|: a task that comes here has a gradient. Losses are used without the
        scale of mixed precision.
    """

    needs_rows = True

    def __init__(
        self, beta: float = 0.5, gamma: float = 0.1, rho: float = 0.0, decay: float = 0.5
    ) -> None:
        check_argument(0 < beta <= 1, "moco", "beta", "in (0, 1]", beta)
        check_argument(gamma >= 0, "moco", "gamma", "not to be negative", gamma)
        check_argument(rho >= 0, "moco", "rho", "not to be negative", rho)
        check_argument(decay >= 0, "moco", "decay", "not to be negative", decay)
        self.beta = beta
        self.gamma = gamma
        self.rho = rho
        self.decay = decay
        self._steps = 0
        self._lambda: dict[str, float] = {}
        self._kept: dict[str, dict[str, Tensor]] = {}  # task -> name -> estimate

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return lambda, (K,) float64; see :meth:`StepBalancer.weigh_step`."""
        count = len(step.tasks)
        products = torch.zeros(count, count, dtype=torch.float64)
        for _, estimates in self._estimates(step):
            flat = torch.stack([one.reshape(-1) for one in estimates])
            flat = flat.to(torch.float32 if flat.device.type == "mps" else torch.float64)
            products += (flat @ flat.T).to("cpu", torch.float64)
        before = torch.tensor(
            [self._lambda.get(task, 1.0 / count) for task in step.tasks], dtype=torch.float64
        )
        rate = self.gamma / self._next**self.decay
        after: Tensor = before - rate * (products @ before + self.rho * before)
        return after.softmax(dim=0)

    def direction(self, step: TaskStep, weights: Tensor) -> dict[str, Tensor]:
        """Return name -> sum of lambda_k y_k; see :meth:`StepBalancer.direction`."""
        return {
            name: sum(
                (weight * one for weight, one in zip(weights.tolist(), estimates, strict=True)),
                start=torch.zeros_like(estimates[0]),
            )
            for name, estimates in self._estimates(step)
        }

    def accept(self, step: TaskStep) -> None:
        """Keep the estimates and lambda of ``step``."""
        weights = self.weigh_step(step)
        for name, estimates in self._estimates(step):
            for task, one in zip(step.tasks, estimates, strict=True):
                self._kept.setdefault(task, {})[name] = one
        self._lambda.update(zip(step.tasks, weights.tolist(), strict=True))
        self._steps += 1

    @property
    def _next(self) -> int:
        """Number of the coming step, from 1."""
        return self._steps + 1

    def _estimates(self, step: TaskStep) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield (name, K estimates) as ``step`` makes them, at least in float32."""
        rate = self.beta / self._next**self.decay
        factors = (step.losses / step.gramian.diagonal().sqrt()).tolist()
        shapes = {name: row for rows in step.rows for name, row in rows.items()}
        for name, like in shapes.items():
            wide = torch.promote_types(like.dtype, torch.float32)
            found = []
            for task, factor, rows in zip(step.tasks, factors, step.rows, strict=True):
                kept = self._kept.get(task, {}).get(name)
                old = torch.zeros_like(like, dtype=wide) if kept is None else kept.to(like.device)
                new = rows[name].to(wide) * factor if name in rows else torch.zeros_like(old)
                found.append(old + rate * (new - old))
            yield name, found

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, lambda and the estimates (K times the shared parameters)."""
        kept = {task: dict(estimates) for task, estimates in self._kept.items()}
        return {"steps": self._steps, "lambda": dict(self._lambda), "estimates": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        self._steps = int(state.get("steps", 0))
        self._lambda = dict(state.get("lambda", {}))
        self._kept = {task: dict(kept) for task, kept in state.get("estimates", {}).items()}
