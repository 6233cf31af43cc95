"""Balanced training in several processes, and the same in one: what each process runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.made_tasks import TinyTasks, made_inputs
from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning
from turbotrain_plugin.structures import UserError

STEPS = 4
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        source: Gradient source.
        part: (model, rows of this process, rank) -> losses; None stands for no samples.
        micro_batches: Per optimiser step.
        wrap: Arguments of DistributedDataParallel; None: not wrapped.
        scaler: Whether losses are scaled as in mixed precision.
        method: Balance method.
    """

    source: str = "exact_low_memory"
    part: Callable[[nn.Module, Tensor, int], Losses] = lambda model, x, _: model(x)
    micro_batches: int = 1
    wrap: dict[str, Any] | None = None
    scaler: bool = False
    method: str = "conflict_suppression"


def unused_part(model: nn.Module, x: Tensor, rank: int) -> Losses:
    found: Losses = model(x, extra=rank == 0)
    return found


def no_positives(model: nn.Module, x: Tensor, rank: int) -> Losses:
    found: Losses = model(x)
    return {**found, "prediction": found["prediction"] * float(rank == 0)}


def no_positives_and_no_graph(model: nn.Module, x: Tensor, rank: int) -> Losses:
    found: Losses = model(x)
    return found if rank == 0 else {**found, "prediction": torch.zeros((), dtype=x.dtype)}


def empty_batch(model: nn.Module, x: Tensor, rank: int) -> Losses:
    zero = torch.zeros((), dtype=x.dtype)
    return model(x) if rank == 0 else {"detection": zero, "prediction": zero}


def empty_batch_first(model: nn.Module, x: Tensor, rank: int) -> Losses:
    zero = torch.zeros((), dtype=x.dtype)
    return model(x) if rank > 0 else {"detection": zero, "prediction": zero}


SOURCES = ("exact", "exact_low_memory", "cut", "feature")
CASES = {
    **{f"split, {s}": Case(s) for s in SOURCES},
    **{f"unused part, {s}": Case(s, unused_part) for s in SOURCES},
    **{f"no positives, {s}": Case(s, no_positives) for s in SOURCES},
    **{f"no graph, {s}": Case(s, no_positives_and_no_graph) for s in SOURCES},
    **{f"empty batch, {s}": Case(s, empty_batch) for s in SOURCES},
    "empty first, exact_low_memory": Case(part=empty_batch_first),
    **{f"two micro-batches, {s}": Case(s, micro_batches=2) for s in SOURCES},
    "scaler": Case(scaler=True),
    "scaler, empty batch": Case(part=empty_batch, scaler=True),
    "wrapped": Case(wrap={}),
    "wrapped, unused": Case(part=unused_part, wrap={}),
    "wrapped, bucket views": Case(source="cut", wrap={"gradient_as_bucket_view": True}),
    "gradnorm": Case(method="gradnorm"),
    "moco": Case(method="moco"),
}


def balance(model: nn.Module, case: Case, free_steps: int = 1) -> GradientBalancer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return GradientBalancer(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            method=case.method,
            free_steps=free_steps,
            balance_steps=2,
            named_parameters=list(model.named_parameters()),
            source=case.source,
        )


def train(case: Case, losses_of: Callable[[TinyTasks, Tensor], Losses], wrap: bool) -> Any:  # noqa: ANN401
    """Train ``STEPS`` steps; return weights and records."""
    model = TinyTasks()
    called: Any = model
    if wrap and case.wrap is not None:
        called = DistributedDataParallel(model, **case.wrap)
    balancer = balance(model, case)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if case.scaler else None
    records = []
    for step in range(STEPS):
        balancer.zero_grad()
        for chunk in made_inputs(seed=step).chunk(case.micro_batches):
            losses = losses_of(called, chunk)
            shares = {task: loss / case.micro_batches for task, loss in losses.items()}
            balancer.backward(shares, scaler=scaler)
        if scaler is not None:
            scaler.step(balancer)
            scaler.update()
        else:
            balancer.step()
        assert balancer.last_record is not None
        records.append((balancer.last_record.balanced, dict(balancer.last_record.weights)))
    return {"weights": model.state_dict(), "records": records}


def alone(case: Case, world: int) -> Any:  # noqa: ANN401
    """Train in this process on the mean of what ``world`` processes would see."""
    # One graph has no feature to stop at when one of two forward passes serves one task alone.
    part = no_positives if case.part is no_positives_and_no_graph else case.part

    def losses_of(model: TinyTasks, x: Tensor) -> Losses:
        parts = [part(model, rows, rank) for rank, rows in enumerate(x.chunk(world))]
        return {
            task: torch.stack([part[task] for part in parts]).mean()
            for task in ("detection", "prediction")
        }

    return train(case, losses_of, wrap=False)


def one_of(rank: int, world: int, folder: str, names: tuple[str, ...]) -> None:
    """Train every case as process ``rank``; leave the results in ``folder``."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )

    def losses_of(case: Case) -> Callable[[TinyTasks, Tensor], Losses]:
        return lambda model, x: case.part(model, x.chunk(world)[rank], rank)

    found = {name: train(CASES[name], losses_of(CASES[name]), wrap=True) for name in names}
    found["refused"] = _refused(rank)
    found["skipped"] = _skipped(rank)
    found["apart"] = _refused_apart()
    found["tied"] = _refused_wrapped()
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _refused(rank: int) -> str:
    """Tasks that differ between processes."""
    model = TinyTasks()
    balancer = balance(model, Case(), free_steps=0)
    losses = model(made_inputs())
    if rank > 0:
        losses = {task: losses[task] for task in reversed(losses)}
    try:
        balancer.backward(losses)
    except UserError as error:
        return str(error)
    return "nothing was said"


def _refused_wrapped() -> list[str]:
    """DistributedDataParallel ties the outputs together."""
    found = []
    for free_steps in (0, 9):
        model = TinyTasks()
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        try:
            balance(model, Case(), free_steps).backward(wrapped(made_inputs()))
        except UserError as error:
            found.append(str(error))
    return found


def _refused_apart() -> str:
    """No process has anything to differentiate."""
    balancer = balance(TinyTasks(), Case(), free_steps=0)
    try:
        balancer.backward({"detection": torch.zeros(()), "prediction": torch.zeros(())})
    except UserError as error:
        return str(error)
    return "nothing was said"


def _skipped(rank: int) -> list[Any]:
    """A loss that is not a number, on the last process alone, though its gradient is zero."""
    found: list[Any] = []
    for free_steps in (0, 9):
        model = TinyTasks()
        balancer = balance(model, Case(), free_steps=free_steps)
        losses = model(made_inputs())
        if rank > 0:
            losses["prediction"] = losses["prediction"] * 0.0 + float("nan")
        balancer.backward(losses)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            balancer.step()
        found.append(balancer.steps_taken)
    return found
