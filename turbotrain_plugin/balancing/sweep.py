"""Exact task gradients with little more memory than a plain backward pass.

A plain backward pass frees activations as it goes. Differentiating one task after the other must
keep all of them until the last task. Here the cotangents of all tasks are pushed through one piece
of the graph, that piece is freed, and the next one follows. The gradients are the same numbers.

The pieces are found in the graph: any place where everything still to be done lies behind edges
that have received all they will receive is a valid cut. A sweep may also stop at such a place, to
let one ordinary backward pass of the combined gradient do the rest.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from turbotrain_plugin.balancing.gradients import Gradients, present, weighted_sum
from turbotrain_plugin.balancing.graph import Leaves
from turbotrain_plugin.balancing.selfcheck import SumCheck
from turbotrain_plugin.structures import UserError

__all__ = [
    "Boundary",
    "Edge",
    "Stopped",
    "low_memory_gradients",
    "sweep_until",
    "torch_starts_inside_graphs",
]

Edge = tuple[Node, int]
"""Node and which of its outputs (of the forward pass) a gradient flows into."""

_HEAD: Final = 0
"""Level of the nodes that one task alone runs through."""
_TRUNK: Final = 1
"""Level of the shared nodes above a boundary."""
_LOWER: Final = 2
"""Level of the shared nodes below a boundary."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a sweep stops: at the first valid cut with nothing but lower nodes behind it.

    Attributes:
        below: Leaves; a shared node that reaches no other leaf is a lower one.
        at_feature: Every shared node is a lower one. With a single loss, which shares nothing, the
            nodes that reach leaves of ``below`` alone stand in for the shared ones.
    """

    below: AbstractSet[Tensor]
    at_feature: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """A sweep that stopped at a boundary.

    Attributes:
        upper: Task -> leaf -> gradient, of the leaves that are done.
        flows: Task -> place in the graph -> gradient that has arrived there.
        rest: Leaves that are not done.
    """

    upper: Gradients
    flows: dict[str, dict[Edge, Tensor]]
    rest: tuple[Tensor, ...]

    def finish(
        self, weights: Mapping[str, float], shared: AbstractSet[Tensor]
    ) -> dict[Tensor, Tensor]:
        """Return leaf -> weighed gradient of all leaves; frees the rest of the graph.

        Args:
            weights: Task -> weight.
            shared: Leaves to weigh; of the others the plain sum is returned. The rest is always
                weighed.
        """
        found: dict[Tensor, Tensor] = {}
        for leaf in dict.fromkeys(leaf for values in self.upper.values() for leaf in values):
            found[leaf] = weighted_sum(
                [
                    (weights[task] if leaf in shared else 1.0, values[leaf])
                    for task, values in self.upper.items()
                    if leaf in values
                ]
            )
        if self.rest:
            found.update(self._pass_through_the_rest(weights))
        return found

    def _pass_through_the_rest(self, weights: Mapping[str, float]) -> dict[Tensor, Tensor]:
        flow = _join(self.flows, weights)
        if not flow:
            return {}
        values = torch.autograd.grad(
            [GradientEdge(*start) for start in flow],
            self.rest,
            grad_outputs=list(flow.values()),
            allow_unused=True,
        )
        return present(self.rest, values)


def low_memory_gradients(
    losses: Mapping[str, Tensor], leaves: Leaves, check: SumCheck | None = None
) -> Gradients:
    """Return what :func:`exact_gradients` returns, freeing the graph piece by piece.

    Args:
        losses: Task -> scalar that requires grad.
        leaves: Task -> the leaves to differentiate by: all that the losses reach.
        check: Compares the pieces that run once for every task, at the cost of one more pass.

    Raises:
        UserError: If this torch cannot start a backward pass inside the graph.
    """
    del leaves
    return sweep_until(losses, None, check).upper


def sweep_until(
    losses: Mapping[str, Tensor], boundary: Boundary | None, check: SumCheck | None = None
) -> Stopped:
    """Return the gradient of every task down to ``boundary`` (None: down to the leaves).

    Args:
        losses: Task -> scalar that requires grad.
        boundary: Where to stop.
        check: See :func:`low_memory_gradients`.

    Raises:
        UserError: If this torch cannot start a backward pass inside the graph.
    """
    if not torch_starts_inside_graphs():
        raise UserError(
            "The gradient sources 'exact_low_memory', 'cut' and 'feature' need a newer torch than "
            f"this {torch.__version__}; use 'exact'."
        )
    # A loss may be a leaf, where no pass can start.
    inside = {t: loss.view_as(loss) if loss.grad_fn is None else loss for t, loss in losses.items()}
    flows = {task: {_root(loss): torch.ones_like(loss)} for task, loss in inside.items()}
    found: Gradients = {task: {} for task in losses}
    sweep = _Sweep(list(inside.values()), boundary)
    for piece in sweep.pieces():
        _push(piece, flows, found, check)
    return Stopped(found, flows, sweep.rest)


def _root(loss: Tensor) -> Edge:
    assert loss.grad_fn is not None  # leaves were given one
    return loss.grad_fn, loss.output_nr


_PIECES: Final = 24
"""Pieces that a trunk is cut into, about; more save no memory worth the calls."""


@dataclass(slots=True)
class _Piece:
    """Part of the graph between two cuts.

    Attributes:
        ends: Edges into the next piece.
        leaves: Leaves whose gradient is complete after this piece.
        shared: Whether two tasks run through a node of it.
        nodes: How many nodes it has.
    """

    ends: list[Edge] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    shared: bool = False
    nodes: int = 0


def _push(
    piece: _Piece, flows: dict[str, dict[Edge, Tensor]], found: Gradients, check: SumCheck | None
) -> None:
    """Push the gradient of every task through one piece and free it."""
    running = [task for task, flow in flows.items() if flow]
    several = piece.shared and len(running) > 1
    came_in: dict[Edge, Tensor] = {}
    plain: _Arrived | None = None
    if several and check is not None:
        came_in = _join(flows, dict.fromkeys(flows, 1.0))
        plain = _through(piece, came_in, retain=True)
    arrived: dict[str, _Arrived] = {}
    for task in running:
        arrived[task] = _through(piece, flows[task], retain=several and task != running[-1])
        flows[task] = arrived[task].at_ends
        found[task].update(arrived[task].at_leaves)
    if plain is not None and check is not None:
        check.compare(
            {task: one.everything() for task, one in arrived.items()},
            plain.everything(),
            came_in.values(),
        )


@dataclass(frozen=True, slots=True)
class _Arrived:
    """Gradients behind a piece."""

    at_ends: dict[Edge, Tensor]
    at_leaves: dict[Tensor, Tensor]

    def everything(self) -> dict[Edge | Tensor, Tensor]:
        found: dict[Edge | Tensor, Tensor] = dict(self.at_ends.items())
        found.update(self.at_leaves.items())
        return found


def _through(piece: _Piece, flow: Mapping[Edge, Tensor], *, retain: bool) -> _Arrived:
    targets: list[Any] = [*(GradientEdge(*end) for end in piece.ends), *piece.leaves]
    values = torch.autograd.grad(
        [GradientEdge(*start) for start in flow],
        targets,
        grad_outputs=list(flow.values()),
        retain_graph=retain,
        allow_unused=True,
    )
    count = len(piece.ends)
    return _Arrived(present(piece.ends, values[:count]), present(piece.leaves, values[count:]))


def _join(
    flows: Mapping[str, Mapping[Edge, Tensor]], weights: Mapping[str, float]
) -> dict[Edge, Tensor]:
    """Return the weighted sum of the tasks' gradients at every edge one of them has reached."""
    edges = dict.fromkeys(edge for flow in flows.values() for edge in flow)
    return {
        edge: weighted_sum([(weights[t], flow[edge]) for t, flow in flows.items() if edge in flow])
        for edge in edges
    }


