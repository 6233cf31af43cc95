"""What one optimiser step does, for pretraining and for fine-tuning, each on a screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import BalanceRecord, GradientBalancer, Schedule, schedule_named
from turbotrain_plugin.config import BalanceConfig, LossArgs, PretrainConfig
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.teacher import Teacher
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.structures import Batch, TaskLosses

_AMP_TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner(Protocol):
    """A network and what it is taught."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained."""

    @property
    def network(self) -> CooperativeNetwork:
        """The network that is kept afterwards."""

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:
        """Return the task losses of a batch."""


class PretrainLearner:
    """Masked reconstruction through encoder, temporal fusion and agent fusion."""

    def __init__(self, network: CooperativeNetwork, grid: BevGrid, keys: PretrainConfig) -> None:
        self.network = network
        self.module: nn.Module = MaskedPretrainer(network, grid, keys)

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:
        """Return the reconstruction losses; ``generator`` draws the mask."""
        losses, _ = self.module(batch, generator)
        return losses  # type: ignore[no-any-return]


class FinetuneLearner:
    """Detection and prediction, end to end, from the labels and, where there is one, a teacher."""

    def __init__(
        self, network: CooperativeNetwork, keys: LossArgs, teacher: Teacher | None = None
    ) -> None:
        self.network = network
        self.module: nn.Module = network
        self._keys = keys
        self._teacher = teacher

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:  # noqa: ARG002
        """Return the detection and prediction losses."""
        taught = None if self._teacher is None else self._teacher(batch)
        predictions = self.network(batch, taught)
        return task_losses(predictions, batch, self._keys, exchange.pool())


def schedule_of(keys: BalanceConfig, total_steps: int) -> Schedule:
    """Return the schedule of a balanced stage of ``total_steps`` optimiser steps."""
    by_share = keys.unit == "share"
    return schedule_named(
        keys.schedule,
        free_steps=keys.free_share if by_share else keys.free_steps,
        balance_steps=keys.balance_share if by_share else keys.balance_steps,
        warmup_steps=keys.warmup_share if by_share else keys.warmup_steps,
        unit=keys.unit,
        total_steps=total_steps,
    )


@dataclass(slots=True)
class StepResult:
    """What a step reports.

    Attributes:
        tasks: Task name -> loss, averaged over the step's batches.
        parts: Components of the losses.
        taken: Whether the optimiser moved.
        gradient_norm: Norm of all gradients after combining, before clipping.
        record: What the balancer decided, on balanced steps.
        culprit: The batch that was not finite, when the step was not taken.
    """

    tasks: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    taken: bool = True
    gradient_norm: float = 0.0
    record: BalanceRecord | None = None
    culprit: str = ""


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Return the mixed-precision context of ``turbotrain.amp``."""
    return torch.autocast(
        device.type, dtype=_AMP_TYPES.get(amp, torch.bfloat16), enabled=amp in _AMP_TYPES
    )


def optimiser_step(
    learner: Learner,
    batches: Sequence[Batch],
    balancer: GradientBalancer,
    scaler: torch.amp.GradScaler | None,
    *,
    amp: str,
    clip_norm: float,
    generator: torch.Generator,
) -> StepResult:
    """Run forward and backward over the accumulated batches, then one optimiser step.

    A non-finite loss or gradient leaves weights, running statistics and optimiser untouched. In
    several processes each has batches of its own, and what is reported, and judged to be finite, is
    their mean: all of them take the step or none does.
    """
    result = StepResult()
    # A forward pass that is not finite has already spoilt the statistics of the batch norms.
    buffers = [(buffer, buffer.detach().clone()) for buffer in learner.module.buffers()]
    balancer.zero_grad(set_to_none=True)
    for batch in batches:
        with autocast(batch.record_len.device, amp):
            losses = learner.losses(batch, generator)
        own = {name: _number(loss) for name, loss in losses.tasks.items()}
        _add(result.tasks, exchange.mean_values(own), 1.0 / len(batches))
        _add(result.parts, {n: _number(part) for n, part in losses.parts.items()}, 1 / len(batches))
        if not all(math.isfinite(value) for value in result.tasks.values()):
            # No process has gone backward yet: nobody waits for this one.
            finite = all(math.isfinite(value) for value in own.values())
            culprit = _together("" if finite else f"non-finite loss at {_names([batch])}")
            return _refuse(result, balancer, culprit, buffers)
        shares = {name: loss / len(batches) for name, loss in losses.tasks.items()}
        balancer.backward(shares, scaler=scaler)
    if scaler is not None:
        scaler.unscale_(balancer)
    result.gradient_norm = _clip(balancer, clip_norm)
    if scaler is not None:
        scaler.step(balancer)
        scaler.update()
    elif math.isfinite(result.gradient_norm):
        balancer.step()
    result.record = balancer.last_record
    fault = _fault(result, scaler)
    if fault:
        return _refuse(result, balancer, _together(f"{fault} at {_names(batches)}"), buffers)
    exchange.average_statistics(learner.module)
    result.parts = exchange.mean_of_present(result.parts)
    return result


def _fault(result: StepResult, scaler: torch.amp.GradScaler | None) -> str:
    """Return why the optimiser did not move; empty when it did."""
    if not math.isfinite(result.gradient_norm):
        scale = "" if scaler is None else f" (fp16 loss scale now {scaler.get_scale():g})"
        return f"non-finite gradient{scale}"
    if result.record is None:
        return "overflow of the scaled gradients"
    return result.record.skipped


def _add(target: dict[str, float], values: Mapping[str, float], share: float) -> None:
    for name, value in values.items():
        target[name] = target.get(name, 0.0) + value * share


def _together(culprit: str) -> str:
    """Return the culprits of all processes, empty ones left out."""
    return "; ".join(dict.fromkeys(text for text in exchange.gathered(culprit) if text))


def _number(value: Tensor) -> float:
    return float(value.detach())


def _refuse(
    result: StepResult,
    balancer: GradientBalancer,
    culprit: str,
    buffers: Sequence[tuple[Tensor, Tensor]],
) -> StepResult:
    balancer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    result.taken, result.record = False, None
    result.culprit = culprit
    return result


def _names(batches: Sequence[Batch]) -> str:
    keys = [key for batch in batches for key in batch.keys]
    return ", ".join(f"{scene}/{frame:06d} (ego {ego})" for scene, frame, ego in keys)


def _clip(balancer: GradientBalancer, clip_norm: float) -> float:
    parameters = [p for group in balancer.param_groups for p in group["params"]]
    limit = clip_norm if clip_norm > 0 else math.inf  # inf only measures the norm
    return _number(nn.utils.clip_grad_norm_(parameters, limit))


def refuse_endless(bad_in_a_row: int, limit: int, culprit: str) -> None:
    """Stop a run that no longer learns.

    Raises:
        UserError: After ``limit`` steps in a row that were not taken.
    """
    if bad_in_a_row >= limit:
        raise UserError(
            f"{bad_in_a_row} steps in a row were not finite (last: {culprit}). "
            "Lower the learning rate, set optimizer.clip_norm, or look at that sample with "
            "`opencood data verify`."
        )
