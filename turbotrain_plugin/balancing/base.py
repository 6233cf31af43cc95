"""What a balancing method decides: a K x K Gramian in, K weights out, and nothing else.

How the gradients behind the Gramian are obtained is the business of ``gradients.py``; a method
never sees a tensor of the model, an optimiser or a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Balancer", "check_gramian", "decide"]


class Balancer(ABC):
    """A rule that weighs K task gradients by their inner products alone.

    The update over the shared parameters is the weighted sum of the task gradients. Weights of
    exactly one are the plain sum, and every method should return them when it has nothing to
    object to, so that free and balanced steps have the same step size.

    Attributes:
        needs_gradients: False when the weights are always one: no step is then worth the extra
            backward passes.
    """

    needs_gradients: ClassVar[bool] = True

    @abstractmethod
    def weigh(self, gramian: Tensor) -> Tensor:
        """Return the weights of the tasks.

        Args:
            gramian: (K, K) float64 on the CPU, finite, ``gramian[i, j] = <g_i, g_j>``, with a
                positive diagonal (tasks without a gradient are left out by the caller).

        Returns:
            (K,) float64.
        """


def check_gramian(gramian: Tensor) -> None:
    """Raise ValueError unless ``gramian`` is a square float64 matrix with a positive diagonal."""
    if gramian.ndim != 2 or gramian.shape[0] != gramian.shape[1]:
        raise ValueError(
            f"Parameter `gramian` should have shape (K, K). Found {tuple(gramian.shape)}."
        )
    if gramian.dtype != torch.float64:
        raise ValueError(f"Parameter `gramian` should be float64. Found {gramian.dtype}.")
    if not bool((gramian.diagonal() > 0).all()):
        raise ValueError(
            "Parameter `gramian` should have a positive diagonal. "
            f"Found {gramian.diagonal().tolist()}."
        )


def decide(method: Balancer, tasks: Sequence[str], gramian: Tensor) -> dict[str, float]:
    """Return task -> weight; tasks without a gradient are kept away from the method.

    A zero gradient would make some rules stop the whole update and others divide by zero; such a
    task has no say and weight one, and where fewer than two tasks remain all weights are one. The
    same holds for a Gramian that is not finite, over which nothing can be decided.

    Args:
        method: The rule.
        tasks: K names.
        gramian: (K, K) float64 on the CPU.
    """
    weights = dict.fromkeys(tasks, 1.0)
    active = gramian.diagonal().nonzero().flatten()
    if len(active) < 2 or not bool(gramian.isfinite().all()):
        return weights
    values = method.weigh(gramian[active][:, active]).tolist()
    weights.update({tasks[i]: w for i, w in zip(active.tolist(), values, strict=True)})
    return weights
