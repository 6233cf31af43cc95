"""Runs of the fake host's model in several processes of one group: what each of them does."""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from tests.helpers.distributed_runs import digest
from tests.helpers.made_host import FAKE_HOST, host_hypes, write_hypes
from turbotrain_plugin.balancing import GradientBalancer, HybridSchedule
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.run import TrainRequest
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.hosts import command
from turbotrain_plugin.hosts.hypes import read
from turbotrain_plugin.hosts.learner import HostLosses, HostStep, StepKeys, take_step
from turbotrain_plugin.hosts.loop import HostLoop
from turbotrain_plugin.hosts.run import train_host

CPU = torch.device("cpu")
KEYS = StepKeys(tasks=(), amp="off", clip_norm=0.0)
STOP_AT = 5
"""Step of the run after which one process gets a signal; inside the second epoch."""

Report = dict[str, Any]


def block(**changes: object) -> Report:
    """Return our block: a short cycle, checkpoints that do not meet the ends of epochs."""
    return {
        "host": {"workers": 0, "evaluate": False},
        "balance": {"free_steps": 1, "balance_steps": 2},
        "logging": {"tensorboard": False, "save_steps": 3},
        **changes,
    }


def hypes_of(frames: Path, batch_size: int, epoches: int, **changes: object) -> Report:
    """Return the fake host's hypes with the sizes of a step and of a run."""
    hypes = host_hypes(frames, **changes)
    hypes["train_params"] |= {"batch_size": batch_size, "epoches": epoches}
    return hypes


def exact_hypes(frames: Path, batch_size: int, strategy: str) -> Report:
    """Return hypes under which N processes are one with the whole batch.

    Neither BatchNorm nor dropout, and SGD, which does not blow rounding up as Adam does.
    """
    return hypes_of(
        frames,
        batch_size,
        2,
        turbotrain=block(strategy=strategy),
        model={
            "core_method": "tiny_fcooper",
            "args": {"channels": 8, "dropout": 0.0, "norm": False},
        },
        optimizer={"core_method": "SGD", "lr": 0.05, "args": {"momentum": 0.9}},
    )


def long_hypes(frames: Path) -> Report:
    """Return hypes of 32 steps, each of them saved, with a loader process."""
    changes = {"logging": {"tensorboard": False, "save_steps": 1}}
    own = block(**changes, host={"workers": 1, "evaluate": False})
    hypes = hypes_of(frames, 1, 8, turbotrain=own)
    hypes["train_params"] |= {"eval_freq": 8, "save_freq": 8}
    return hypes


PRETRAINED: Report = {
    "strategy": "turbotrain",
    "pretrain": {"epoches": 1, "modules": {"encoder": ["encoder"], "fusion": ["fusion_net"]}},
}


@contextmanager
def watched(report: Report, stop_at: int | None = None, who: int = 0) -> Iterator[None]:
    """Note the weights every stage ends with and the seed of every step.

    After step ``stop_at`` process ``who`` gets a signal.
    """
    close, record = HostLoop._close, HostLoop._record

    def closed(self: HostLoop) -> None:
        module = self._stage.learner.module
        report["ends"].append(f"{self._stage.name} {self.position.stage_step} {digest(module)}")
        close(self)

    def recorded(self: HostLoop, result: HostStep, seconds: float) -> None:
        record(self, result, seconds)
        report["seeds"].append(torch.initial_seed())
        if self.position.global_step == stop_at and exchange.rank() == who:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        mock.patch.object(HostLoop, "_close", closed),
        mock.patch.object(HostLoop, "_record", recorded),
    ):
        yield


def train(folder: Path, hypes: Report, **watch: Any) -> Report:  # noqa: ANN401
    """Train in ``folder``, or go on there; return how it ended."""

    def prepare() -> None:
        folder.mkdir(exist_ok=True)
        write_hypes(folder / "config.yaml", hypes)

    exchange.main_first(lambda: None if folder.is_dir() else prepare())
    report: Report = {"ends": [], "seeds": []}
    with watched(report, **watch):
        report["code"] = train_host(read(folder / "config.yaml"), folder, CPU)
    return report


