"""A method by its name, with arguments by theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from turbotrain_plugin.balancing.base import StepBalancer
from turbotrain_plugin.structures import UserError

__all__ = ["TORCHJD_PREFIX", "check_arguments", "method_named"]

TORCHJD_PREFIX: Final = "torchjd:"
"""What comes before the name of a TorchJD weighting."""


def method_named(name: str, args: Mapping[str, Any]) -> StepBalancer:
    """Return the method called ``name`` in the room's table, or the TorchJD weighting.

    Args:
        name: A key of ``BALANCERS``, or ``torchjd:<Name>`` such as ``torchjd:UPGrad``.
        args: Argument of the method -> value.

    Raises:
        UserError: If there is no such method, or it does not take these arguments.
    """
    from turbotrain_plugin.balancing import BALANCERS  # the table imports this module
    from turbotrain_plugin.balancing.torchjd_weighting import TorchJDWeighting

    if name.startswith(TORCHJD_PREFIX):
        return TorchJDWeighting(name.removeprefix(TORCHJD_PREFIX), **args)
    if name not in BALANCERS:
        raise UserError(
            f"There is no balance method {name!r}; choose one of {', '.join(BALANCERS)}, or "
            f"{TORCHJD_PREFIX}<Name> for a weighting of TorchJD."
        )
    method = BALANCERS[name]
    check_arguments(f"Balance method {name!r}", method, args)
    return method(**args)


def check_arguments(what: str, make: Callable[..., object], args: Mapping[str, Any]) -> None:
    """Raise UserError unless ``make(**args)`` fits its signature.

    Args:
        what: Who takes the arguments, to begin a sentence with.
        make: A class or function.
        args: Argument -> value.
    """
    taken = inspect.signature(make).parameters
    needed = [name for name, one in taken.items() if one.default is inspect.Parameter.empty]
    if set(needed) <= set(args) <= set(taken):
        return
    takes = ", ".join(f"{name} (needed)" if name in needed else name for name in taken)
    raise UserError(
        f"{what} takes {takes or 'no argument'}. Found {', '.join(args) or 'no argument'}."
    )
