"""How task gradients are obtained, summed over micro-batches and written back.

The only place of this package that knows about autograd. Nothing here decides anything: weights
come from a method (``base.py``) that sees the Gramian alone.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from turbotrain_plugin.balancing.graph import Leaves

__all__ = [
    "Gradients",
    "TaskGradients",
    "exact_gradients",
    "inner_products",
    "like",
    "non_finite",
    "present",
    "products_by_key",
    "sum_losses",
    "total",
    "weighted_sum",
    "wide",
]

_Key = TypeVar("_Key")

Gradients = dict[str, dict[Tensor, Tensor]]
"""Task -> leaf -> gradient; leaves without a gradient are missing."""


def sum_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the plain sum of scalar losses, in their order."""
    return functools.reduce(operator.add, losses.values())


def exact_gradients(
    losses: Mapping[str, Tensor], leaves: Leaves, *, keep_graph: bool = False
) -> Gradients:
    """Return the gradient of every loss by one ``torch.autograd.grad`` a task.

    Costs one further backward pass through the shared part for every task beyond the first. All
    passes but the last keep the graph, which is what raises the peak memory of a balanced step.

    Args:
        losses: Task -> scalar that requires grad.
        leaves: Task -> the leaves to differentiate by.
        keep_graph: Whether the last pass keeps it as well.
    """
    found: Gradients = {}
    last = len(losses) - 1
    for index, (task, loss) in enumerate(losses.items()):
        wanted = leaves[task]
        retain = keep_graph or index < last
        values = torch.autograd.grad(loss, wanted, retain_graph=retain, allow_unused=True)
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
        self._combined: dict[Tensor, Tensor] = {}
        self._products: dict[tuple[str, str], float] = {}
        self._before: dict[Tensor, Tensor | None] = {}
        self._written: dict[Tensor, tuple[Tensor, int]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in the order in which they first came."""
        return tuple(self._sums)

    def clear(self) -> None:
        """Forget everything; ``leaf.grad`` is left as it is."""
        self._sums, self._combined, self._products = {}, {}, {}
        self._before, self._written = {}, {}

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

    def add_combined(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Add gradients in which the tasks are weighed already; call :meth:`add` before it."""
        for leaf, value in gradients.items():
            self._before.setdefault(leaf, leaf.grad)
            old = self._combined.get(leaf)
            self._combined[leaf] = value if old is None else old + value

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

    def products_by_leaf(self, leaves: Iterable[Tensor]) -> dict[Tensor, Tensor]:
        """Return leaf -> (K, K) float64 on the CPU: inner products of the tasks there.

        Args:
            leaves: The shared parameters; a task without a gradient there counts as zero.
        """
        return products_by_key(list(self._sums.values()), leaves)

    def add_products(self, tasks: Sequence[str], products: Tensor) -> None:
        """Add (K, K) inner products of one micro-batch, of tasks that :meth:`add` has seen."""
        for i, j in itertools.product(range(len(tasks)), repeat=2):
            pair = tasks[i], tasks[j]
            self._products[pair] = self._products.get(pair, 0.0) + float(products[i, j])

    def products(self) -> Tensor:
        """Return (K, K) float64: the sum of what :meth:`add_products` brought."""
        rows = [
            [self._products.get((one, other), 0.0) for other in self.tasks] for one in self.tasks
        ]
        return torch.tensor(rows, dtype=torch.float64)

    @torch.no_grad()
    def write(self, weights: Mapping[str, float], balanced: Collection[Tensor]) -> None:
        """Set ``.grad`` of every leaf to what was there before plus the sum over the tasks.

        What :meth:`add_combined` brought is added as it is.

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
            if leaf in self._combined:
                terms.append((1.0, self._combined[leaf]))
            combined = weighted_sum(terms)
            value = like(leaf, combined if before is None else before + combined)
            leaf.grad = value
            self._written[leaf] = (value, value._version)


def wide(device: torch.device) -> torch.dtype:
    """Return the dtype products are summed in; Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def inner_products(rows: Sequence[Mapping[_Key, Tensor]], keys: Iterable[_Key]) -> Tensor:
    """Return (K, K) float64 on the CPU: inner products of K gradients over ``keys``.

    Args:
        rows: K mappings, key -> gradient; where a key is missing it counts as zero.
        keys: What to sum over.
    """
    return total(products_by_key(rows, keys).values(), len(rows))


def products_by_key(
    rows: Sequence[Mapping[_Key, Tensor]], keys: Iterable[_Key]
) -> dict[_Key, Tensor]:
    """Return key -> (K, K) float64 on the CPU; see :func:`inner_products`.

    Everything is computed first and fetched once a device, so that a GPU is waited for once.
    """
    blocks: dict[torch.device, dict[_Key, Tensor]] = {}
    order: list[_Key] = []
    for key in keys:
        like = next((row[key] for row in rows if key in row), None)
        if like is None:
            continue
        block = _products([row[key] if key in row else torch.zeros_like(like) for row in rows])
        blocks.setdefault(block.device, {})[key] = block
        order.append(key)
    fetched: dict[_Key, Tensor] = {}
    for there in blocks.values():
        values = torch.stack(list(there.values())).to("cpu", torch.float64)
        fetched.update(zip(there, values.unbind(), strict=True))
    return {key: fetched[key] for key in order}


def total(blocks: Iterable[Tensor], tasks: int) -> Tensor:
    """Return the sum of (K, K) float64 matrices, zeros of K = ``tasks`` when there are none."""
    found = torch.zeros(tasks, tasks, dtype=torch.float64)
    for block in blocks:
        found += block
    return found


@torch.no_grad()
def _products(rows: Sequence[Tensor]) -> Tensor:
    """Return (K, K): inner products of K equally shaped tensors, in float64 where there is one."""
    dtype = wide(rows[0].device)
    matrix = torch.stack([row.detach().reshape(-1).to(dtype) for row in rows])
    block = matrix @ matrix.T
    return (block + block.T) / 2


def weighted_sum(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted sum; weights of one give the bits of the plain sum."""
    (weight, value), *rest = terms
    total = value if weight == 1.0 else value * weight
    for weight, value in rest:
        total = torch.add(total, value, alpha=weight)
    return total


def like(leaf: Tensor, value: Tensor) -> Tensor:
    """Return a tensor of its own in the memory layout of ``leaf``, as optimisers expect."""
    return torch.empty_like(leaf, requires_grad=False).copy_(value)


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