class Toy:
    """Two tasks over a shared layer, each with a head; one parameter that nothing uses.

    The second head is used on the first process alone.
    """

    def __init__(self, factor: float = 1.0) -> None:
        torch.manual_seed(3)
        self.module: nn.Module = nn.ModuleDict(
            {name: nn.Linear(3, 3) for name in ("shared", "one", "two", "nothing")}
        ).double()
        self.module["norm"] = nn.BatchNorm1d(3).double()
        self.factor = factor

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, ego: Report, generator: torch.Generator) -> HostLosses:
        del generator
        module: Any = self.module
        module["norm"](ego["data"])
        middle = module["shared"](ego["data"])
        terms = {"one": module["one"](middle).square().mean() * self.factor}
        if ego["both"]:
            terms["two"] = (module["two"](middle) - 1.0).square().mean()
        return HostLosses(sum(terms.values(), torch.zeros(()).double()), terms)


def data_of(rank: int) -> Tensor:
    """Return the batch of a process."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


def optimizer_of(module: nn.Module, *, balanced: bool) -> torch.optim.Optimizer:
    plain = torch.optim.SGD(module.parameters(), lr=1.0)
    return GradientBalancer(plain, schedule=HybridSchedule(0, 1)) if balanced else plain


def toy_step(*, balanced: bool, factors: tuple[float, float], batches: int = 2) -> Report:
    """Take one step of the toy.

    Args:
        balanced: Whether the step is.
        factors: Of the first task's loss, by process.
        batches: How many processes have one.
    """
    rank = exchange.rank()
    learner = Toy(factors[rank])
    ego = {"data": data_of(rank), "both": rank == 0} if rank < batches else None
    optimizer = optimizer_of(learner.module, balanced=balanced)
    step = take_step(learner, ego, optimizer, None, KEYS, torch.Generator())
    grads = {name: p.grad for name, p in learner.module.named_parameters()}
    weights = {} if step.record is None else dict(step.record.weights)
    return {
        "step": [step.total, step.terms, step.taken, step.culprit, weights],
        "grads": grads,
        "after": {name: v.clone() for name, v in learner.module.state_dict().items()},
    }


def told(work: Callable[[], object]) -> str:
    try:
        work()
    except UserError as error:
        return str(error)
    return "nothing"


def request(file: Path, **options: Any) -> TrainRequest:  # noqa: ANN401
    """Return what ``opencood train --hypes FILE --device cpu`` asks for."""
    asked: Report = {"resume": False, "seed": None, "half": False, "dry_run": False} | options
    return TrainRequest(str(file), None, overrides=(), device="cpu", **asked)


def as_process(rank: int, world: int, folder: str, frames: str) -> None:
    """Do everything as one process of a group; leave what was found in ``folder``."""
    torch.set_num_threads(1)
    os.environ["OPENCOOD_ROOT"] = str(FAKE_HOST)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    root, data = Path(folder), Path(frames)
    found: Report = {
        "uneven": {b: toy_step(balanced=b, factors=(1.0, -2.0)) for b in (False, True)},
        "empty": {b: toy_step(balanced=b, factors=(-2.0, 1.0), batches=1) for b in (False, True)},
        "refused": {b: toy_step(balanced=b, factors=(1.0, math.nan)) for b in (False, True)},
        "dry run": told(lambda: command.train(request(root / "block.yaml", dry_run=True))),
        "own streams": told(lambda: command.train(request(root / "plain.yaml"))),
        "too few": told(lambda: train(root / "few", hypes_of(data, 5, 1, turbotrain=block()))),
    }
    for strategy in ("balance", "one_time"):
        found[strategy] = train(root / strategy, exact_hypes(data, 1, strategy))
    evaluated = {"host": {"workers": 0}}
    pretrained = hypes_of(data, 2, 1, turbotrain=block(**PRETRAINED, **evaluated))
    found["turbotrain"] = train(root / "turbotrain", pretrained)
    found["evaluated"] = command.evaluate(
        root / "turbotrain",
        device="cpu",
        split="test",
        epoch=None,
        overrides=(),
        out=root / f"evaluated by {rank}",
    )
    hypes = hypes_of(data, 1, 2, turbotrain=block())
    found["whole"] = train(root / "whole", hypes)
    found["stopped"] = train(root / "broken", hypes, stop_at=STOP_AT, who=1)
    if rank == 0:
        shutil.copytree(root / "broken", root / "stopped")
    found["resumed"] = train(root / "broken", hypes)
    found["long"] = train(root / "long", long_hypes(data))
    torch.save(found, root / f"{rank}.pt")
    distributed.destroy_process_group()
