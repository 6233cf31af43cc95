"""One step of a host's model: the host's forward pass and loss, our backward pass.

In several processes each has a batch of its own. What is reported, and judged to be finite, is the
mean over them, and so is every gradient: all of them take the step or none does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import BalanceRecord, GradientBalancer
from turbotrain_plugin.balancing.processes import agree_on_leaves, average_combined
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.steps import autocast
from turbotrain_plugin.hosts.session import Session
from turbotrain_plugin.hosts.tasks import chosen_tasks, remembered_items


@dataclass(frozen=True, slots=True)
class HostLosses:
    """Losses of one batch.

    Attributes:
        total: What the host would differentiate.
        terms: Its terms by name; those that are tasks when the step may be balanced.
    """

    total: Tensor
    terms: dict[str, Tensor]


class HostLearner(Protocol):
    """What is trained, and its losses."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained."""

    def train_mode(self) -> None:
        """Put it into training mode."""

    def losses(self, ego: dict[str, Any], generator: torch.Generator) -> HostLosses:
        """Return the losses of ``batch['ego']``."""


class TaskLearner:
    """A host's model taught by the host's criterion.

    Args:
        session: The host.
        hypes: Parsed.
        model: On its device.
        dataset: The host's training set.
    """

    def __init__(
        self,
        session: Session,
        hypes: dict[str, Any],
        model: nn.Module,
        dataset: Any,  # noqa: ANN401 - a host's
    ) -> None:
        self.module = model
        self._session = session
        self._hypes = hypes
        self._dataset = dataset
        self.criterion: nn.Module = session.modules.train_utils.create_loss(hypes)

    def train_mode(self) -> None:
        """Put the model into training mode, as the host does."""
        self._session.host.set_train_mode(self.module)

    def losses(self, ego: dict[str, Any], generator: torch.Generator) -> HostLosses:  # noqa: ARG002
        """Return the criterion's value and terms."""
        output = self.module(ego)
        with remembered_items():
            total, terms = self._session.host.losses(
                self.criterion, output, ego, self._dataset, self._hypes
            )
        return HostLosses(total, terms)


@dataclass(slots=True)
class HostStep:
    """What a step reports.

    Attributes:
        total: The host's loss, averaged over the processes.
        terms: Its terms, likewise.
        taken: Whether the optimiser moved.
        gradient_norm: After combining, before clipping.
        record: What the balancer decided.
        culprit: Why the step was not taken.
    """

    total: float
    terms: dict[str, float] = field(default_factory=dict)
    taken: bool = True
    gradient_norm: float = 0.0
    record: BalanceRecord | None = None
    culprit: str = ""


@dataclass(frozen=True, slots=True)
class StepKeys:
    """How steps are taken.

    Attributes:
        tasks: ``turbotrain.host.tasks``.
        amp: ``turbotrain.amp``.
        clip_norm: Gradient norm limit, 0: none.
    """

    tasks: Sequence[str]
    amp: str
    clip_norm: float


def take_step(
    learner: HostLearner,
    ego: dict[str, Any] | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    keys: StepKeys,
    generator: torch.Generator,
) -> HostStep:
    """Run forward, backward and one optimiser step.

    With a plain optimiser the arithmetic is the host's: backward of its total loss, one step. With
    a ``GradientBalancer`` its terms are the tasks. A step that is not finite is not taken, and the
    running statistics are put back.

    Args:
        learner: What is trained.
        ego: ``batch['ego']``; None: this process has no batch, another one has.
        optimizer: Plain, or a ``GradientBalancer``.
        scaler: For fp16 on a GPU.
        keys: How steps are taken.
        generator: Draws masks.
    """
    module = learner.module
    device = next(module.parameters()).device
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    learner.train_mode()
    module.zero_grad()
    optimizer.zero_grad()
    losses = HostLosses(torch.zeros((), device=device), {})
    if ego is not None:
        with autocast(device, keys.amp):
            losses = learner.losses(ego, generator)
    result, losses = _together(losses)
    if result.culprit:
        return _refused(result, optimizer, buffers)
    if isinstance(optimizer, GradientBalancer):
        tasks = chosen_tasks(losses.terms, losses.total, keys.tasks)
        optimizer.backward(tasks, scaler=scaler)
    else:
        total = losses.total if scaler is None else scaler.scale(losses.total)
        if ego is not None:
            total.backward()
        _average(optimizer)
    if scaler is not None:
        scaler.unscale_(optimizer)
    result.gradient_norm = _clip(optimizer, keys.clip_norm)
    if not math.isfinite(result.gradient_norm):
        if scaler is not None:
            scaler.update()
        result.culprit = "non-finite gradient"
        return _refused(result, optimizer, buffers)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    exchange.average_statistics(module)
    if isinstance(optimizer, GradientBalancer):
        result.record = optimizer.last_record
    return result


def _together(losses: HostLosses) -> tuple[HostStep, HostLosses]:
    """Return what all processes report, and own losses with the terms that any of them has.

    A term that this process lacks (it has no batch, or nothing the term is about) is a constant
    zero, and counts as one in the mean.
    """
    own = {name: float(value.detach()) for name, value in losses.terms.items()}
    everyone = exchange.gathered((float(losses.total.detach()), own))
    totals = [total for total, _ in everyone]
    names = dict.fromkeys(chain.from_iterable(terms for _, terms in everyone))
    result = HostStep(
        sum(totals) / len(totals),
        {name: sum(terms.get(name, 0.0) for _, terms in everyone) / len(totals) for name in names},
    )
    if not math.isfinite(result.total):
        bad = [str(rank) for rank, total in enumerate(totals) if not math.isfinite(total)]
        where = f" on process {' and '.join(bad)}" if len(totals) > 1 else ""
        result.culprit = f"non-finite loss{where}"
    nothing = losses.total.new_zeros(())
    return result, HostLosses(losses.total, {n: losses.terms.get(n, nothing) for n in names})


def _average(optimizer: torch.optim.Optimizer) -> None:
    """Average the gradients of a plain backward pass over the processes.

    A parameter unused on a process counts as zero there; one unused on all keeps no gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {p: p.grad for p in parameters if p.grad is not None}
    agreed = agree_on_leaves(("loss",), {"loss": tuple(own)}, parameters)
    for parameter, gradient in average_combined(own, agreed.get("loss", ())).items():
        parameter.grad = gradient


def _refused(
    result: HostStep,
    optimizer: torch.optim.Optimizer,
    buffers: Sequence[tuple[Tensor, Tensor]],
) -> HostStep:
    optimizer.zero_grad()
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    result.taken = False
    return result


def _clip(optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = clip_norm if clip_norm > 0 else math.inf  # inf only measures: a factor of one
    return float(nn.utils.clip_grad_norm_(parameters, limit))
