"""What a balancing method decides: how the K task gradients of a balanced step are weighed.

Most methods need their K x K Gramian alone (:class:`Balancer`): K weights come out, and nothing
else is known to them. A method that looks at losses, remembers earlier steps or keeps running
estimates of the gradients is a :class:`StepBalancer`. How the gradients are obtained is the
business of ``gradients.py``; no method sees a model, an optimiser or a graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Balancer", "StepBalancer", "TaskStep", "advance", "check_gramian", "decide"]


@dataclass(frozen=True, slots=True)
class TaskStep:
    """What is known of one balanced step; everything without the loss scale.

    Attributes:
        tasks: K names.
        gramian: (K, K) float64 on the CPU, ``gramian[i, j] = <g_i, g_j>`` over the shared
            parameters.
        losses: (K,) float64 on the CPU: the numbers whose gradients these are, summed over
            micro-batches like them.
        rows: K mappings, name of a shared parameter -> gradient of the task there (absent where it
            has none); empty unless the method has ``needs_rows``. Not to be changed.
    """

    tasks: tuple[str, ...]
    gramian: Tensor
    losses: Tensor
    rows: tuple[Mapping[str, Tensor], ...] = ()

    def active(self) -> TaskStep | None:
        """Return the step without the tasks that have no gradient, None when it decides nothing.

        A zero gradient would make some rules stop the whole update and others divide by zero; such
        a task has no say. Nothing can be decided over fewer than two tasks, nor over numbers that
        are not finite.
        """
        keep = self.gramian.diagonal().nonzero().flatten()
        finite = bool(self.gramian.isfinite().all()) and bool(self.losses.isfinite().all())
        if len(keep) < 2 or not finite:
            return None
        indices: list[int] = keep.tolist()
        return TaskStep(
            tasks=tuple(self.tasks[i] for i in indices),
            gramian=self.gramian[keep][:, keep],
            losses=self.losses[keep],
            rows=tuple(self.rows[i] for i in indices) if self.rows else (),
        )


class StepBalancer(ABC):
    """A rule that weighs the K tasks of a balanced step, and may remember the steps before.

    The update over the shared parameters is the weighted sum of the task gradients. Weights of
    exactly one are the plain sum; a method whose weights mean something else says so, because free
    and balanced steps then differ in step size.

    Attributes:
        needs_gradients: False when the weights are always one: no step is then worth the extra
            backward passes.
        needs_rows: Whether :attr:`TaskStep.rows` is filled.
    """

    needs_gradients: ClassVar[bool] = True
    needs_rows: bool = False

    @property
    def title(self) -> str:
        """What the method is called in the log; a saved memory is loaded under the same title."""
        return type(self).__name__

    @abstractmethod
    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return the weights, (K,) float64, and change nothing: a step may be weighed twice.

        Args:
            step: All K tasks have a gradient, K >= 2, and all its numbers are finite.
        """

    def direction(self, step: TaskStep, weights: Tensor) -> dict[str, Tensor] | None:
        """Return the update over the shared parameters where it is not their weighted sum.

        Args:
            step: As it was weighed.
            weights: What :meth:`weigh_step` returned for it.

        Returns:
            Name of a shared parameter -> update there; None: the weighted sum.
        """
        del step, weights
        return None

    def accept(self, step: TaskStep) -> None:
        """Remember ``step``: the optimiser has taken it. Steps that are skipped never come here."""
        del step

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered, loadable with ``weights_only=True``; empty: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        del state


class Balancer(StepBalancer):
    """A rule that weighs K task gradients by their inner products alone.

    It should return weights of exactly one when it has nothing to object to.
    """

    @abstractmethod
    def weigh(self, gramian: Tensor) -> Tensor:
        """Return the weights of the tasks.

        Args:
            gramian: (K, K) float64 on the CPU, finite, ``gramian[i, j] = <g_i, g_j>``, with a
                positive diagonal (tasks without a gradient are left out by the caller).

        Returns:
            (K,) float64.
        """

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return (K,) float64 weights; see :meth:`weigh`."""
        return self.weigh(step.gramian)


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


def decide(
    method: StepBalancer, step: TaskStep
) -> tuple[dict[str, float], dict[str, Tensor] | None]:
    """Return task -> weight, and the update where it is not the weighted sum.

    Tasks without a gradient are kept away from the method and weigh one, and so do all where
    nothing can be decided; see :meth:`TaskStep.active`.
    """
    weights = dict.fromkeys(step.tasks, 1.0)
    active = step.active()
    if active is None:
        return weights, None
    found = method.weigh_step(active)
    weights.update(zip(active.tasks, found.tolist(), strict=True))
    return weights, method.direction(active, found)


def advance(method: StepBalancer, step: TaskStep) -> None:
    """Let the method remember a step that was taken, unless it had no say in it."""
    active = step.active()
    if active is not None:
        method.accept(active)
