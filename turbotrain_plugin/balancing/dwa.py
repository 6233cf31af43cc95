"""Dynamic Weight Average: weigh most the task whose loss falls least.

Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, section 3.3:
lambda_k = K softmax_k(r_k / T) with r_k = L_k(t - 1) / L_k(t - 2), the mean losses of the last two
epochs; one until there are two. Defaults: temperature T = 2, ``window=100``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep
from turbotrain_plugin.balancing.guards import check_argument

__all__ = ["DynamicWeightAverage"]


class DynamicWeightAverage(StepBalancer):
    """Weights that sum to K, from the losses alone; gradients and their conflicts are not seen.

    A scale of a loss changes nothing as long as it stays; a permutation of the tasks permutes the
    weights.

    Args:
        temperature: T; larger makes the weights more alike.
        window: Balanced steps that take the place of an epoch (our choice: a balancer knows no
            epochs, and a balanced phase need not last for one).

    Note:
        Our choices: losses of free steps are not looked at, so a window may span a free phase; the
        weights hold for the shared parameters, heads keep theirs; a task without a gradient takes
        no part; a loss that was not positive before counts as steady. The rule itself needs no
        separate gradients; a balanced step pays for them all the same.
    """

    def __init__(self, temperature: float = 2.0, window: int = 100) -> None:
        check_argument(temperature > 0, "dwa", "temperature", "above 0", temperature)
        check_argument(window >= 1, "dwa", "window", "above 0", window)
        self.temperature = temperature
        self.window = window
        self._steps = 0
        self._sums: dict[str, tuple[float, int]] = {}
        self._means: dict[str, tuple[float, float]] = {}  # task -> window before last, last window

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return (K,) float64 weights; see :meth:`StepBalancer.weigh_step`."""
        rates = torch.tensor([self._rate(task) for task in step.tasks], dtype=torch.float64)
        if bool(rates.isnan().any()):
            return torch.ones_like(rates)
        return len(rates) * (rates / self.temperature).softmax(dim=0)

    def _rate(self, task: str) -> float:
        """Return how much of its loss of the window before last a task kept; NaN when unknown."""
        before, last = self._means.get(task, (torch.nan, torch.nan))
        return 1.0 if before <= 0.0 else last / before

    def accept(self, step: TaskStep) -> None:
        """Add the losses to the current window; at its end, move on to the next."""
        for task, loss in zip(step.tasks, step.losses.tolist(), strict=True):
            total, count = self._sums.get(task, (0.0, 0))
            self._sums[task] = (total + loss, count + 1)
        self._steps += 1
        if self._steps >= self.window:
            for task, (total, count) in self._sums.items():
                _, last = self._means.get(task, (torch.nan, torch.nan))
                self._means[task] = (last, total / count)
            self._steps, self._sums = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the means of the last two windows and the sums of the current one."""
        return {"steps": self._steps, "sums": dict(self._sums), "means": dict(self._means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        self._steps = int(state.get("steps", 0))
        self._sums = {task: (float(s), int(n)) for task, (s, n) in state.get("sums", {}).items()}
        means = state.get("means", {}).items()
        self._means = {task: (float(before), float(last)) for task, (before, last) in means}
