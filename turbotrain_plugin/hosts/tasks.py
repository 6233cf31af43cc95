"""The terms of a host's loss as tasks: the tensors of ``criterion.loss_dict``, the total left out.

HEAL keeps floats there, taken with ``.item()``. While its criterion runs, ``.item()`` returns a
float that remembers its tensor; the number is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from turbotrain_plugin.hosts.compat.base import attributes
from turbotrain_plugin.structures import UserError

_TOTALS: Final = ("total_loss", "total", "loss")
_SUM_TOLERANCE: Final = 1e-3
"""Relative; under mixed precision the host adds up in half precision."""


class _RememberedFloat(float):
    """A number and the tensor it was taken from."""

    tensor: Tensor


@contextmanager
def remembered_items() -> Iterator[None]:
    """Let ``.item()`` of tensors with a graph return floats that remember their tensor."""
    item = torch.Tensor.item

    def remember(tensor: Tensor) -> Any:  # noqa: ANN401 - bool, int or float
        value = item(tensor)
        if not isinstance(value, float) or not tensor.requires_grad:
            return value
        remembered = _RememberedFloat(value)
        remembered.tensor = tensor
        return remembered

    with attributes(torch.Tensor, {"item": remember}):
        yield


def loss_terms(loss_dict: Mapping[str, Any], total: Tensor) -> dict[str, Tensor]:
    """Return name -> scalar of the loss's terms that have a graph, the total left out.

    Args:
        loss_dict: The criterion's, after its forward pass.
        total: What the criterion returned.
    """
    terms = {}
    for name, value in loss_dict.items():
        tensor = value.tensor if isinstance(value, _RememberedFloat) else value
        scalar = isinstance(tensor, Tensor) and tensor.numel() == 1 and tensor.requires_grad
        if scalar and tensor is not total and name not in _TOTALS:
            terms[name] = tensor.reshape(())
    return terms


def chosen_tasks(
    terms: Mapping[str, Tensor], total: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tasks to balance.

    Args:
        terms: Of ``loss_terms``.
        total: What the host would differentiate.
        names: ``turbotrain.host.tasks``; empty: all terms.

    Raises:
        UserError: When a name is no term, fewer than two tasks are left, or they do not add up to
            the host's loss.
    """
    missing = [name for name in names if name not in terms]
    if missing:
        raise UserError(
            f"turbotrain.host.tasks names {', '.join(missing)}, but the terms of the host's loss "
            f"are {', '.join(terms) or 'unknown'}."
        )
    tasks = {name: terms[name] for name in names or terms}
    if len(tasks) < 2:
        raise UserError(
            f"Balancing needs two tasks, but criterion.loss_dict holds {', '.join(tasks) or 'none'}"
            " beside the total; use turbotrain.strategy: one_time for this loss."
        )
    found, expected = sum(float(task.detach()) for task in tasks.values()), float(total.detach())
    if abs(found - expected) > _SUM_TOLERANCE * max(abs(expected), 1.0):
        raise UserError(
            f"The tasks {', '.join(tasks)} add up to {found:.6g}, but the host's loss is "
            f"{expected:.6g}; choose its terms with turbotrain.host.tasks."
        )
    return tasks
