"""`train --dry-run`: what would run, how large it is, what one step costs; trains nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

import torch
from torch import nn

from turbotrain_plugin.config import RunConfig, to_yaml
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine.assembly import (
    SYNTHETIC,
    build_dataset,
    build_network,
    derive_seed,
    prepare_torch,
)
from turbotrain_plugin.engine.freezing import freeze
from turbotrain_plugin.engine.optim import build_balancer, check_methods
from turbotrain_plugin.engine.records import LOG, emit
from turbotrain_plugin.engine.stages import PRETRAIN, Stage, stages_of, training_config
from turbotrain_plugin.engine.steps import FinetuneLearner, Learner, PretrainLearner, optimiser_step
from turbotrain_plugin.engine.teacher import load_teacher

PROBE: Final = "synthetic:probe"
"""One scene with the dense sensors, so that a dry run never makes a large synthetic data set."""

_MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one optimiser step takes.

    Attributes:
        seconds: Wall time.
        memory_mb: Peak memory in MiB.
        taken: Whether losses and gradients were finite.
    """

    seconds: float
    memory_mb: float
    taken: bool


def dry_run(config: RunConfig, device: torch.device) -> list[StepCost]:
    """Print the resolved file, the parameters, and the cost of one step of every stage.

    On the CPU a step is measured with one sample, whatever the batch size: a full batch of the
    paper's setting does not fit most machines without a GPU.
    """
    stages = stages_of(config)
    check_methods(stage.balance for stage in stages)
    prepare_torch(config)
    emit(to_yaml(config))
    # Windows with a full history are the dearest; they bound the memory.
    data = replace(config.turbotrain.data, require_history=True, num_workers=0)
    measured = replace(config, turbotrain=replace(config.turbotrain, data=data))
    costs: list[StepCost] = []
    for stage in stages:
        balances = stage.balance is not None and stage.balance.method != "none"
        kinds = (False, True) if balances else (False,)
        costs.extend(_measure(measured, stage, device, balanced=kind) for kind in kinds)
    return costs


def _measure(config: RunConfig, stage: Stage, device: torch.device, *, balanced: bool) -> StepCost:
    config = training_config(config, stage)
    if any(root.startswith(SYNTHETIC) for root in config.root_dir):
        config = replace(config, root_dir=(PROBE,))
    purpose = "pretrain" if stage.kind == PRETRAIN else "train"
    dataset = build_dataset(config, "train", purpose)
    learner = _learner(config, stage, dataset, device)
    learner.module.to(device).train()
    freeze(learner.network, stage.frozen)
    if not balanced:
        print_parameters(stage.name, learner.module, learner.network, stage.frozen)
    samples = samples_measured(stage.batch_size, device)
    LOG.info("measuring one %s step of %s ...", "balanced" if balanced else "free", stage.name)
    cost = one_step(config, stage, learner, dataset, samples=samples, balanced=balanced)
    print_cost(stage.name, cost, stage.batch_size, device, balanced=balanced)
    if balanced:
        return cost
    if config.root_dir == (PROBE,):
        emit(f"{stage.name}: no time in all, a dry run does not make the synthetic scenes")
    else:
        steps = -(-len(dataset) // stage.batch_size) * stage.epoches
        print_time(stage.name, cost, stage.batch_size, device, steps)
    return cost


def samples_measured(batch_size: int, device: torch.device) -> int:
    """Return the samples of a measured step."""
    return batch_size if device.type == "cuda" else 1


def print_cost(
    stage: str, cost: StepCost, batch_size: int, device: torch.device, *, balanced: bool
) -> None:
    """Print what a step of a stage takes."""
    samples = samples_measured(batch_size, device)
    emit(
        f"{stage}, {'balanced' if balanced else 'free'} step: {cost.seconds:.1f} s, "
        f"peak memory {cost.memory_mb:.0f} MiB, batch of {samples} on {device}"
        + ("" if samples == batch_size else f" (the file says {batch_size})")
        + ("; checks itself once, later ones are cheaper" if balanced else "")
        + ("" if cost.taken else "  NOT FINITE")
    )


def print_time(
    stage: str, cost: StepCost, batch_size: int, device: torch.device, steps: int
) -> None:
    """Print what all steps of a stage take."""
    hours = steps * cost.seconds * batch_size / samples_measured(batch_size, device) / 3600
    emit(f"{stage}: {steps} steps, about {hours:.1f} h at this pace")


def one_step(
    config: RunConfig,
    stage: Stage,
    learner: Learner,
    dataset: CooperativeDataset,
    *,
    samples: int,
    balanced: bool,
) -> StepCost:
    """Run one optimiser step and return what it took."""
    device = next(learner.module.parameters()).device
    keys = [SampleKey(0, index % len(dataset)) for index in range(samples)]
    batch = next(iter(BatchLoader(dataset, [keys]))).to(device)
    balance = None
    if balanced and stage.balance is not None:
        balance = replace(stage.balance, free_steps=0, balance_steps=1)
    balancer = build_balancer(stage.optimizer, balance, learner.module)
    generator = torch.Generator(device=device).manual_seed(derive_seed(config.seed, "dry run"))
    return measured(
        device,
        lambda: (
            optimiser_step(
                learner,
                [batch],
                balancer,
                None,
                amp=config.turbotrain.amp,
                clip_norm=stage.optimizer.clip_norm,
                generator=generator,
            ).taken
        ),
    )


def measured(device: torch.device, step: Callable[[], bool]) -> StepCost:
    """Return what a step takes that says whether it was taken."""
    with PeakMemory(device) as memory:
        begin = time.perf_counter()
        taken = step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
    return StepCost(seconds, memory.peak_mb, taken)


def _learner(
    config: RunConfig, stage: Stage, dataset: CooperativeDataset, device: torch.device
) -> Learner:
    network = build_network(config, dataset)
    if stage.kind == PRETRAIN:
        return PretrainLearner(network, dataset.grid, config.turbotrain.pretrain)
    return FinetuneLearner(network, config.loss.args, load_teacher(config, device))


def print_parameters(
    stage: str, trained: nn.Module, network: nn.Module, frozen: Sequence[str] = ()
) -> None:
    """Print the parameters of a stage, and those of its network by module."""
    total = sum(p.numel() for p in trained.parameters())
    emit(f"\nstage {stage}: {total / 1e6:.3f} M parameters")
    for name, module in network.named_children():
        count = sum(p.numel() for p in module.parameters())
        held = "  frozen" if name in frozen else ""
        if count:
            emit(f"  {name:<20} {count / 1e6:8.3f} M{held}")


class PeakMemory:
    """Peak memory of a block: the allocator's on CUDA, the resident set's on the CPU (sampled)."""

    SECONDS: Final = 0.02

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.peak_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._device.type == "cuda":
            self.peak_mb = torch.cuda.max_memory_allocated(self._device) / _MEBIBYTE
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            self.peak_mb = max(self.peak_mb, resident_mb())
            self._done.wait(self.SECONDS)


def resident_mb() -> float:
    """Return the resident memory of this process in MiB; its peak, or 0, where it is hidden."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a real file
            return int(file.read().split()[1]) * resource.getpagesize() / _MEBIBYTE
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MEBIBYTE if sys.platform == "darwin" else peak / 1024
