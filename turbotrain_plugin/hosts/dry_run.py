"""`train --dry-run` of a host's model: what would run, what one step costs; leaves nothing behind.

The host's data sets are made and its model is built as in a run; one step of every stage is taken,
a free one and, where the stage balances, a balanced one.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from turbotrain_plugin.balancing import GradientBalancer, HybridSchedule
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.dry_run import (
    StepCost,
    measured,
    print_cost,
    print_parameters,
    print_time,
    samples_measured,
)
from turbotrain_plugin.engine.records import LOG, emit
from turbotrain_plugin.hosts import host_named, randomness
from turbotrain_plugin.hosts.checkout import locate
from turbotrain_plugin.hosts.hypes import HostHypes
from turbotrain_plugin.hosts.learner import HostStep, StepKeys, take_step
from turbotrain_plugin.hosts.loop import HostStage
from turbotrain_plugin.hosts.session import enter
from turbotrain_plugin.hosts.stages import StageMaker, make_data
from turbotrain_plugin.structures import UserError

_MOST_RATES = 4
"""Learning rates that are shown one by one."""


def dry_run(hypes: HostHypes, device: torch.device) -> list[StepCost]:
    """Print the host, the stages, their parameters, tasks and the cost of a step of each.

    On the CPU a step is measured with one sample, as for our own networks.

    Raises:
        UserError: On anything that would stop a run before or in its first step.
    """
    if hypes.block.threads > 0:
        torch.set_num_threads(hypes.block.threads)
    root = locate(hypes.block.host.root)
    host = host_named(hypes.block.host.name, root)
    with enter(host, root) as session:
        emit(hypes.text())
        commit = commit_of(root)
        emit(f"{host.title} in {root}, commit {commit} ({host.commit[:7]} was read and run)")
        LOG.info("shims in force: %s", ", ".join(session.shims))
        randomness.seed_all(hypes.block.host.seed)
        parsed = hypes.parsed(host, session.modules)
        data = make_data(session, hypes, parsed)
        frames, checked = len(data.train_set), len(data.validation_set)
        emit(f"device {device}; {frames} frames to train on, {checked} to validate on")
        maker = StageMaker(session, hypes, parsed, data, Path(), device)
        return [cost for index in range(len(maker.names)) for cost in _stage(maker, index)]


def commit_of(root: Path) -> str:
    """Return the short commit of a checkout, "unknown" where git says none of its own."""
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    top, _, commit = done.stdout.strip().partition("\n")
    own = done.returncode == 0 and Path(top).resolve() == root.resolve()
    return commit if own else "unknown"


def _stage(maker: StageMaker, index: int) -> list[StepCost]:
    """Print one stage and return what its steps cost."""
    stage, model = maker.make(index, fresh=False)
    device, size, optimizer = maker.device, stage.batch_size, stage.optimizer
    print_parameters(stage.name, stage.learner.module, model)
    ego = _batch(maker, stage, samples_measured(size, device))
    steps: list[HostStep] = []
    step = partial(_taken, maker, stage, ego, steps)
    LOG.info("measuring one free step of %s ...", stage.name)
    costs = [measured(device, step)]
    if isinstance(optimizer, GradientBalancer) and optimizer.method.needs_gradients:
        LOG.info("measuring one balanced step of %s ...", stage.name)
        scheduled, optimizer.schedule = optimizer.schedule, HybridSchedule(0, 1)
        costs.append(measured(device, step))
        optimizer.schedule = scheduled
    terms = "  ".join(f"{name} {value:.4f}" for name, value in steps[0].terms.items())
    emit(f"{stage.name}: loss {steps[0].total:.4f}, of it {terms or 'nothing by name'}")
    if isinstance(optimizer, GradientBalancer):
        emit(optimizer.describe())
    for cost, balanced in zip(costs, (False, True), strict=False):
        print_cost(stage.name, cost, size, device, balanced=balanced)
    emit(f"{stage.name}: {stage.epoches} epochs of {stage.steps} steps, {_rates(stage)}")
    print_time(stage.name, costs[0], size, device, stage.steps * stage.epoches)
    return costs


def _batch(maker: StageMaker, stage: HostStage, samples: int) -> dict[str, Any]:
    """Return the ``ego`` of the first batch that the host does not pass over."""
    seed = (maker.hypes.block.host.seed, stage.name)
    loader = randomness.seeded_loader(stage.train_set, samples, 0, 0, 0, *seed)
    host = maker.session.host
    batch = next((batch for batch in loader if not host.skips(batch)), None)
    if batch is None:
        raise UserError(f"{maker.parsed['root_dir']}: the host passes over every batch of it.")
    moved = maker.session.modules.train_utils.to_device(batch, maker.device)
    host.tell_epoch(moved, 0)
    ego: dict[str, Any] = moved["ego"]
    return ego


def _taken(maker: StageMaker, stage: HostStage, ego: dict[str, Any], steps: list[HostStep]) -> bool:
    """Take a step, add it to ``steps`` and return whether it was taken."""
    block = maker.hypes.block
    seed = derive_seed(block.host.seed, "dry run")
    randomness.seed_all(seed)
    generator = torch.Generator(device=maker.device).manual_seed(seed)
    keys = StepKeys(block.host.tasks, block.amp, block.clip_norm)
    steps.append(take_step(stage.learner, ego, stage.optimizer, None, keys, generator))
    return steps[-1].taken


def _rates(stage: HostStage) -> str:
    """Return the learning rates by the epochs they begin in."""
    rates: list[tuple[int, float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a schedule that moves without steps
        for epoch in range(stage.epoches):
            stage.rates.epoch_begins(epoch)
            stage.rates.step_begins(epoch, 0)
            rate = float(stage.optimizer.param_groups[0]["lr"])
            if not rates or rate != rates[-1][1]:
                rates.append((epoch + 1, rate))
            stage.rates.step_done(epoch, stage.steps - 1)
            stage.rates.epoch_ends(epoch)
    if len(rates) > _MOST_RATES:
        least, most = min(rate for _, rate in rates), max(rate for _, rate in rates)
        first, last = rates[0][1], rates[-1][1]
        return f"learning rate {first:g} at first, {last:g} at last, {least:g} to {most:g} between"
    shown = (f"{rate:g}" + (f" from epoch {epoch}" if epoch > 1 else "") for epoch, rate in rates)
    return f"learning rate {', '.join(shown)}"
