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

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep, advance, decide
from turbotrain_plugin.balancing.gradients import (
    Gradients,
    check_sum,
    exact_gradients,
    non_finite,
    present,
    sum_losses,
)
from turbotrain_plugin.balancing.graph import Leaves, leaves_of_tasks
from turbotrain_plugin.balancing.guards import check_losses, refuse_several_processes
from turbotrain_plugin.balancing.methods import method_named
from turbotrain_plugin.balancing.records import BalanceRecord, BalanceWindow, Decision
from turbotrain_plugin.balancing.rows import GradientRows, sum_over_batches
from turbotrain_plugin.balancing.schedule import HybridSchedule, ScheduleWarning, schedule_warnings
from turbotrain_plugin.balancing.sharing import SharedParameters
from turbotrain_plugin.balancing.sweep import low_memory_gradients
from turbotrain_plugin.structures import UserError

__all__ = ["GradientBalancer"]

SOURCES: Final[dict[str, Callable[[Mapping[str, Tensor], Leaves], Gradients]]] = {
    "exact": exact_gradients,
    "exact_low_memory": low_memory_gradients,
}
"""Name -> how the gradients of the tasks are obtained; both give the same numbers."""

STATE_KEY: Final = "turbotrain_balancer"
"""Our entry beside ``state`` and ``param_groups`` in ``state_dict``."""


