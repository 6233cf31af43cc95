"""Numbers a method learns by gradient descent of its own, one a task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["LearnedNumbers"]

BETAS: Final = (0.9, 0.999)
"""Running averages of Adam."""


class LearnedNumbers:
    """One number a task, starting at 0 and moved by Adam (Kingma and Ba, ICLR 2015).

    Without Adam's epsilon: a common scale of all gradients then changes nothing, however small.

    Args:
        lr: Learning rate.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self._moments: dict[str, list[float]] = {}  # task -> [number, first, second, updates]

    def __getitem__(self, task: str) -> float:
        return self._moments[task][0] if task in self._moments else 0.0

    def descend(self, gradients: Mapping[str, float]) -> None:
        """Take one step of Adam for each task in ``gradients``; others stay as they are."""
        for task, gradient in gradients.items():
            number, first, second, updates = self._moments.get(task, [0.0] * 4)
            updates += 1.0
            first += (1.0 - BETAS[0]) * (gradient - first)
            second += (1.0 - BETAS[1]) * (gradient * gradient - second)
            root = math.sqrt(second / (1.0 - BETAS[1] ** updates))
            if root > 0.0:
                number -= self.lr * first / (1.0 - BETAS[0] ** updates) / root
            self._moments[task] = [number, first, second, updates]

    def state_dict(self) -> dict[str, Any]:
        """Return task -> [number, first moment, second moment, updates]."""
        return {task: list(moments) for task, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._moments = {task: [float(m) for m in moments] for task, moments in state.items()}