class _Sweep:
    """Walks the nodes of several losses in the order of a backward pass and finds the cuts.

    The order is that of torch's engine (latest operation of the forward pass first), except that
    nodes of a single task, the heads, come before all shared ones, and lower ones last.

    Attributes:
        rest: Leaves that lie behind the boundary where the sweep ended; none when it went through.
    """

    def __init__(self, losses: Sequence[Tensor], boundary: Boundary | None = None) -> None:
        roots = [_root(loss) for loss in losses]
        self.rest: tuple[Tensor, ...] = ()
        self._tasks: Counter[Node] = Counter()
        # Asking a node what follows it is most of the work here: it is done once.
        self._following: dict[Node, list[Edge]] = {}
        for root, _ in roots:
            self._tasks.update(_nodes_behind(root, self._following))
        self._single = len(losses) == 1
        self._boundary = boundary
        self._behind: set[Node] = set()
        if boundary is not None and (self._single or not boundary.at_feature):
            self._behind = _reaching_only(boundary.below, self._following)
        # Edges into a node that have not been passed yet.
        self._missing = Counter(child for edges in self._following.values() for child, _ in edges)
        self._open: dict[Edge, None] = dict.fromkeys(roots)
        # Nodes that some, but not all, of their gradients have reached.
        self._waiting = {root for root, _ in roots if self._missing[root]}
        self._ready: list[tuple[int, int, int, Node]] = []
        self._ticket = itertools.count()
        for root, _ in self._open:
            if not self._missing[root]:
                self._enqueue(root)

    def pieces(self) -> list[_Piece]:
        """Return the pieces, from the losses to the boundary or the leaves."""
        found: list[_Piece] = []
        piece = _Piece()
        while self._ready:
            level, _, _, node = heapq.heappop(self._ready)
            if level == _LOWER and self._cut_is_valid():
                found.append(self._close(piece))
                self.rest = self._all_leaves_but(found)
                return found if piece.nodes else found[:-1]
            shared = level > _HEAD
            if shared and not piece.shared and piece.nodes and self._cut_is_valid():
                # The heads are done: each is freed by its own task.
                found.append(self._close(piece))
                piece = _Piece()
            piece.shared = piece.shared or shared
            self._pass(node, piece)
            # A cut costs a call into the engine for every task: few, and with parameters between.
            enough = piece.nodes * _PIECES >= len(self._tasks)
            if shared and piece.leaves and enough and self._cut_is_valid():
                found.append(self._close(piece))
                piece = _Piece()
        return [*found, self._close(piece)] if piece.leaves else found

    def _all_leaves_but(self, pieces: Sequence[_Piece]) -> tuple[Tensor, ...]:
        done = {leaf for piece in pieces for leaf in piece.leaves}
        leaves = (getattr(node, "variable", None) for node in self._tasks)
        return tuple(leaf for leaf in leaves if leaf is not None and leaf not in done)

    def _cut_is_valid(self) -> bool:
        """Return whether nothing behind the open edges is also reached from before them."""
        return not self._waiting

    def _close(self, piece: _Piece) -> _Piece:
        piece.ends = list(self._open)
        return piece

    def _enqueue(self, node: Node) -> None:
        order = -node._sequence_nr() if hasattr(node, "_sequence_nr") else 0
        heapq.heappush(self._ready, (self._level(node), order, next(self._ticket), node))

    def _level(self, node: Node) -> int:
        shared = self._tasks[node] > 1
        if self._boundary is not None:
            behind = node in self._behind
            if self._boundary.at_feature:
                lower = shared or (self._single and behind)
            else:
                lower = shared and behind
            if lower:
                return _LOWER
        return _TRUNK if shared else _HEAD

    def _pass(self, node: Node, piece: _Piece) -> None:
        """Run over ``node`` and open what follows it."""
        piece.nodes += 1
        for edge in [edge for edge in self._open if edge[0] is node]:
            del self._open[edge]
        for child, index in self._following[node]:
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


