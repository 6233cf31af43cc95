"""How task gradients are obtained, summed over micro-batches and written back.

The only place of this package that knows about autograd. Nothing here decides anything: weights
come from a method (``base.py``) that sees the Gramian alone.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import torch
from torch import Tensor

from turbotrain_plugin.balancing.graph import Leaves
from turbotrain_plugin.structures import UserError

__all__ = [
    "Gradients",
    "TaskGradients",
    "check_sum",
    "exact_gradients",
    "non_finite",
    "present",
    "sum_losses",
]

_Key = TypeVar("_Key")

Gradients = dict[str, dict[Tensor, Tensor]]
"""Task -> leaf -> gradient; leaves without a gradient are missing."""

SELF_CHECK_TOLERANCE: Final = 0.05
"""Relative; far above the rounding of bfloat16, far below a gradient that is simply wrong."""


def sum_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the plain sum of scalar losses, in their order."""
    return functools.reduce(operator.add, losses.values())


def exact_gradients(losses: Mapping[str, Tensor], leaves: Leaves) -> Gradients:
    """Return the gradient of every loss by one ``torch.autograd.grad`` a task.

    Costs one further backward pass through the shared part for every task beyond the first. All
    passes but the last keep the graph, which is what raises the peak memory of a balanced step.

    Args:
        losses: Task -> scalar that requires grad.
        leaves: Task -> the leaves to differentiate by.
    """
    found: Gradients = {}
    last = len(losses) - 1
    for index, (task, loss) in enumerate(losses.items()):
        wanted = leaves[task]
        values = torch.autograd.grad(loss, wanted, retain_graph=index < last, allow_unused=True)
        found[task] = present(wanted, values)
    return found


def present(keys: Sequence[_Key], values: Sequence[Tensor | None]) -> dict[_Key, Tensor]:
    """Return key -> gradient where there is one (a custom function may return None)."""
    pairs = zip(keys, values, strict=True)
    return {key: value for key, value in pairs if value is not None}


