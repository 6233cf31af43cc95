"""Which leaves of the autograd graph a loss reaches, found without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor
from torch.autograd.graph import Node

from turbotrain_plugin.structures import UserError

__all__ = ["Leaves", "leaves_of_tasks", "reached_by_several"]

Leaves = dict[str, tuple[Tensor, ...]]
"""Task -> the leaf tensors (parameters) its loss depends on, each once."""

_OPAQUE: Final = {
    "CheckpointFunctionBackward": (
        "Gradient balancing cannot see through torch.utils.checkpoint with use_reentrant=True, "
        "which hides parameters from the autograd graph; checkpoint with use_reentrant=False."
    ),
    "_DDPSinkBackward": (
        "Gradient balancing cannot see through DistributedDataParallel with "
        "find_unused_parameters=True or static_graph=True, which ties the outputs of all tasks "
        "together; train the bare module, whose gradients the balancer averages over the processes "
        "itself."
    ),
}
"""Name of a node -> why the graph does not show which loss reaches what behind it."""


def leaves_of_tasks(losses: Mapping[str, Tensor]) -> Leaves:
    """Return the leaves each loss reaches.

    Frozen parameters are not part of a graph, so they never appear.

    Args:
        losses: Task -> scalar that requires grad.

    Raises:
        UserError: If a part of the model hides its parameters from the graph.
    """
    return {task: _leaves_of(loss) for task, loss in losses.items()}


def reached_by_several(leaves: Leaves) -> set[Tensor]:
    """Return the leaves that two or more tasks reach."""
    once: set[Tensor] = set()
    several: set[Tensor] = set()
    for reached in leaves.values():
        several.update(leaf for leaf in reached if leaf in once)
        once.update(reached)
    return several


def _leaves_of(loss: Tensor) -> tuple[Tensor, ...]:
    """Walk the graph backwards from one loss, every node once."""
    if loss.grad_fn is None:
        return (loss,)
    leaves: list[Tensor] = []
    seen: set[Node] = {loss.grad_fn}
    stack: list[Node] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves.append(leaf)
        elif type(node).__name__ in _OPAQUE:
            raise UserError(_OPAQUE[type(node).__name__])
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
    return tuple(leaves)
