"""What the processes of a run tell one another; alone, everything here returns its input.

The only collectives of the engine (those of gradients are in ``balancing/processes.py``). Every
process calls each of them, in the same order. Numbers and objects travel over gloo, network tensors
over the backend of their device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing.processes import average, process_count
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.losses import Pool

_T = TypeVar("_T")


def rank() -> int:
    """Return the number of this process, 0 alone."""
    return torch.distributed.get_rank() if process_count() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that writes files and speaks."""
    return rank() == 0


def largest(number: int) -> int:
    """Return the largest of the processes' numbers."""
    if process_count() == 1:
        return number
    held = torch.tensor(number, dtype=torch.int64)
    torch.distributed.all_reduce(held, op=torch.distributed.ReduceOp.MAX)
    return int(held)


def shared(make: Callable[[], _T]) -> _T:
    """Return what the first process makes, to all.

    Raises:
        UserError: On all processes, when ``make`` raises it on the first.
    """
    if process_count() == 1:
        return make()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = make()
        except UserError as error:
            told[1] = str(error)
    torch.distributed.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise UserError(told[1])
    made: _T = told[0]
    return made


def main_first(make: Callable[[], _T]) -> _T:
    """Make something on every process, on the first one before the others.

    For what leaves files behind that the others then find: made-up scenes, label caches.

    Raises:
        UserError: As :func:`shared`.
    """
    made: list[_T] = []
    shared(lambda: made.append(make()))
    return made[0] if made else make()


def gathered(value: _T) -> list[_T]:
    """Return the values of all processes, by rank, to all."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(found, value)
    return found


def mean_values(values: Mapping[str, float]) -> dict[str, float]:
    """Return the means of numbers that all processes have under the same names.

    A number that is not finite on one process is not finite in the mean either.
    """
    count = process_count()
    if count == 1:
        return dict(values)
    held = torch.tensor(list(values.values()), dtype=torch.float64)
    torch.distributed.all_reduce(held)
    return dict(zip(values, (held / count).tolist(), strict=True))


def mean_of_present(values: Mapping[str, float]) -> dict[str, float]:
    """Return name -> mean over the processes that have it, in the order of the first of them."""
    if process_count() == 1:
        return dict(values)
    everyone = gathered(dict(values))
    names = dict.fromkeys(chain.from_iterable(everyone))
    present = {name: [own[name] for own in everyone if name in own] for name in names}
    return {name: sum(found) / len(found) for name, found in present.items()}


def pool() -> Pool:
    """Return over whom a loss that divides by a count is averaged."""
    count = process_count()
    return Pool() if count == 1 else Pool(count, _total)


def _total(count: Tensor) -> Tensor:
    held = count.detach().clone()
    torch.distributed.all_reduce(held)
    return held


@torch.no_grad()
def synchronise(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first."""
    if process_count() == 1:
        return
    for tensor in chain(module.parameters(), module.buffers()):
        held = tensor.detach().contiguous()
        torch.distributed.broadcast(held, src=0)
        tensor.copy_(held)


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Turn BatchNorms into SyncBatchNorms, which normalise by the batches of all processes.

    Raises:
        UserError: On a CPU, where PyTorch has none.
    """
    if process_count() == 1:
        return
    if device.type == "cpu":
        raise UserError(
            "turbotrain.sync_batchnorm: PyTorch normalises over processes on GPUs only. Remove the "
            "key, or train on GPUs."
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(module)


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Average the running statistics of what normalises by batch and is in training mode.

    Each process normalises by the statistics of its own batch; what evaluation uses, and what a
    checkpoint holds, is the mean over the processes, alike to the bit on all of them.
    """
    if process_count() == 1:
        return
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    moving = [
        buffer
        for norm in norms
        if norm.training
        for buffer in (norm.running_mean, norm.running_var)
        if buffer is not None
    ]
    for buffer, mean in zip(moving, average(moving), strict=True):
        buffer.copy_(mean)
