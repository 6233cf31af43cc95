"""What a shim is: one fault of a modern stack under an old host, and how it is put right."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

_ABSENT: Final = object()


@dataclass(frozen=True, slots=True)
class Shim:
    """One mended fault.

    Attributes:
        name: ``<what>.<part>``; unique.
        reason: A sentence: what fails without it, and what stands in.
        needed: Whether this machine needs it.
        applied: Context in which it is in force; everything is as before afterwards.
    """

    name: str
    reason: str
    needed: Callable[[], bool]
    applied: Callable[[], AbstractContextManager[None]]


@contextmanager
def attributes(owner: Any, values: dict[str, object]) -> Iterator[None]:  # noqa: ANN401 - a module
    """Set attributes of a module or class, and put back what was there."""
    before = {name: vars(owner).get(name, _ABSENT) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@contextmanager
def all_of(contexts: list[AbstractContextManager[None]]) -> Iterator[None]:
    """Enter several contexts as one."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def installed(package: str) -> bool:
    """Return whether a top-level package can be found, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a stand-in without a specification is in its place
        return False
