"""Free steps, measured now and then: the task gradients are looked at and nothing is changed.

A probed step runs one further backward pass a task and keeps the graph for the plain one, so it
takes the time of K more and the memory of ``exact``; the plain one runs as if nothing had been. Our
choice: the paper reports no such figures.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from turbotrain_plugin.balancing.gradients import TaskGradients, exact_gradients, total
from turbotrain_plugin.balancing.graph import Leaves
from turbotrain_plugin.balancing.processes import average_gradients
from turbotrain_plugin.balancing.records import Decision
from turbotrain_plugin.balancing.sharing import SharedParameters
from turbotrain_plugin.structures import UserError

__all__ = ["Probe"]


class Probe:
    """Gathers what the tasks pull at in one free step.

    Args:
        every: Free steps whose number is a multiple of this are measured; 0: none.
        sharing: Which parameters are compared.

    Raises:
        UserError: If ``every`` is not a whole number >= 0.
    """

    def __init__(self, every: int, sharing: SharedParameters) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise UserError(
                f"Probing needs a whole number >= 0 for probe_every, not {every!r}; 0 is off."
            )
        self._every = every
        self._sharing = sharing
        self._gradients = TaskGradients()
        self._scale = 1.0

    def is_due(self, step: int) -> bool:
        """Return whether optimiser step ``step`` (from 0) is measured, if it is a free one."""
        return self._every > 0 and step % self._every == 0

    def clear(self) -> None:
        """Drop what was gathered for the step under way."""
        self._gradients.clear()

    def add(self, losses: Mapping[str, Tensor], leaves: Leaves, scale: float) -> None:
        """Measure one micro-batch; the graph is kept and no ``.grad`` is touched.

        Args:
            losses: Task -> loss, without the loss scale; those without a graph left out.
            leaves: The leaves each task reaches on any process.
            scale: Loss scale to differentiate with, so that half precision does not underflow.
        """
        self._scale = scale
        shared = {
            task: tuple(leaf for leaf in reached if leaf in self._sharing.found)
            for task, reached in leaves.items()
        }
        scaled = {task: loss * scale for task, loss in losses.items() if shared.get(task)}
        found = exact_gradients(scaled, shared, keep_graph=True)
        self._gradients.add(average_gradients(found, shared))

    def decision(self) -> Decision | None:
        """Return what was measured; None when nothing was, or nothing that is finite."""
        tasks = self._gradients.tasks
        if len(tasks) < 2:
            return None
        blocks = self._gradients.products_by_leaf(self._sharing.select(self._gradients))
        square = self._scale**2
        gramian = total(blocks.values(), len(tasks)) / square
        if not bool(gramian.isfinite().all()):
            return None
        modules = {name: part / square for name, part in self._sharing.by_module(blocks).items()}
        return Decision(tasks, gramian, {}, modules)
