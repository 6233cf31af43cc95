"""GradientBalancer: any torch optimiser, with free and balanced steps.

.. code-block:: python

    optimizer = GradientBalancer(torch.optim.Adam(model.parameters(), lr=2e-3))
    optimizer.zero_grad()
    optimizer.backward({"detection": detection_loss, "prediction": prediction_loss})
    optimizer.step()

With mixed precision the order is: ``optimizer.backward(losses, scaler=scaler)``, then
``scaler.unscale_(optimizer)``, clipping, ``scaler.step(optimizer)``, ``scaler.update()``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from turbotrain_plugin.balancing.balanced_step import GatheredStep
from turbotrain_plugin.balancing.base import StepBalancer, advance
from turbotrain_plugin.balancing.gradients import non_finite, sum_losses
from turbotrain_plugin.balancing.guards import check_losses
from turbotrain_plugin.balancing.methods import method_named
from turbotrain_plugin.balancing.probe import Probe
from turbotrain_plugin.balancing.processes import average_losses, process_count
from turbotrain_plugin.balancing.records import BalanceRecord, BalanceWindow
from turbotrain_plugin.balancing.schedule import Schedule, ScheduleWarning, schedule_named
from turbotrain_plugin.balancing.sharing import SharedParameters
from turbotrain_plugin.balancing.sources import LOW_MEMORY
from turbotrain_plugin.balancing.wrapper import OptimizerWrapper
from turbotrain_plugin.structures import UserError

__all__ = ["GradientBalancer"]

STATE_KEY: Final = "turbotrain_balancer"
"""Our entry beside ``state`` and ``param_groups`` in ``state_dict``."""


class GradientBalancer(OptimizerWrapper):
    """Wrap a torch optimiser so that some of its steps balance the gradients of the tasks.

    A free step is one backward pass of the plain sum of the losses. A balanced step takes the
    gradient of every task on its own, lets ``method`` weigh them over the shared parameters (those
    that two or more losses reach) and leaves all others with their ordinary gradient. Steps follow
    a schedule, ``hybrid`` unless another is given; all micro-batches of one step
    (``backward`` called several times before ``step``) are of one kind, and the decision is taken
    over their summed gradients. Only the sources ``cut`` and ``feature`` have to weigh what lies
    below their cut before the next micro-batch comes: there each is weighed by what had been
    gathered up to it.

    ``param_groups``, ``state`` and ``defaults`` are those of the wrapped optimiser, so learning
    rate schedulers, ``GradScaler`` and clipping work on either. After ``backward`` every ``.grad``
    is what ``step`` will use. A step whose losses or gradients are not finite is not taken:
    parameters, optimiser state and schedule stay, and :attr:`last_record` says why.

    In a run of several processes (``torch.distributed``) every ``backward`` averages the gradients
    over the processes, on free and balanced steps alike: those of each task before the decision,
    which is not linear. So do not wrap the model in ``DistributedDataParallel``: its gradient hooks
    are never called, and with ``find_unused_parameters`` or ``static_graph`` it is refused, because
    it hides which task reaches what. All processes start from the same weights, call ``backward``
    equally often and hand over the same tasks in the same order; a process without samples hands
    over constant zeros. Means are over all processes, so losses that are means over their samples
    call for equally many on each. With SyncBatchNorm every loss needs a graph on every process
    (``0 * loss``), as its backward pass communicates as well.

    What a balanced step removes is our reading of TurboTrain: see :class:`ConflictSuppression`.

    Args:
        optimizer: Any torch optimiser that steps without a closure.
        method: Name in ``BALANCERS``, ``torchjd:<Name>``, or a method.
        free_steps: n of the schedule.
        balance_steps: m of the schedule; 0 never balances.
        shared: Name patterns of the parameters to balance; None or empty: found from the graph.
        named_parameters: As of ``model.named_parameters()``; needed for ``shared``, and for names
            instead of numbers in messages.
        source: Where the gradients of the tasks come from, see ``sources.py``: ``exact_low_memory``
            (``exact`` where torch is too old for it), ``exact``, ``cut`` or ``feature``.
        cut: Name patterns of the parameters below the cut of source ``cut``.
        schedule: Which steps are balanced: a name in ``SCHEDULES`` (``after_warmup`` reads its
            warm-up from ``free_steps``), or a schedule, which takes the place of both numbers.
        args: Arguments of the method called ``method``; those left out have its defaults.
        probe_every: Every such free step is measured, without altering it (0: none); see
            ``probe.py``.
        modules: Module -> name patterns, for the figures by module; parameters that none matches
            count to the first part of their name.

    Attributes:
        last_record: What the last step did; None before the first, from ``backward`` until
            ``step``, and after a step that a ``GradScaler`` skipped.
        window: Running figures over the current cycle's balanced steps.
        probe_window: The same over its probed free steps.

    Raises:
        UserError: If method or schedule are unknown, their arguments do not fit, or a pattern
            matches nothing.
        ValueError: If ``optimizer`` is no torch optimiser, names are needed and missing, or the
            source is unknown.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        method: str | StepBalancer = "conflict_suppression",
        free_steps: int = 2000,
        balance_steps: int = 1000,
        shared: Sequence[str] | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
        source: str = LOW_MEMORY,
        cut: str | Sequence[str] = ("encoder",),
        schedule: Schedule | str = "hybrid",
        args: Mapping[str, Any] | None = None,
        probe_every: int = 0,
        modules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.method = method_named(method, args or {}) if isinstance(method, str) else method
        if isinstance(schedule, str):
            free, balanced = free_steps, balance_steps
            schedule = schedule_named(
                schedule, free_steps=free, balance_steps=balanced, warmup_steps=free
            )
        self.schedule = schedule
        self.last_record: BalanceRecord | None = None
        self.window = BalanceWindow()
        self.probe_window = BalanceWindow()
        self._sharing = SharedParameters(optimizer, shared, named_parameters, modules)
        self._probe = Probe(probe_every, self._sharing)
        self._gathered = GatheredStep(self.method, self._sharing, source, cut)
        self._losses: list[dict[str, Tensor]] = []
        self._step = 0
        if self._ever_balances:
            for message in self.schedule.warnings():
                warnings.warn(message, ScheduleWarning, stacklevel=2)

    # ------------------------------------------------------------------ the wrapped optimiser's own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimiser."""
        self.inner.add_param_group(param_group)
        self._sharing.refresh(self.inner)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, those gathered for the step under way included."""
        self._forget_step()
        self.inner.zero_grad(set_to_none=set_to_none)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.describe()}\n{self.inner!r})"

    # ------------------------------------------------------------------------------------- stepping

    @property
    def steps_taken(self) -> int:
        """Optimiser steps taken so far: the counter of the schedule."""
        return self._step

    @property
    def is_balanced(self) -> bool:
        """Whether the coming (or current, unfinished) optimiser step is balanced."""
        return self.method.needs_gradients and self.schedule.is_balanced(self._step)

    @property
    def source(self) -> str:
        """Where balanced steps take gradients from; see ``sources.py``."""
        return self._gathered.source

    @source.setter
    def source(self, name: str) -> None:
        self._gathered.source = name

    @property
    def _ever_balances(self) -> bool:
        return self.method.needs_gradients and self.schedule.ever_balances

    def backward(
        self, losses: Mapping[str, Tensor], *, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Add the gradients of one micro-batch to ``.grad``; takes the place of ``loss.backward``.

        Args:
            losses: Task -> scalar. A loss without a graph (a constant) takes no part.
            scaler: Scales all losses alike; hand it over in every call of a step or in none.

        Raises:
            UserError: If no loss can be differentiated, if a task shares no parameter with
                another one, or if the processes differ in their tasks or parameters.
            ValueError: If ``losses`` is empty or a loss is no scalar tensor.
        """
        check_losses(losses)
        if self._losses and self._cleared_by_others():
            self._forget_step()
        self.last_record = None
        active = {task: loss for task, loss in losses.items() if loss.requires_grad}
        several = process_count() > 1
        if not active and not several:
            raise UserError(
                f"None of the losses {', '.join(losses)} depends on a parameter that is trained: "
                "the gradient balancer has nothing to differentiate; check what is frozen."
            )
        self._losses.append(average_losses(losses, self._home))
        examine = self._ever_balances and not self._sharing.examined
        if self._probe.is_due(self._step) and not self.is_balanced and len(losses) > 1:
            self._gathered.measure(self._probe, active, self._scale(scaler), self._losses)
        if self.is_balanced:
            self._gathered.add(active, self._scale(scaler), self._losses)
        elif several:
            scale = self._scale(scaler)
            self._gathered.add_plain(active, scale, self._losses, examine=examine)
        else:
            if examine and len(active) > 1:
                # What would stop the first balanced step stops the first step instead.
                self._gathered.examine(active)
            total = sum_losses(active)
            (total if scaler is None else scaler.scale(total)).backward()

    @property
    def _home(self) -> torch.device:
        """Where the first parameter lies."""
        return self._sharing.known[0].device

    def _scale(self, scaler: torch.amp.GradScaler | None) -> float:
        """Return the loss scale; a scaler sets it up when it is first asked to scale."""
        if scaler is None:
            return 1.0
        scaler.scale(torch.zeros((), device=self._home))
        return float(scaler.get_scale())

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Take one step of the wrapped optimiser, unless losses or gradients are not finite.

        Args:
            closure: Called once before, with gradients enabled, as trainers do that wrap ``step``;
                it should call :meth:`backward` unless that has been done.

        Returns:
            What ``closure`` returned.
        """
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        fault = self._fault()
        if fault:
            warnings.warn(
                f"Optimiser step {self._step} was not taken: {fault}.", UserWarning, stacklevel=3
            )
        balanced = self._gathered.decision is not None
        measured = self._gathered.decision if balanced else self._probe.decision()
        if measured is None:
            self.last_record = BalanceRecord(step=self._step, balanced=False, skipped=fault)
        else:
            self.last_record = measured.record(self._step, balanced=balanced, skipped=fault)
        if not fault:
            self.inner.step()
            if measured is not None:
                window = self.window_of(self.last_record)
                window.add(self.schedule.cycle(self._step), measured)
            if self._gathered.evidence is not None:
                advance(self.method, self._gathered.evidence)
            self._step += 1
        self._forget_step()
        return returned

    def window_of(self, record: BalanceRecord) -> BalanceWindow:
        """Return the running figures that a step of this kind counts to."""
        return self.window if record.balanced else self.probe_window

    def _fault(self) -> str:
        """Return why the step must not be taken; empty when it may."""
        parameters = (p for group in self.param_groups for p in group["params"])
        found = non_finite(self._losses, parameters)
        if not found and self._gathered.decision is not None:
            found = (
                ""
                if bool(self._gathered.decision.gramian.isfinite().all())
                else "the Gramian overflows"
            )
        return found

    def _cleared_by_others(self) -> bool:
        """Return whether ``model.zero_grad()`` ended a step that a scaler skipped."""
        return all(p.grad is None for group in self.param_groups for p in group["params"])

    def _forget_step(self) -> None:
        """Drop what was gathered for the step under way."""
        self._gathered.clear()
        self._probe.clear()
        self._losses = []

    # ------------------------------------------------------------------------------ state and names

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimiser's state, the place in the schedule, the method's memory.

        Take it between steps: gradients gathered since the last ``step`` are not part of it. It
        loads with ``torch.load(..., weights_only=True)``.
        """
        own = {
            "step": self._step,
            "schedule": str(self.schedule),
            "model": self._gathered.state_dict(),
            "window": self.window.state_dict(),
            "probe_window": self.probe_window.state_dict(),
            "method": {"title": self.method.title, "state": self.method.state_dict()},
        }
        return {**self.inner.state_dict(), STATE_KEY: own}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or the state of a bare optimiser.

        The schedule of the constructor holds; a warning says when the saved one differs. The state
        of a bare optimiser puts the schedule at its start. What another method remembered is left
        out.
        """
        own = state_dict.get(STATE_KEY)
        self.inner.load_state_dict({k: v for k, v in state_dict.items() if k != STATE_KEY})
        self._forget_step()
        self.last_record = None
        self._step = int(own["step"]) if own else 0
        self.window = BalanceWindow.from_state_dict(own["window"]) if own else BalanceWindow()
        probed = own.get("probe_window") if own else None
        self.probe_window = BalanceWindow.from_state_dict(probed) if probed else BalanceWindow()
        saved = own.get("method", {}) if own else {}
        same = saved.get("title") == self.method.title
        self.method.load_state_dict(saved["state"] if same else {})
        self._gathered.load_state_dict(own.get("model", {}) if own else {})
        if own and own["schedule"] != str(self.schedule):
            warnings.warn(
                f"The checkpoint was balanced by the schedule '{own['schedule']}', this run by "
                f"'{self.schedule}'; step {self._step} continues under the latter.",
                ScheduleWarning,
                stacklevel=2,
            )

    @property
    def shared_names(self) -> tuple[str, ...]:
        """Names of the shared parameters; empty before the first ``backward`` of two losses."""
        return self._sharing.names

    def describe(self) -> str:
        """Return in a few lines what is balanced, when, and over which parameters."""
        if not self._ever_balances:
            return "Gradient balancing: off, every step is the plain sum of the losses."
        return (
            f"Gradient balancing: {self.method.title}, {self.schedule}, gradients from "
            f"{self.source!r}.\n{self._sharing.describe()}"
        )
