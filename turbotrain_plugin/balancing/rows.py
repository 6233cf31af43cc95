"""Task gradients as methods with more than a Gramian see them: by parameter name, and replaced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.balancing.gradients import TaskGradients

__all__ = ["GradientRows", "sum_over_batches"]

_DIRECTION: Final = "\0direction"
"""Stands beside the tasks while a direction is written; no task can be called so in YAML."""


class GradientRows(TaskGradients):
    """The gradients of each task for one optimiser step, readable and replaceable by name."""

    def rows(self, names: Mapping[Tensor, str], scale: float) -> tuple[dict[str, Tensor], ...]:
        """Return one mapping a task: name -> gradient.

        Args:
            names: Leaf -> name, of the shared parameters.
            scale: Loss scale of the gradients; they are divided by it.
        """
        return tuple(
            {
                name: sums[leaf] if scale == 1.0 else sums[leaf] / scale
                for leaf, name in names.items()
                if leaf in sums
            }
            for sums in self._sums.values()
        )

    def write_direction(
        self, direction: Mapping[str, Tensor], names: Mapping[Tensor, str], scale: float
    ) -> None:
        """Set ``.grad`` as ``write`` does, with ``direction`` in place of a weighted sum.

        Args:
            direction: Name -> update; shared parameters it lacks get none.
            names: Leaf -> name, of the shared parameters.
            scale: Loss scale; the direction is multiplied by it.
        """
        placed = {
            leaf: direction[name] * scale for leaf, name in names.items() if name in direction
        }
        weights = {**dict.fromkeys(self.tasks, 0.0), _DIRECTION: 1.0}
        self._sums[_DIRECTION] = placed
        try:
            self.write(weights, set(names))
        finally:
            del self._sums[_DIRECTION]


def sum_over_batches(losses: Sequence[Mapping[str, Tensor]], tasks: Sequence[str]) -> Tensor:
    """Return (K,) float64 on the CPU: the loss of each task summed over the micro-batches."""
    sums = [math.fsum(float(batch[task]) for batch in losses if task in batch) for task in tasks]
    return torch.tensor(sums, dtype=torch.float64)
