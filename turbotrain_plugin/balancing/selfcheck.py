"""The one-off check that the gradients of the tasks sum to the gradient of their sum.

They differ where a module answers two backward passes over one graph differently: a custom function
that overwrites what it saved, or a recomputation with other random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from turbotrain_plugin.balancing.gradients import weighted_sum, wide
from turbotrain_plugin.structures import UserError

__all__ = ["SumCheck"]

_Key = TypeVar("_Key")

TOLERANCE: Final = 0.05
"""Relative; far above the rounding of bfloat16, far below a gradient that is simply wrong."""


class SumCheck:
    """Compares the gradients of tasks with those of the summed loss, in one piece or several.

    Only what runs once for every task needs comparing. A backward pass is linear, so each piece of
    a graph can be compared on its own: whoever frees the graph piece by piece need not keep it for
    this check.
    """

    def __init__(self) -> None:
        self._compared = False
        self._scale = 0.0

    @property
    def conclusive(self) -> bool:
        """Whether the numbers said anything: they were finite, and not all of them zero.

        Where nothing ran more than once there is nothing to find out.
        """
        return not self._compared or (math.isfinite(self._scale) and self._scale > 0.0)

    def compare(
        self,
        gradients: Mapping[str, Mapping[_Key, Tensor]],
        plain: Mapping[_Key, Tensor],
        came_in: Iterable[Tensor] = (),
    ) -> None:
        """Compare one piece.

        Args:
            gradients: Task -> key (a leaf, a place in the graph) -> gradient.
            plain: Key -> gradient of the summed loss.
            came_in: What the piece was given. The difference is judged against its size as well: a
                gradient that is zero but for rounding (a bias before a BatchNorm) says nothing.

        Raises:
            UserError: If they do not sum to it.
        """
        gap = torch.zeros((), dtype=torch.float64)
        scale = torch.zeros((), dtype=torch.float64)
        for key, expected in plain.items():
            parts = [values[key] for values in gradients.values() if key in values]
            total = weighted_sum([(1.0, part) for part in parts]) if parts else expected * 0
            gap += _square(total - expected)
            scale += torch.stack([_square(part) for part in [*parts, expected]]).sum()
        scale += sum(_square(value) for value in came_in)
        self._compared = True
        self._scale += float(scale)
        relative = float(gap / scale) ** 0.5 if float(scale) > 0.0 else math.nan
        if relative > TOLERANCE:
            raise UserError(_differ(list(gradients), relative))


def _differ(tasks: Sequence[str], relative: float) -> str:
    return (
        f"The gradients of the tasks {', '.join(tasks)} do not sum to the gradient of "
        f"their sum (relative difference {relative:.2g}, allowed {TOLERANCE}): a "
        "part of the model gives different gradients when the backward pass runs twice; make "
        "it deterministic, or train with balance method 'none'."
    )


def _square(value: Tensor) -> Tensor:
    """Return the squared norm as a float64 number on the CPU."""
    return value.detach().to(wide(value.device)).square().sum().to("cpu", torch.float64)
