"""The matrix in several processes: what each runs, and the one large batch it stands for."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.helpers.balance_matrix import PRECISIONS, SOURCES, ours
from tests.helpers.made_tasks import TinyTasks, made_inputs
from turbotrain_plugin.balancing import Balancer, GradientBalancer, ScheduleWarning

ROWS = 24
"""Divides by 3 processes and 4 micro-batches, and by 2 and 4."""

WORLDS = (2, 3)
LARGE = 64
"""Numbers in a reduction of gradients, at least; losses and decisions are a handful."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    precision: str
    micro_batches: int
    balanced: bool
    clip: bool
    source: str

    def __str__(self) -> str:
        kind = "balanced" if self.balanced else "free"
        clip = "clipped" if self.clip else "unclipped"
        return f"{self.precision}, {self.micro_batches}, {kind}, {clip}, {self.source}"


CELLS = {
    str(cell): cell
    for cell in itertools.starmap(
        Cell,
        itertools.product(
            ("fp32", "bf16", "fp16"), (1, 2, 4), (False, True), (False, True), SOURCES
        ),
    )
}


def rows_of(rank: int, world: int, dtype: torch.dtype) -> Tensor:
    """Return the rows of a process."""
    return made_inputs(rows=ROWS, dtype=dtype).chunk(world)[rank]


def whole_batch(world: int, micro_batches: int, dtype: torch.dtype) -> Tensor:
    """Return the rows of all processes so that its n-th chunk holds the n-th of each of them."""
    parts = [rows_of(rank, world, dtype).chunk(micro_batches) for rank in range(world)]
    return torch.cat([torch.cat(chunks) for chunks in zip(*parts, strict=True)])


@contextmanager
def counted(calls: list[int]) -> Iterator[None]:
    """Note how many numbers each ``all_reduce`` takes."""
    distributed = torch.distributed
    reduce: Callable[..., Any] = distributed.all_reduce

    def noted(tensor: Tensor, *args: Any, **keys: Any) -> Any:  # noqa: ANN401
        calls.append(tensor.numel())
        return reduce(tensor, *args, **keys)

    distributed.all_reduce = noted
    try:
        yield
    finally:
        distributed.all_reduce = reduce


def first_weight(model: TinyTasks) -> Tensor:
    return model.get_parameter("encoder.0.weight").detach()


def overflow(rank: int) -> list[tuple[int, float, bool]]:
    """Take three fp16 steps, the second with a gradient that overflows on the last process alone.

    Returns:
        After each: steps taken, loss scale, whether the weights moved.
    """
    found = []
    model = TinyTasks(dtype=torch.float32)
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        free_steps=0,
        balance_steps=1,
        named_parameters=list(model.named_parameters()),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        before = first_weight(model).clone()
        balancer.zero_grad()
        losses = model(made_inputs(seed=rank, dtype=torch.float32))
        if step == 1 and rank > 0:
            losses["prediction"] = losses["prediction"] * 1e37
        balancer.backward(losses, scaler=scaler)
        scaler.unscale_(balancer)
        scaler.step(balancer)
        scaler.update()
        moved = not torch.equal(first_weight(model), before)
        found.append((balancer.steps_taken, scaler.get_scale(), moved))
    return found


class Undecided(Balancer):
    """Weighs otherwise on every process."""

    def weigh(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 1.0 + torch.distributed.get_rank(), dtype=torch.float64)


def of_several_minds(rank: int) -> tuple[dict[str, float], Tensor]:
    """Return the weights of a step, and what it did."""
    model = TinyTasks()
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.01),
        method=Undecided(),
        free_steps=0,
        balance_steps=1,
        named_parameters=list(model.named_parameters()),
    )
    balancer.backward(model(made_inputs(seed=rank)))
    balancer.step()
    assert balancer.last_record is not None
    return balancer.last_record.weights, first_weight(model)


def run_cells(rank: int, world: int, folder: str) -> None:
    """Take one step of every cell as process ``rank``; leave what was found in ``folder``."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    warnings.simplefilter("ignore", ScheduleWarning)
    found: dict[str, Any] = {"overflow": overflow(rank), "minds": of_several_minds(rank)}
    for name, cell in CELLS.items():
        keys = PRECISIONS[cell.precision]
        calls: list[int] = []
        model = TinyTasks(dtype=keys["dtype"])
        with counted(calls):
            used, balancer = ours(
                model,
                rows_of(rank, world, keys["dtype"]),
                keys,
                cell.micro_batches,
                cell.source,
                balanced=cell.balanced,
                clip=cell.clip,
            )
        assert balancer.last_record is not None
        found[name] = {
            "used": used,
            "weights": balancer.last_record.weights,
            "after": dict(model.named_parameters()),
            "reductions": sum(count >= LARGE for count in calls),
        }
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
