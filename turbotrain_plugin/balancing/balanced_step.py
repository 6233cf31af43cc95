"""What an optimiser step of the balancer gathers: gradients, the decision, finished ``.grad``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from turbotrain_plugin.balancing import sweep
from turbotrain_plugin.balancing.base import StepBalancer, TaskStep, decide
from turbotrain_plugin.balancing.gradients import (
    Gradients,
    exact_gradients,
    inner_products,
    like,
    present,
    sum_losses,
)
from turbotrain_plugin.balancing.graph import Leaves, leaves_of_tasks, reached_by_several
from turbotrain_plugin.balancing.processes import (
    agree_on_leaves,
    average_combined,
    average_gradients,
    process_count,
    same_weights,
    sum_over_processes,
)
from turbotrain_plugin.balancing.records import Decision
from turbotrain_plugin.balancing.rows import GradientRows, sum_over_batches
from turbotrain_plugin.balancing.selfcheck import SumCheck
from turbotrain_plugin.balancing.sharing import SharedParameters
from turbotrain_plugin.balancing.sources import CUT, EXACT, FEATURE, LOW_MEMORY, SOURCES
from turbotrain_plugin.structures import UserError

__all__ = ["Batches", "GatheredStep"]

_LOG = logging.getLogger(__name__)

Batches = Sequence[Mapping[str, Tensor]]
"""Task -> detached loss, for every micro-batch of a step, the one under way included."""


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """One micro-batch of a balanced step.

    Attributes:
        losses: Task -> loss times the loss scale; those without a graph left out.
        leaves: The leaves each task reaches on any process.
        scale: Loss scale.
        batches: Losses of all tasks over the step so far, without the loss scale.
        check: What the gradients are checked by; None: they have been checked before.
    """

    losses: Mapping[str, Tensor]
    leaves: Leaves
    scale: float
    batches: Batches
    check: SumCheck | None


class GatheredStep:
    """Gathers the gradients of one step over its micro-batches and decides over them.

    Args:
        method: Weighs the tasks.
        sharing: Which parameters are balanced.
        source: See ``sources.py``.
        cut: Name patterns of what lies below the cut.

    Attributes:
        decision: What was decided; None on free steps and before the first ``backward``.
        evidence: What it was decided over.
    """

    def __init__(
        self, method: StepBalancer, sharing: SharedParameters, source: str, cut: Sequence[str]
    ) -> None:
        self._method = method
        self._sharing = sharing
        self._cut = (cut,) if isinstance(cut, str) else tuple(cut)
        self._gradients = GradientRows()
        self.decision: Decision | None = None
        self.evidence: TaskStep | None = None
        self._below: frozenset[Tensor] = frozenset()
        self._checked = False
        self._recomputes = False
        self.source = source

    @property
    def source(self) -> str:
        """Where gradients come from; see ``sources.py``."""
        return self._source

    @source.setter
    def source(self, name: str) -> None:
        if name not in SOURCES:
            raise ValueError(
                f"Parameter `source` should be one of {', '.join(SOURCES)}. Found {name!r}."
            )
        if name in (CUT, FEATURE) and self._method.needs_gradients:
            if self._method.needs_rows:
                raise UserError(
                    f"{self._method.title} needs the gradients of all shared parameters, which "
                    f"the gradient source {name!r} does not take; use 'exact_low_memory'."
                )
            if self._sharing.set_by_name:
                raise UserError(
                    f"The gradient source {name!r} weighs everything below its cut; leave the "
                    "patterns of shared parameters out, or use 'exact_low_memory'."
                )
            self._below = self._sharing.below(self._cut) if name == CUT else frozenset[Tensor]()
        self._source = name

    def clear(self) -> None:
        """Drop what was gathered for the step under way."""
        self._gradients.clear()
        self.decision = self.evidence = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was found out about the model, so that a resumed run need not."""
        return {"recomputes": self._recomputes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        self._recomputes = bool(state.get("recomputes", False))

    # ------------------------------------------------------------------------------ one micro-batch

    def examine(self, losses: Mapping[str, Tensor]) -> None:
        """Find the shared parameters without running anything."""
        self._reached(losses, tuple(losses), examine=True)

    def add_plain(
        self, losses: Mapping[str, Tensor], scale: float, batches: Batches, *, examine: bool
    ) -> None:
        """Add the mean over the processes of the gradient of the summed loss to ``.grad``.

        Args:
            losses: See :meth:`add`.
            scale: See :meth:`add`.
            batches: See :meth:`add`.
            examine: Whether to look for the shared parameters as well.
        """
        leaves = self._reached(losses, tuple(batches[-1]), examine=examine)
        mine = _all_leaves(leaves_of_tasks(losses))
        values: Sequence[Tensor | None] = ()
        if losses:
            values = torch.autograd.grad(sum_losses(losses) * scale, mine, allow_unused=True)
        found = average_combined(present(mine, values), _all_leaves(leaves))
        with torch.no_grad():
            for leaf, value in found.items():
                leaf.grad = like(leaf, value if leaf.grad is None else leaf.grad + value)

    def add(self, losses: Mapping[str, Tensor], scale: float, batches: Batches) -> None:
        """Add one micro-batch, decide over all of them, write ``.grad``.

        Args:
            losses: Task -> loss, without the loss scale; those without a graph left out.
            scale: Loss scale of what is written.
            batches: The losses of all tasks.
        """
        leaves = self._reached(losses, tuple(batches[-1]), examine=True)
        scaled = {task: loss * scale for task, loss in losses.items()}
        if scale == 1.0:
            scaled = dict(losses)
        check = None if self._checked or len(losses) < 2 else SumCheck()
        given = _MicroBatch(scaled, leaves, scale, batches, check)
        if self._source == FEATURE:
            self._add_at_feature(given)
        elif self._source == CUT:
            self._add_above_cut(given)
        else:
            self._add_exact(given)
        if check is not None:
            self._checked = check.conclusive

    def _reached(
        self, losses: Mapping[str, Tensor], tasks: Sequence[str], *, examine: bool
    ) -> Leaves:
        """Return the leaves each task reaches on any process."""
        leaves = agree_on_leaves(tasks, leaves_of_tasks(losses), self._sharing.known)
        if not leaves:
            raise UserError(
                f"None of the losses {', '.join(tasks)} depends on a parameter that is trained: "
                "the gradient balancer has nothing to differentiate; check what is frozen."
            )
        if examine and len(leaves) > 1:
            self._sharing.examine(leaves)
        return leaves

    def _add_exact(self, given: _MicroBatch) -> None:
        found = self._differentiate(given.losses, leaves_of_tasks(given.losses), given.check)
        self._gradients.add(average_gradients(found, given.leaves))
        balanced = self._sharing.select(self._gradients)
        weights, direction = self._decide(balanced, given)
        if direction is None:
            self._gradients.write(weights, set(balanced))
        else:
            self._gradients.write_direction(direction, self._sharing.named(balanced), given.scale)

    def _add_above_cut(self, given: _MicroBatch) -> None:
        below = self._below
        if self._sharing.examined and not self._sharing.found - below:
            raise UserError(
                f"All shared parameters lie below the cut {', '.join(self._cut)}: nothing is left "
                "to weigh the tasks by; set turbotrain.balance.cut to modules nearer to the input."
            )
        stopped = sweep.sweep_until(given.losses, sweep.Boundary(below), given.check)
        above, passed = _split(stopped.upper, below)
        rows = {
            task: tuple(p for p in reached if p not in below)
            for task, reached in given.leaves.items()
        }
        self._gradients.add(average_gradients(above, rows))
        balanced = self._sharing.select(self._gradients)
        weights, _ = self._decide(balanced, given)
        rest = sweep.Stopped(passed, stopped.flows, stopped.rest)
        combined = rest.finish(weights, self._shared_among(given.leaves))
        lower = [leaf for leaf in _all_leaves(given.leaves) if leaf in below]
        self._gradients.add_combined(average_combined(combined, lower))
        self._gradients.write(weights, set(balanced))

    def _add_at_feature(self, given: _MicroBatch) -> None:
        boundary = sweep.Boundary(self._sharing.found, at_feature=True)
        stopped = sweep.sweep_until(given.losses, boundary, given.check)
        if len(given.losses) > 1 and not stopped.rest:
            raise UserError(
                f"The losses {', '.join(given.losses)} have no feature at which all their paths "
                "into shared parameters can be cut (a parameter may be used both before and after "
                "it); use the gradient source 'cut' or 'exact_low_memory'."
            )
        tasks = tuple(given.leaves)
        flows = [stopped.flows.get(task, {}) for task in tasks] if stopped.rest else []
        places = dict.fromkeys(place for flow in flows for place in flow)
        local = inner_products(flows, places) if flows else torch.zeros(len(tasks), len(tasks))
        # Samples of different processes are different entries of one long feature.
        products = sum_over_processes(local.double(), self._home) / process_count() ** 2
        self._gradients.add({task: {} for task in tasks})
        self._gradients.add_products(tasks, products)
        weights, _ = self._decide(None, given)
        combined = stopped.finish(weights, self._shared_among(given.leaves))
        self._gradients.add_combined(average_combined(combined, _all_leaves(given.leaves)))
        self._gradients.write(weights, frozenset())

    # ------------------------------------------------------------------------------------ its parts

    def _shared_among(self, leaves: Leaves) -> frozenset[Tensor]:
        return self._sharing.found.intersection(reached_by_several(leaves))

    @property
    def _home(self) -> torch.device:
        return self._sharing.known[0].device

    def _decide(
        self, balanced: Sequence[Tensor] | None, given: _MicroBatch
    ) -> tuple[dict[str, float], dict[str, Tensor] | None]:
        """Weigh the tasks by what has been gathered.

        Args:
            balanced: Parameters to compare the gradients over; None: over the feature.
            given: The micro-batch under way.
        """
        tasks = self._gradients.tasks
        rows: tuple[dict[str, Tensor], ...] = ()
        if balanced is None:
            gramian = self._gradients.products() / given.scale**2
        else:
            gramian = self._gradients.gramian(balanced) / given.scale**2
            if self._method.needs_rows:
                rows = self._gradients.rows(self._sharing.named(balanced), given.scale)
        self.evidence = TaskStep(tasks, gramian, sum_over_batches(given.batches, tasks), rows)
        weights, direction = decide(self._method, self.evidence)
        weights = same_weights(weights, self._home)
        self.decision = Decision(tasks, gramian, weights)
        return weights, direction

    def _differentiate(
        self, losses: Mapping[str, Tensor], leaves: Leaves, check: SumCheck | None
    ) -> Gradients:
        """Return the gradient of each task, of all leaves it reaches here."""
        if self._source == LOW_MEMORY and not sweep.torch_starts_inside_graphs():
            _LOG.info(
                "torch %s cannot start a backward pass inside a graph: task gradients are taken by "
                "'exact', which needs more memory than 'exact_low_memory'.",
                torch.__version__,
            )
            self._source = EXACT
        if self._source == LOW_MEMORY and not self._recomputes:
            with _forward_calls() as calls:
                found = sweep.low_memory_gradients(losses, leaves, check)
            if calls:
                _LOG.info(
                    "The model recomputes activations in its backward pass (gradient "
                    "checkpointing): task gradients are taken by 'exact' from now on, which "
                    "recomputes them once a task and not once a piece."
                )
                self._recomputes = True
            return found
        if check is None:
            return exact_gradients(losses, leaves)
        everything = _all_leaves(leaves)
        plain = torch.autograd.grad(
            sum_losses(losses), everything, retain_graph=True, allow_unused=True
        )
        found = exact_gradients(losses, leaves)
        check.compare(found, present(everything, plain))
        return found


def _all_leaves(leaves: Leaves) -> tuple[Tensor, ...]:
    return tuple(dict.fromkeys(leaf for reached in leaves.values() for leaf in reached))


def _split(gradients: Gradients, below: frozenset[Tensor]) -> tuple[Gradients, Gradients]:
    """Return the gradients outside ``below``, and those in it."""
    outside: Gradients = {task: {} for task in gradients}
    inside: Gradients = {task: {} for task in gradients}
    for task, values in gradients.items():
        for leaf, value in values.items():
            (inside if leaf in below else outside)[task][leaf] = value
    return outside, inside


@contextmanager
def _forward_calls() -> Iterator[list[None]]:
    """Yield a list that grows when a module runs forward: in a backward pass, a recomputation."""
    calls: list[None] = []
    handle = register_module_forward_pre_hook(lambda _module, _inputs: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()
