"""Uncertainty weighting: learn the noise of each task and weigh by its inverse.

Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry
and Semantics", CVPR 2018: with s_k = log sigma_k^2, minimise sum_k (exp(-s_k) L_k + s_k) / 2 over
the model and over s. Default: ``lr=2e-3`` for s, which starts at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep
from turbotrain_plugin.balancing.guards import check_argument
from turbotrain_plugin.balancing.learned import LearnedNumbers

__all__ = ["UncertaintyWeighting"]


class UncertaintyWeighting(StepBalancer):
    """Weights exp(-s), from the losses alone; gradients and their conflicts are not seen.

    The weights start at one and tend to the inverse of the losses, so the step size of the shared
    parameters grows while losses fall. A permutation of the tasks permutes them.

    Args:
        lr: Learning rate of s, by Adam (our choice: the recipe's rate, as if s belonged to the
            model).

    Note:
        Our choices: the factor 1/2 is left out, so that the weights start at one and free and
        balanced steps agree (Adam's way of s is the same); s moves in balanced steps only; the
        weights hold for the shared parameters, heads keep theirs. The rule itself needs no separate
        gradients; a balanced step pays for them all the same.
    """

    def __init__(self, lr: float = 2e-3) -> None:
        check_argument(lr > 0, "uncertainty", "lr", "above 0", lr)
        self._log_variance = LearnedNumbers(lr)

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return (K,) float64 weights; see :meth:`StepBalancer.weigh_step`."""
        found = [math.exp(-self._log_variance[task]) for task in step.tasks]
        return torch.tensor(found, dtype=torch.float64)

    def accept(self, step: TaskStep) -> None:
        """Take one descent step of s."""
        gradient = 1.0 - self.weigh_step(step) * step.losses
        self._log_variance.descend(dict(zip(step.tasks, gradient.tolist(), strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Return s with its moments."""
        return {"log_variance": self._log_variance.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        self._log_variance.load_state_dict(state.get("log_variance", {}))
