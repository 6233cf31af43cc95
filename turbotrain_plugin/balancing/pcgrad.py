"""PCGrad: project each task gradient off those it points against, one after the other.

Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1: for every task i,
starting from g_i' = g_i, take the other tasks j in random order and, where <g_i', g_j> < 0, replace
g_i' by g_i' - (<g_i', g_j> / |g_j|^2) g_j; the update is the sum of the g_i'. No parameters but the
seed of the order (default 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import Balancer, TaskStep, check_gramian
from turbotrain_plugin.balancing.conflict_suppression import ConflictSuppression
from turbotrain_plugin.balancing.guards import check_argument

__all__ = ["PCGrad"]


class PCGrad(Balancer):
    """PCGrad as printed, in the coefficients of the projected gradients.

    For two tasks there is one order and the closed form is that of :class:`ConflictSuppression`;
    no random number is drawn. Without a conflict the weights are exactly one. They do not change
    when all gradients are scaled alike; a permutation of the tasks permutes them for two tasks, and
    in the mean over orders for more.

    Args:
        seed: Of the random orders. Every process of a run needs the same.

    Note:
        Our choice: the orders come from a generator of their own, which moves on only with steps
        that are taken and is part of the saved state.
    """

    def __init__(self, seed: int = 0) -> None:
        check_argument(0 <= seed < 2**63, "pcgrad", "seed", "not to be negative", seed)
        self.seed = seed
        self._two = ConflictSuppression()
        self._random = self._start()

    def _start(self) -> Tensor:
        return torch.Generator().manual_seed(self.seed).get_state()

    def weigh(self, gramian: Tensor) -> Tensor:
        """Return (K,) float64 weights, each >= 1; see :meth:`Balancer.weigh`."""
        check_gramian(gramian)
        if len(gramian) == 2:
            return self._two.weigh(gramian)
        orders, _ = self._orders(len(gramian))
        weights = torch.zeros(len(gramian), dtype=torch.float64)
        for task, order in enumerate(orders):
            weights += _projected(gramian, task, order)
        return weights

    def _orders(self, tasks: int) -> tuple[list[list[int]], Tensor]:
        """Return one order of all tasks for each task, and the generator's state behind them."""
        generator = torch.Generator()
        generator.set_state(self._random)
        orders = [torch.randperm(tasks, generator=generator).tolist() for _ in range(tasks)]
        return orders, generator.get_state()

    def accept(self, step: TaskStep) -> None:
        """Move on to the next orders."""
        if len(step.tasks) > 2:
            _, self._random = self._orders(len(step.tasks))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"random": self._random.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping starts at the seed."""
        self._random = state["random"].cpu().clone() if state else self._start()


def _projected(gramian: Tensor, task: int, order: list[int]) -> Tensor:
    """Return (K,) coefficients, over all task gradients, of one projected gradient."""
    coefficients = torch.zeros(len(gramian), dtype=torch.float64)
    coefficients[task] = 1.0
    for other in order:
        product = gramian[other] @ coefficients
        if other != task and bool(product < 0):
            coefficients[other] -= product / gramian[other, other]
    return coefficients
