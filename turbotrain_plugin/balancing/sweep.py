"""Exact task gradients with little more memory than a plain backward pass.

A plain backward pass frees activations as it goes. Differentiating one task after the other must
keep all of them until the last task. Here the cotangents of all tasks are pushed through one piece
of the graph, that piece is freed, and the next one follows. The gradients are the same numbers.

The pieces are found in the graph: any place where everything still to be done lies behind edges
that have received all they will receive is a valid cut.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from turbotrain_plugin.balancing.gradients import Gradients, exact_gradients, present
from turbotrain_plugin.balancing.graph import Leaves
from turbotrain_plugin.structures import UserError

__all__ = ["low_memory_gradients"]

Edge = tuple[Node, int]
"""Node and which of its outputs (of the forward pass) a gradient flows into."""


def low_memory_gradients(losses: Mapping[str, Tensor], leaves: Leaves) -> Gradients:
    """Return what :func:`exact_gradients` returns, freeing the graph piece by piece.

    Args:
        losses: Task -> scalar that requires grad.
        leaves: Task -> the leaves to differentiate by.

    Raises:
        UserError: If this torch cannot start a backward pass inside the graph.
    """
    if not _torch_starts_inside_graphs():
        raise UserError(
            "The gradient source 'exact_low_memory' needs a newer torch than this "
            f"{torch.__version__}; use 'exact'."
        )
    if any(loss.grad_fn is None for loss in losses.values()):
        return exact_gradients(losses, leaves)
    flows = {task: {_root(loss): torch.ones_like(loss)} for task, loss in losses.items()}
    found: Gradients = {task: {} for task in losses}
    for piece in _Sweep(list(losses.values())).pieces():
        _push(piece, flows, found)
    return found


def _root(loss: Tensor) -> Edge:
    assert loss.grad_fn is not None  # leaves were sent elsewhere
    return loss.grad_fn, loss.output_nr


@dataclass(slots=True)
class _Piece:
    """Part of the graph between two cuts.

    Attributes:
        ends: Edges into the next piece.
        leaves: Leaves whose gradient is complete after this piece.
        shared: Whether two tasks run through a node of it.
    """

    ends: list[Edge] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    shared: bool = False


def _push(piece: _Piece, flows: dict[str, dict[Edge, Tensor]], found: Gradients) -> None:
    """Push the gradient of every task through one piece and free it."""
    running = [task for task, flow in flows.items() if flow]
    targets: list[Any] = [*(GradientEdge(*end) for end in piece.ends), *piece.leaves]
    for task in running:
        flow = flows[task]
        values = torch.autograd.grad(
            [GradientEdge(*start) for start in flow],
            targets,
            grad_outputs=list(flow.values()),
            retain_graph=piece.shared and task != running[-1],
            allow_unused=True,
        )
        count = len(piece.ends)
        flows[task] = present(piece.ends, values[:count])
        found[task].update(present(piece.leaves, values[count:]))


class _Sweep:
    """Walks the nodes of several losses in the order of a backward pass and finds the cuts.

    The order is that of torch's engine (latest operation of the forward pass first), except that
    nodes of a single task, the heads, come before all shared ones.
    """

    def __init__(self, losses: Sequence[Tensor]) -> None:
        roots = [_root(loss) for loss in losses]
        self._tasks: Counter[Node] = Counter()
        for root, _ in roots:
            self._tasks.update(_nodes_behind(root))
        # Edges into a node that have not been passed yet.
        self._missing = Counter(child for node in self._tasks for child, _ in _edges(node))
        self._open: dict[Edge, None] = dict.fromkeys(roots)
        # Nodes that some, but not all, of their gradients have reached.
        self._waiting = {root for root, _ in roots if self._missing[root]}
        self._ready: list[tuple[bool, int, int, Node]] = []
        self._ticket = itertools.count()
        for root, _ in self._open:
            if not self._missing[root]:
                self._enqueue(root)

    def pieces(self) -> list[_Piece]:
        """Return the pieces, from the losses to the leaves."""
        found: list[_Piece] = []
        piece = _Piece()
        while self._ready:
            shared, _, _, node = heapq.heappop(self._ready)
            if shared and not piece.shared and self._cut_is_valid():
                # The heads are done: each is freed by its own task.
                found.append(self._close(piece))
                piece = _Piece()
            piece.shared = piece.shared or shared
            self._pass(node, piece)
            # A cut costs a call into the engine for every task: only where parameters lie between.
            if shared and piece.leaves and self._cut_is_valid():
                found.append(self._close(piece))
                piece = _Piece()
        return [*found, self._close(piece)] if piece.leaves else found

    def _cut_is_valid(self) -> bool:
        """Return whether nothing behind the open edges is also reached from before them."""
        return not self._waiting

    def _close(self, piece: _Piece) -> _Piece:
        piece.ends = list(self._open)
        return piece

    def _enqueue(self, node: Node) -> None:
        order = -node._sequence_nr() if hasattr(node, "_sequence_nr") else 0
        heapq.heappush(self._ready, (self._tasks[node] > 1, order, next(self._ticket), node))

    def _pass(self, node: Node, piece: _Piece) -> None:
        """Run over ``node`` and open what follows it."""
        for edge in [edge for edge in self._open if edge[0] is node]:
            del self._open[edge]
        for child, index in _edges(node):
            self._missing[child] -= 1
            complete = self._missing[child] == 0
            (self._waiting.discard if complete else self._waiting.add)(child)
            leaf = getattr(child, "variable", None)
            if leaf is None:
                self._open[child, index] = None
                if complete:
                    self._enqueue(child)
            elif complete:
                piece.leaves.append(leaf)


def _edges(node: Node) -> list[Edge]:
    return [(child, index) for child, index in node.next_functions if child is not None]


def _nodes_behind(root: Node) -> set[Node]:
    seen = {root}
    stack = [root]
    while stack:
        for child, _ in _edges(stack.pop()):
            if child not in seen:
                seen.add(child)
                stack.append(child)
    return seen


@functools.cache
def _torch_starts_inside_graphs() -> bool:
    """Return whether ``torch.autograd.grad`` takes an edge of the graph as output."""
    leaf = torch.ones((), requires_grad=True)
    doubled = leaf * 2
    try:
        torch.autograd.grad([GradientEdge(*_root(doubled))], [leaf], [torch.ones(())])
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True
