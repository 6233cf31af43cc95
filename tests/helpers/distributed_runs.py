"""Whole tiny runs in several processes of one group: what each of them does."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.data import CooperativeDataset, SampleKey, collate
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stage_loop import StageLoop
from turbotrain_plugin.engine.steps import FinetuneLearner, StepResult, optimiser_step
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures import Batch, TaskLosses

CPU = torch.device("cpu")
STRATEGIES = (
    "turbotrain",
    "turbotrain_no_balance",
    "one_time",
    "one_time_single_agent",
    "manual",
)
CHEAP = (
    "train_params={batch_size: 1, epoches: 1, max_cav: 3}",
    "turbotrain.pretrain={epoches: 1, batch_size: 1}",
    "turbotrain.data.sample_stride=8",
    "turbotrain.balance={free_steps: 1, balance_steps: 1}",
    "turbotrain.evaluation.max_samples=3",
)
RESUMED = (
    "turbotrain.balance={method: moco, free_steps: 1, balance_steps: 2}",
    "turbotrain.pretrain={epoches: 1, batch_size: 1}",
    "train_params={batch_size: 1, epoches: 2, max_cav: 3, eval_freq: 2}",
    "turbotrain.data.sample_stride=4",
    "turbotrain.logging.save_steps=3",
)
STOP_AT = 7
"""Step of the run at which one process gets a signal; inside the second stage."""

FOUR = (0, 3, 6, 9)
"""Samples of a step, two for each of two processes."""

Report = dict[str, Any]


def settings(file: str, *overrides: str) -> RunConfig:
    return load_hypes(file, overrides)


def digest(module: torch.nn.Module) -> str:
    values = (value.detach().numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(b"".join(values)).hexdigest()


@contextmanager
def watched(
    ends: list[str], seeds: list[int], stop_at: int | None = None, who: int = 0
) -> Iterator[None]:
    """Note the weights every stage ends with and the seed of every step.

    After step ``stop_at`` process ``who`` gets a signal.
    """
    close, record = StageLoop._close, StageLoop._record

    def closed(self: StageLoop) -> None:
        ends.append(f"{self.stage.name} {self.position.stage_step} {digest(self.learner.module)}")
        close(self)

    def recorded(self: StageLoop, result: StepResult, seconds: float) -> None:
        record(self, result, seconds)
        seeds.append(torch.initial_seed())
        if self.position.global_step == stop_at and exchange.rank() == who:
            os.kill(os.getpid(), signal.SIGTERM)

    with (
        mock.patch.object(StageLoop, "_close", closed),
        mock.patch.object(StageLoop, "_record", recorded),
    ):
        yield


def train(config: RunConfig, *, resume: Path | None = None, **watch: Any) -> Report:  # noqa: ANN401
    """Run all stages; return how each ended, and where."""
    ends: list[str] = []
    seeds: list[int] = []
    folder = resume or exchange.shared(lambda: make_run_folder(config))
    stopped = 0
    with watched(ends, seeds, **watch), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Trainer(config, folder, CPU).run(resume=resume is not None)
        except Interrupted as stop:
            stopped = stop.exit_code
    return {"folder": str(folder), "ends": ends, "seeds": seeds, "stopped": stopped}


def validate(file: str) -> Report:
    """Evaluate an untrained network that detects a lot."""
    config = settings(file, "postprocess.target_args.score_threshold=0.0", "postprocess.max_num=20")
    dataset = build_dataset(config, "train", "evaluate")
    network = build_network(config, dataset)
    calls: list[None] = []
    found = evaluate_network(
        network, dataset, config, limit=7, draw=3, on_sample=lambda: calls.append(None)
    )
    drawn = {index: torch.from_numpy(seen.scores) for index, seen in found.drawn.items()}
    return {
        "results": found.result.to_json(),
        "bytes": found.message_bytes,
        "drawn": drawn,
        "calls": len(calls),
    }


def step_on(file: str, mine: tuple[int, ...], *, balanced: bool) -> Report:
    """Take one step on samples of the data set, with norms and dropout in eval mode."""
    config = settings(file, "model.args.fusion.dropout=0")
    dataset = build_dataset(config, "train", "train")
    learner = FinetuneLearner(build_network(config, dataset), config.loss.args)
    learner.module.eval()
    before = parameters(learner)
    result = optimiser_step(
        learner,
        [batch_of(dataset, mine)],
        balancer_of(learner, balanced=balanced),
        None,
        amp="off",
        clip_norm=0.0,
        generator=torch.Generator(),
    )
    moved = {name: value - before[name] for name, value in parameters(learner).items()}
    return {"tasks": result.tasks, "parts": result.parts, "moved": moved}


def parameters(learner: FinetuneLearner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.module.named_parameters()}


def batch_of(dataset: CooperativeDataset, indices: tuple[int, ...]) -> Batch:
    return collate([dataset[SampleKey(0, index)] for index in indices])


def balancer_of(learner: FinetuneLearner, *, balanced: bool) -> GradientBalancer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GradientBalancer(
            torch.optim.SGD(learner.module.parameters(), lr=1.0),
            free_steps=0 if balanced else 1,
            balance_steps=1,
        )


class Spoilt(FinetuneLearner):
    """Its first loss is not a number on one process."""

    culprit = 1

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:
        found = super().losses(batch, generator)
        if exchange.rank() != self.culprit:
            return found
        return replace(
            found, tasks={**found.tasks, "detection": found.tasks["detection"] * torch.nan}
        )


def refuse(file: str) -> Report:
    """A loss that is not a number on the second process alone, in training mode."""
    config = settings(file)
    dataset = build_dataset(config, "train", "train")
    learner = Spoilt(build_network(config, dataset), config.loss.args)
    learner.module.train()
    before = digest(learner.module)
    found = []
    for balanced in (False, True):
        balancer = balancer_of(learner, balanced=balanced)
        result = optimiser_step(
            learner,
            [batch_of(dataset, (FOUR[exchange.rank()],))],
            balancer,
            None,
            amp="off",
            clip_norm=1.0,
            generator=torch.Generator(),
        )
        found.append((result.taken, result.culprit, balancer.steps_taken))
    return {"results": found, "untouched": digest(learner.module) == before}


def statistics(file: str) -> Report:
    """One step in training mode; return the running statistics and those of the own batch."""
    config = settings(file)
    dataset = build_dataset(config, "train", "train")
    learner = FinetuneLearner(build_network(config, dataset), config.loss.args)
    learner.module.train()
    own: list[Tensor] = []
    norm = next(m for m in learner.module.modules() if isinstance(m, torch.nn.BatchNorm2d))
    running = norm.get_buffer("running_mean")
    norm.register_forward_hook(lambda *_: own.append(running.clone()))
    optimiser_step(
        learner,
        [batch_of(dataset, (FOUR[exchange.rank()],))],
        balancer_of(learner, balanced=False),
        None,
        amp="off",
        clip_norm=1.0,
        generator=torch.Generator(),
    )
    return {"own": own[0], "after": running.clone(), "all": digest(learner.module)}


def told(make: Callable[[], object]) -> str:
    try:
        exchange.shared(make)
    except UserError as error:
        return str(error)
    return "nothing"


def complain() -> None:
    raise UserError(f"said by {exchange.rank()}")


def exchanged() -> Report:
    """Return what small messages come to."""
    rank = exchange.rank()
    order: list[int] = []
    exchange.main_first(lambda: order.append(rank))
    torch.manual_seed(rank)
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = digest(net)
    exchange.synchronise(net)
    return {
        "net": (own, digest(net)),
        "largest": exchange.largest(10 - rank),
        "shared": exchange.shared(lambda: f"from {rank}"),
        "error": told(complain),
        "once": order,
        "mean": exchange.mean_values({"a": float(rank), "b": 1.0}),
        "present": exchange.mean_of_present({"all": float(rank), f"only {rank}": 4.0}),
    }


def as_process(rank: int, world: int, folder: str, file: str) -> None:
    """Do everything as one process of a group; leave what was found in ``folder``."""
    torch.set_num_threads(1)
    distributed = torch.distributed
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    share = len(FOUR) // world
    mine = FOUR[rank * share : (rank + 1) * share]
    found: Report = {
        "exchanged": exchanged(),
        "validation": validate(file),
        "refused": refuse(file),
        "statistics": statistics(file),
        "steps": {kind: step_on(file, mine, balanced=kind) for kind in (False, True)},
    }
    for strategy in STRATEGIES:
        config = settings(file, *CHEAP, f"turbotrain.strategy={strategy}")
        found[strategy] = train(config)
    config = settings(file, *RESUMED)
    found["whole"] = train(config)
    found["stopped"] = train(config, stop_at=STOP_AT, who=1)
    stopped = Path(found["stopped"]["folder"])
    if rank == 0:
        shutil.copytree(stopped, Path(folder) / "stopped")
    found["resumed"] = train(config, resume=stopped)
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()
