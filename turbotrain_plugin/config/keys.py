"""How a configuration field declares its default, its explanation, its aliases and its choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, field
from typing import Any, Final, TypeVar

HELP: Final = "help"
ALIASES: Final = "aliases"
CHOICES: Final = "choices"

_T = TypeVar("_T")


def key(
    default: _T,
    help_text: str,
    *,
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
) -> _T:
    """Declare a key with a default value and the sentence that ``config explain`` prints.

    A choice that ends in ``*`` stands for everything that begins with what is before it and goes
    on.
    """
    metadata = {HELP: help_text, ALIASES: aliases, CHOICES: choices}
    declared: Any = field(default=default, metadata=metadata)
    return declared  # type: ignore[no-any-return]


def group(factory: Callable[[], _T], help_text: str, *, aliases: tuple[str, ...] = ()) -> _T:
    """Declare a nested block of keys, all at their defaults unless the YAML says otherwise."""
    metadata = {HELP: help_text, ALIASES: aliases, CHOICES: ()}
    declared: Any = field(default_factory=factory, metadata=metadata)
    return declared  # type: ignore[no-any-return]


def name_of(declared: Field[Any]) -> str:
    """Return the name of a key in YAML: an underscore behind a field keeps it off Python's words.

    OpenCOOD's ``wild_setting.async`` is the field ``async_``.
    """
    return declared.name.removesuffix("_")


def default_of(declared: Field[Any]) -> Any:  # noqa: ANN401 - any type a key may have
    """Return the default value of a declared key."""
    if declared.default is not MISSING:
        return declared.default
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return MISSING
