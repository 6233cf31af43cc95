"""What the balancer and its methods refuse to start with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from turbotrain_plugin.structures import UserError

__all__ = ["check_argument", "check_losses"]


def check_argument(fits: bool, method: str, name: str, wanted: str, found: object) -> None:
    """Raise UserError unless an argument of a method fits.

    Args:
        fits: Whether it does.
        method: Name of the method in ``BALANCERS``.
        name: Argument.
        wanted: What it should be, after the word "needs".
        found: Its value.
    """
    if not fits:
        raise UserError(f"Balance method {method!r} needs {name} {wanted}. Found {found!r}.")


def check_losses(losses: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless there are losses and each is a scalar tensor."""
    if not losses:
        raise ValueError("Parameter `losses` should name at least one loss. Found none.")
    for task, loss in losses.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"Parameter `losses` should hold scalar tensors. Found {found} for {task!r}."
            )