class GradientBalancer(Optimizer):
    """Wrap a torch optimiser so that some of its steps balance the gradients of the tasks.

    A free step is one backward pass of the plain sum of the losses. A balanced step takes the
    gradient of every task on its own, lets ``method`` weigh them over the shared parameters (those
    that two or more losses reach) and leaves all others with their ordinary gradient. Steps follow
    :class:`HybridSchedule`; all micro-batches of one step (``backward`` called several times before
    ``step``) are of one kind, and the decision is taken over their summed gradients.

    ``param_groups``, ``state`` and ``defaults`` are those of the wrapped optimiser, so learning
    rate schedulers, ``GradScaler`` and clipping work on either. After ``backward`` every ``.grad``
    is what ``step`` will use. A step whose losses or gradients are not finite is not taken:
    parameters, optimiser state and schedule stay, and :attr:`last_record` says why.

    What a balanced step removes is our reading of TurboTrain: see :class:`ConflictSuppression`.

    Args:
        optimizer: Any torch optimiser that steps without a closure.
        method: Name in ``BALANCERS``, ``torchjd:<Name>``, or a method.
        free_steps: n of the schedule.
        balance_steps: m of the schedule; 0 never balances.
        shared: Name patterns of the parameters to balance; None or empty: found from the graph.
        named_parameters: As of ``model.named_parameters()``; needed for ``shared``, and for names
            instead of numbers in messages.
        source: See :attr:`source`.
        args: Arguments of the method called ``method``; those left out have its defaults.

    Attributes:
        last_record: What the last step did; None before the first, from ``backward`` until
            ``step``, and after a step that a ``GradScaler`` skipped.
        window: Running figures over the current cycle's balanced steps.

    Raises:
        UserError: If the method is unknown or its arguments do not fit, the schedule is negative
            or a pattern matches nothing.
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
        source: str = "exact",
        args: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, GradientBalancer):
            raise ValueError(
                "Parameter `optimizer` should be a torch optimizer that is not wrapped yet. "
                f"Found {type(optimizer).__name__}."
            )
        self.inner = optimizer
        # As torch makes an optimiser from a pickle: hooks and profiling, but no groups of its own.
        super().__setstate__({})
        self.method = method_named(method, args or {}) if isinstance(method, str) else method
        self.schedule = HybridSchedule(free_steps, balance_steps)
        self.last_record: BalanceRecord | None = None
        self.window = BalanceWindow()
        self._sharing = SharedParameters(optimizer, shared, named_parameters)
        self._gradients = GradientRows()
        self._decision: Decision | None = None
        self._evidence: TaskStep | None = None
        self._losses: list[dict[str, Tensor]] = []
        self._step = 0
        self._checked = False
        self.source = source
        if self._ever_balances:
            for message in schedule_warnings(free_steps, balance_steps):
                warnings.warn(message, ScheduleWarning, stacklevel=2)

    # ------------------------------------------------------------------ the wrapped optimiser's own

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the wrapped optimiser (the same objects)."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.inner.param_groups = value

    @property
    def state(self) -> Any:  # noqa: ANN401 - torch's own annotation varies between versions
        """State of the wrapped optimiser (the same object)."""
        return self.inner.state

    @state.setter
    def state(self, value: Any) -> None:  # noqa: ANN401
        self.inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the wrapped optimiser (the same object)."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.inner.defaults = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the wrapped optimiser."""
        self.inner.add_param_group(param_group)
        self._sharing.refresh(self.inner)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, those gathered for the step under way included."""
        self._forget_step()
        self.inner.zero_grad(set_to_none=set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler replaces ``step`` on the instance by a local function, which cannot be copied.
        return {name: value for name, value in self.__dict__.items() if name != "step"}

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
        """How balanced steps obtain gradients: ``exact`` or ``exact_low_memory``.

        The latter costs the same time and frees activations nearly as early as a plain backward
        pass does, but needs a torch that can start a backward pass inside a graph (``sweep.py``).
        """
        return self._source

    @source.setter
    def source(self, name: str) -> None:
        if name not in SOURCES:
            raise ValueError(
                f"Parameter `source` should be one of {', '.join(SOURCES)}. Found {name!r}."
            )
        self._source = name

    @property
    def _ever_balances(self) -> bool:
        return self.method.needs_gradients and self.schedule.balance_steps > 0

    def backward(
        self, losses: Mapping[str, Tensor], *, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Add the gradients of one micro-batch to ``.grad``; takes the place of ``loss.backward``.

        Args:
            losses: Task -> scalar. A loss without a graph (a constant) takes no part.
            scaler: Scales all losses alike; hand it over in every call of a step or in none.

        Raises:
            UserError: If no loss can be differentiated, if a task shares no parameter with
                another one, or if a balanced step runs in several processes.
            ValueError: If ``losses`` is empty or a loss is no scalar tensor.
        """
        check_losses(losses)
        if self._losses and self._cleared_by_others():
            self._forget_step()
        self.last_record = None
        self._losses.append({task: loss.detach() for task, loss in losses.items()})
        active = {task: loss for task, loss in losses.items() if loss.requires_grad}
        if not active:
            raise UserError(
                f"None of the losses {', '.join(losses)} depends on a parameter that is trained: "
                "the gradient balancer has nothing to differentiate; check what is frozen."
            )
        if self.is_balanced:
            self._balanced_backward(active, scaler)
            return
        if self._ever_balances and len(active) > 1 and not self._sharing.examined:
            # Once, so that what would stop the first balanced step stops the first step instead.
            self._sharing.examine(leaves_of_tasks(active))
        total = sum_losses(active)
        (total if scaler is None else scaler.scale(total)).backward()

    def _balanced_backward(
        self, losses: Mapping[str, Tensor], scaler: torch.amp.GradScaler | None
    ) -> None:
        """Gather the gradient of each task, decide over what has been gathered, write ``.grad``."""
        refuse_several_processes()
        scale = 1.0
        if scaler is not None:
            losses = {task: scaler.scale(loss) for task, loss in losses.items()}
            scale = scaler.get_scale()
        leaves = leaves_of_tasks(losses)
        if len(losses) > 1:
            self._sharing.examine(leaves)
        self._gradients.add(self._differentiate(losses, leaves))
        tasks = self._gradients.tasks
        balanced = self._sharing.select(self._gradients)
        gramian = self._gradients.gramian(balanced) / scale**2
        names = self._sharing.named(balanced)
        rows = self._gradients.rows(names, scale) if self.method.needs_rows else ()
        self._evidence = TaskStep(tasks, gramian, sum_over_batches(self._losses, tasks), rows)
        weights, direction = decide(self.method, self._evidence)
        if direction is None:
            self._gradients.write(weights, set(balanced))
        else:
            self._gradients.write_direction(direction, names, scale)
        self._decision = Decision(tasks, gramian, weights)

    def _differentiate(self, losses: Mapping[str, Tensor], leaves: Leaves) -> Gradients:
        """Return the gradient of each task, compared once in a run with that of the sum."""
        differentiate = SOURCES[self._source]
        if self._checked or len(losses) < 2:
            return differentiate(losses, leaves)
        everything = tuple(dict.fromkeys(leaf for reached in leaves.values() for leaf in reached))
        plain = torch.autograd.grad(
            sum_losses(losses), everything, retain_graph=True, allow_unused=True
        )
        found = differentiate(losses, leaves)
        self._checked = check_sum(found, present(everything, plain))
        return found

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step of the wrapped optimiser, unless losses or gradients are not finite.

        Args:
            closure: Not supported.
        """
        if closure is not None:
            raise ValueError("Parameter `closure` should be None. Found a closure.")
        fault = self._fault()
        if fault:
            warnings.warn(
                f"Optimiser step {self._step} was not taken: {fault}.", UserWarning, stacklevel=3
            )
        if self._decision is None:
            self.last_record = BalanceRecord(step=self._step, balanced=False, skipped=fault)
        else:
            self.last_record = self._decision.record(self._step, skipped=fault)
        if not fault:
            self.inner.step()
            if self._decision is not None and self._evidence is not None:
                self.window.add(self.schedule.cycle(self._step), self._decision)
                advance(self.method, self._evidence)
            self._step += 1
        self._forget_step()

    def _fault(self) -> str:
        """Return why the step must not be taken; empty when it may."""
        parameters = (p for group in self.param_groups for p in group["params"])
        found = non_finite(self._losses, parameters)
        if not found and self._decision is not None:
            found = "" if bool(self._decision.gramian.isfinite().all()) else "the Gramian overflows"
        return found

    def _cleared_by_others(self) -> bool:
        """Return whether ``model.zero_grad()`` ended a step that a scaler skipped."""
        return all(p.grad is None for group in self.param_groups for p in group["params"])

    def _forget_step(self) -> None:
        """Drop what was gathered for the step under way."""
        self._gradients.clear()
        self._decision = self._evidence = None
        self._losses = []

    # ------------------------------------------------------------------------------ state and names

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimiser's state, the place in the schedule, the method's memory.

        Take it between steps: gradients gathered since the last ``step`` are not part of it. It
        loads with ``torch.load(..., weights_only=True)``.
        """
        own = {
            "step": self._step,
            "free_steps": self.schedule.free_steps,
            "balance_steps": self.schedule.balance_steps,
            "window": self.window.state_dict(),
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
        saved = own.get("method", {}) if own else {}
        same = saved.get("title") == self.method.title
        self.method.load_state_dict(saved["state"] if same else {})
        if own and (own["free_steps"], own["balance_steps"]) != (
            self.schedule.free_steps,
            self.schedule.balance_steps,
        ):
            warnings.warn(
                f"The checkpoint was balanced {own['free_steps']} free / {own['balance_steps']} "
                f"balanced steps, this run {self.schedule.free_steps} / "
                f"{self.schedule.balance_steps}; step {self._step} continues under the latter.",
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
            f"Gradient balancing: {self.method.title}, {self.schedule.free_steps} free "
            f"steps, then {self.schedule.balance_steps} balanced ones.\n{self._sharing.describe()}"
        )