class TaskGradients:
    """Gradients of each task for one optimiser step, summed over its micro-batches.

    ``leaf.grad`` is brought up to date after every micro-batch, so that clipping and unscaling
    find what ``step`` will use. It is always rewritten from the sums of the tasks: the decision
    is taken anew over the accumulated gradients, not added up over micro-batches.
    """

    def __init__(self) -> None:
        self._sums: Gradients = {}
        self._before: dict[Tensor, Tensor | None] = {}
        self._written: dict[Tensor, tuple[Tensor, int]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which they first came."""
        return tuple(self._sums)

    def clear(self) -> None:
        """Forget everything; ``leaf.grad`` is left as it is."""
        self._sums, self._before, self._written = {}, {}, {}

    def add(self, gradients: Gradients) -> None:
        """Add the gradients of one micro-batch.

        When somebody changed a written ``.grad`` since the last micro-batch (``zero_grad`` of the
        model after a skipped step, another backward pass), what is found there is kept as it is
        and the sums start anew, as ordinary accumulation would.
        """
        if self._touched():
            self.clear()
        for task, values in gradients.items():
            sums = self._sums.setdefault(task, {})
            for leaf, value in values.items():
                self._before.setdefault(leaf, leaf.grad)
                # Out of place: autograd may return one tensor for two leaves.
                sums[leaf] = sums[leaf] + value if leaf in sums else value

    def _touched(self) -> bool:
        """Return whether a ``.grad`` is no longer what :meth:`write` left."""
        return any(
            leaf.grad is not value or value._version != version
            for leaf, (value, version) in self._written.items()
        )

    def received_by_several(self) -> list[Tensor]:
        """Return the leaves with a gradient from two or more tasks."""
        return [
            leaf for leaf in self._before if sum(leaf in sums for sums in self._sums.values()) > 1
        ]

    def gramian(self, leaves: Iterable[Tensor]) -> Tensor:
        """Return (K, K) float64 on the CPU: inner products of the tasks over ``leaves``.

        Args:
            leaves: The shared parameters; a task without a gradient there counts as zero.
        """
        tasks = list(self._sums.values())
        blocks: dict[torch.device, Tensor] = {}
        for leaf in leaves:
            rows = [sums[leaf] if leaf in sums else torch.zeros_like(leaf) for sums in tasks]
            block = _products(rows)
            old = blocks.get(block.device)
            blocks[block.device] = block if old is None else old + block
        total = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
        for block in blocks.values():
            total += block.to("cpu", torch.float64)
        return total

    @torch.no_grad()
    def write(self, weights: Mapping[str, float], balanced: Collection[Tensor]) -> None:
        """Set ``.grad`` of every leaf to what was there before plus the sum over the tasks.

        Args:
            weights: Task -> weight, applied to the leaves in ``balanced``.
            balanced: Leaves (a set); all others get the plain sum.
        """
        for leaf, before in self._before.items():
            terms = [
                (weights[task] if leaf in balanced else 1.0, sums[leaf])
                for task, sums in self._sums.items()
                if leaf in sums
            ]
            combined = _weighted_sum(terms)
            value = _like(leaf, combined if before is None else before + combined)
            leaf.grad = value
            self._written[leaf] = (value, value._version)


def _wide(device: torch.device) -> torch.dtype:
    """Return the dtype products are summed in; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def _products(rows: Sequence[Tensor]) -> Tensor:
    """Return (K, K): inner products of K equally shaped tensors, in float64 where there is one."""
    wide = _wide(rows[0].device)
    matrix = torch.stack([row.detach().reshape(-1).to(wide) for row in rows])
    block = matrix @ matrix.T
    return (block + block.T) / 2


def _weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted sum; weights of one give the bits of the plain sum."""
    (weight, value), *rest = terms
    total = value if weight == 1.0 else value * weight
    for weight, value in rest:
        total = torch.add(total, value, alpha=weight)
    return total


def _like(leaf: Tensor, value: Tensor) -> Tensor:
    """Return a tensor of its own in the memory layout of ``leaf``, as optimisers expect."""
    return torch.empty_like(leaf, requires_grad=False).copy_(value)


def check_sum(gradients: Gradients, plain: Mapping[Tensor, Tensor]) -> bool:
    """Return whether task gradients could be compared with the gradient of the summed loss.

    They differ where a module answers two backward passes over one graph differently: a custom
    function that overwrites what it saved, or a recomputation with other random numbers.

    Args:
        gradients: Task -> leaf -> gradient.
        plain: Leaf -> gradient of the summed loss.

    Returns:
        False when they are not finite or all zero, which says nothing.

    Raises:
        UserError: If they do not sum to it.
    """
    gap = torch.zeros((), dtype=torch.float64)
    scale = torch.zeros((), dtype=torch.float64)
    for leaf, expected in plain.items():
        parts = [values[leaf] for values in gradients.values() if leaf in values]
        total = _weighted_sum([(1.0, part) for part in parts]) if parts else expected * 0
        gap += _square(total - expected)
        scale += torch.stack([_square(part) for part in [*parts, expected]]).sum()
    relative = float(gap / scale) ** 0.5 if float(scale) > 0.0 else math.nan
    if relative > SELF_CHECK_TOLERANCE:
        raise UserError(
            f"The gradients of the tasks {', '.join(gradients)} do not sum to the gradient of "
            f"their sum (relative difference {relative:.2g}, allowed {SELF_CHECK_TOLERANCE}): a "
            "part of the model gives different gradients when the backward pass runs twice; make "
            "it deterministic, or train with balance method 'none'."
        )
    return math.isfinite(relative)


def _square(value: Tensor) -> Tensor:
    """Return the squared norm as a float64 number on the CPU."""
    return value.detach().to(_wide(value.device)).square().sum().to("cpu", torch.float64)


def non_finite(losses: Sequence[Mapping[str, Tensor]], parameters: Iterable[Tensor]) -> str:
    """Return what is not finite in the losses or in ``.grad``; empty when all is well.

    Everything is gathered first and read once, so that a GPU is waited for once a step.

    Args:
        losses: Detached scalars of every micro-batch.
        parameters: Parameters whose ``.grad`` the optimiser is about to use.
    """
    grads = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    named = [(task, loss) for batch in losses for task, loss in batch.items()]
    values = [loss.reshape(()) for _, loss in named]
    values.extend(torch._foreach_norm(grads) if grads else ())
    if not values:
        return ""
    home = values[-1].device
    finite = torch.stack([value.to(home).isfinite() for value in values])
    if bool(finite.all()):
        return ""
    bad = {task: float(loss) for task, loss in named if not bool(loss.isfinite())}
    if bad:
        return "loss " + ", ".join(f"{task} is {value}" for task, value in bad.items())
    return "the gradient is not finite"
