"""What the processes of a distributed run agree on: who reaches what, and mean gradients.

The decision of a balanced step is not linear, so gradients are averaged before it is taken. As with
DistributedDataParallel a mean is over all processes, those without a gradient included. Everything
here returns its input, and talks to nobody, in a run of one process.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.balancing.gradients import Gradients, wide
from turbotrain_plugin.balancing.graph import Leaves
from turbotrain_plugin.structures import UserError

__all__ = [
    "agree_on_leaves",
    "average",
    "average_combined",
    "average_gradients",
    "average_losses",
    "process_count",
    "same_weights",
    "sum_over_processes",
]


def process_count() -> int:
    """Return the number of processes; 1 outside a distributed run."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def agree_on_leaves(tasks: Sequence[str], leaves: Leaves, known: Sequence[Tensor]) -> Leaves:
    """Return the leaves that each task reaches on at least one process.

    Args:
        tasks: All tasks, those without a graph here included; alike on all processes.
        leaves: Task -> the leaves it reaches here.
        known: Parameters in an order alike on all processes; others are left out of the run's
            reductions and keep the gradient of their own process.

    Returns:
        Task -> leaves, those of ``known`` in its order; tasks without any are missing.

    Raises:
        UserError: If tasks or parameters differ between processes.
    """
    if process_count() == 1:
        return leaves
    home = known[0].device
    shapes = [tuple(parameter.shape) for parameter in known]
    signature = zlib.crc32(repr((tuple(tasks), shapes)).encode())
    _agree(signature, home, tasks)
    reached = [{id(leaf) for leaf in leaves.get(task, ())} for task in tasks]
    table = torch.tensor(
        [[id(leaf) in row for leaf in known] for row in reached], dtype=torch.uint8, device=home
    )
    torch.distributed.all_reduce(table, op=torch.distributed.ReduceOp.MAX)
    agreed = {
        task: tuple(leaf for leaf, there in zip(known, row, strict=True) if there)
        for task, row in zip(tasks, table.tolist(), strict=True)
    }
    return {task: found for task, found in agreed.items() if found}


def _agree(signature: int, home: torch.device, tasks: Sequence[str]) -> None:
    """Raise UserError on all processes unless all have the same signature."""
    bounds = torch.tensor([signature, -signature], dtype=torch.int64, device=home)
    torch.distributed.all_reduce(bounds, op=torch.distributed.ReduceOp.MAX)
    largest, smallest = (abs(bound) for bound in bounds.tolist())
    if largest != smallest:
        raise UserError(
            "The processes of this run differ in their tasks or parameters; every process should "
            "hand over the same losses in the same order, a constant zero where it has none. "
            f"This one has {', '.join(tasks)}."
        )


def average(values: Sequence[Tensor]) -> list[Tensor]:
    """Return the means over the processes, by one reduction a dtype and device.

    Args:
        values: Shaped alike on all processes; at most changed by rounding in a run of one.
    """
    count = process_count()
    if count == 1:
        return list(values)
    groups: dict[Any, list[int]] = {}
    for index, value in enumerate(values):
        groups.setdefault((value.dtype, value.device), []).append(index)
    found = list(values)
    for indices in groups.values():
        # Divided first: a sum over many processes may overflow in half precision.
        flat = torch.cat([values[index].detach().reshape(-1) for index in indices]) / count
        torch.distributed.all_reduce(flat)
        for index, part in zip(
            indices, flat.split([values[index].numel() for index in indices]), strict=True
        ):
            found[index] = part.view(values[index].shape)
    return found


def average_gradients(gradients: Gradients, leaves: Leaves) -> Gradients:
    """Return the means over the processes, zero where a process has none.

    Args:
        gradients: Task -> leaf -> gradient.
        leaves: What :func:`agree_on_leaves` returned, or an agreed part of it; others are kept as
            they are.
    """
    if process_count() == 1:
        return gradients
    keys = [(task, leaf) for task, reached in leaves.items() for leaf in reached]
    mine = [gradients.get(task, {}).get(leaf) for task, leaf in keys]
    means = average(
        [
            torch.zeros_like(leaf) if value is None else value
            for (_, leaf), value in zip(keys, mine, strict=True)
        ]
    )
    # In an order alike on all processes, so that sums over it are, to the bit.
    found: Gradients = {task: {} for task in [*leaves, *gradients]}
    for (task, leaf), mean in zip(keys, means, strict=True):
        found[task][leaf] = mean
    for task, values in gradients.items():
        for leaf, value in values.items():
            found[task].setdefault(leaf, value)
    return found


def average_combined(
    gradients: dict[Tensor, Tensor], leaves: Sequence[Tensor]
) -> dict[Tensor, Tensor]:
    """Return the means of gradients that belong to no task; see :func:`average_gradients`."""
    return average_gradients({"": gradients}, {"": tuple(leaves)})[""]


def average_losses(losses: Mapping[str, Tensor], home: torch.device) -> dict[str, Tensor]:
    """Return task -> detached mean over the processes, so that all judge the same numbers.

    Args:
        losses: Task -> scalar.
        home: A device that the processes can exchange.
    """
    detached = {task: loss.detach().reshape(()) for task, loss in losses.items()}
    if process_count() == 1:
        return detached
    (means,) = average([torch.stack([loss.to(home, wide(home)) for loss in detached.values()])])
    return dict(zip(detached, means.unbind(), strict=True))


def same_weights(weights: Mapping[str, float], home: torch.device) -> dict[str, float]:
    """Return task -> weight as the first process decided, so that no process drifts away.

    All decide over the same Gramian, but a method may draw from a random generator of its own.

    Args:
        weights: Task -> weight, the same tasks on all processes.
        home: A device that the processes can exchange.
    """
    if process_count() == 1:
        return dict(weights)
    held = torch.tensor(list(weights.values()), dtype=wide(home), device=home)
    torch.distributed.broadcast(held, src=0)
    return dict(zip(weights, held.tolist(), strict=True))


def sum_over_processes(matrix: Tensor, home: torch.device) -> Tensor:
    """Return the sum of a small float64 matrix on the CPU over the processes.

    Args:
        matrix: (K, K).
        home: A device that the processes can exchange.
    """
    if process_count() == 1:
        return matrix
    total = matrix.to(home, wide(home), copy=True)
    torch.distributed.all_reduce(total)
    return total.to("cpu", torch.float64)
