"""GradNorm: learn loss weights so that all tasks train at one rate.

Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask
Networks", ICML 2018. With weights w_k that sum to K, gradient norms n_k, losses L_k and inverse
training rates r_k = (L_k / L_k(0)) / mean_j (L_j / L_j(0)), the weights descend
sum_k |w_k n_k - mean_j(w_j n_j) r_k^alpha|, the second term held constant. Defaults: ``alpha=1.5``,
``lr=0.025``, ``initial_steps=100``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep
from turbotrain_plugin.balancing.guards import check_argument
from turbotrain_plugin.balancing.learned import LearnedNumbers

__all__ = ["GradNorm"]


class GradNorm(StepBalancer):
    """Weights K softmax(theta), as in LibMTL, with theta learned by Adam; they start at one.

    A step is weighed with the weights learned so far, and then teaches them. A common scale of all
    gradients, or a scale of a task's loss that is there from the start, changes nothing in how the
    rates are measured; a permutation of the tasks permutes the weights. An opposition between
    gradients is not seen.

    Args:
        alpha: Strength of the pull towards a common rate; 0: equal weighted norms.
        lr: Learning rate of theta.
        initial_steps: Balanced steps over whose mean L(0) is taken. The weights stay one for so
            long, as they do in LibMTL during its first epoch (the paper: one step).

    Note:
        The paper takes the norms over the last shared layer and weighs the heads too; we take all
        shared parameters and leave the heads alone. Only balanced steps are counted. A task without
        a gradient neither learns nor takes part in the sum of K. Losses below zero count as zero.
    """

    def __init__(self, alpha: float = 1.5, lr: float = 0.025, initial_steps: int = 100) -> None:
        check_argument(alpha >= 0, "gradnorm", "alpha", "not to be negative", alpha)
        check_argument(lr > 0, "gradnorm", "lr", "above 0", lr)
        check_argument(initial_steps >= 1, "gradnorm", "initial_steps", "above 0", initial_steps)
        self.alpha = alpha
        self.initial_steps = initial_steps
        self._theta = LearnedNumbers(lr)
        self._initial: dict[str, list[float]] = {}  # task -> [sum of losses, steps]

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return (K,) float64 weights that sum to K; see :meth:`StepBalancer.weigh_step`."""
        theta = torch.tensor([self._theta[task] for task in step.tasks], dtype=torch.float64)
        return len(step.tasks) * theta.softmax(dim=0)

    def accept(self, step: TaskStep) -> None:
        """Count towards the initial losses or, with those known, learn the weights."""
        known = [self._initial.get(task, [0.0, 0.0]) for task in step.tasks]
        if all(steps >= self.initial_steps for _, steps in known):
            self._learn(step)
            return
        for task, (total, steps), loss in zip(step.tasks, known, step.losses.tolist(), strict=True):
            if steps < self.initial_steps:
                self._initial[task] = [total + loss, steps + 1.0]
        if self.initial_steps == 1:
            self._learn(step)

    def _learn(self, step: TaskStep) -> None:
        """Take one descent step of theta."""
        weights = self.weigh_step(step)
        norms = step.gramian.diagonal().sqrt()
        weighted = weights * norms
        wanted = weighted.mean() * self._rates(step) ** self.alpha
        pull = (weighted - wanted).sign() * norms
        # d w_k / d theta_j = w_k (delta_kj - w_j / K)
        gradient = weights * (pull - (pull * weights).sum() / len(weights))
        self._theta.descend(dict(zip(step.tasks, gradient.tolist(), strict=True)))

    def _rates(self, step: TaskStep) -> Tensor:
        """Return (K,) inverse training rates r, whose mean is one."""
        ratios = torch.ones(len(step.tasks), dtype=torch.float64)
        for index, (task, loss) in enumerate(zip(step.tasks, step.losses.tolist(), strict=True)):
            total, steps = self._initial[task]
            if total > 0.0:
                ratios[index] = max(0.0, loss) / (total / steps)
        mean = float(ratios.mean())
        return ratios / mean if mean > 0.0 else torch.ones_like(ratios)

    def state_dict(self) -> dict[str, Any]:
        """Return theta with its moments, and the sums behind the initial losses."""
        initial = {task: list(sums) for task, sums in self._initial.items()}
        return {"theta": self._theta.state_dict(), "initial": initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        self._theta.load_state_dict(state.get("theta", {}))
        initial = state.get("initial", {})
        self._initial = {task: [float(x) for x in sums] for task, sums in initial.items()}