def _nodes_behind(root: Node, following: dict[Node, list[Edge]]) -> set[Node]:
    """Return ``root`` and all behind it; note the edges out of nodes that are not known yet."""
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        if node not in following:
            following[node] = _edges(node)
        for child, _ in following[node]:
            if child not in seen:
                seen.add(child)
                stack.append(child)
    return seen


def _reaching_only(leaves: AbstractSet[Tensor], nodes: Mapping[Node, Sequence[Edge]]) -> set[Node]:
    """Return those of ``nodes`` (with their edges) that reach no leaf but ``leaves``."""
    before: dict[Node, list[Node]] = {}
    for node, edges in nodes.items():
        for child, _ in edges:
            before.setdefault(child, []).append(node)
    leaf_of = {node: getattr(node, "variable", None) for node in nodes}
    stack = [node for node, leaf in leaf_of.items() if leaf is not None and leaf not in leaves]
    others = set(stack)
    while stack:
        for node in before.get(stack.pop(), ()):
            if node not in others:
                others.add(node)
                stack.append(node)
    return set(nodes) - others


@functools.cache
def torch_starts_inside_graphs() -> bool:
    """Return whether ``torch.autograd.grad`` takes an edge of the graph as output."""
    leaf = torch.ones((), requires_grad=True)
    doubled = leaf * 2
    try:
        torch.autograd.grad([GradientEdge(*_root(doubled))], [leaf], [torch.ones(())])
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True
