"""Which module of a model a parameter counts to, for figures by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from turbotrain_plugin.balancing.parameters import match_patterns

__all__ = ["modules_of"]

_WRAPPERS: Final = frozenset({"module", "_orig_mod"})
"""First parts of names that say how a model is wrapped, not what it is made of."""


def modules_of(
    names: Mapping[Tensor, str], given: Mapping[str, Sequence[str]]
) -> dict[Tensor, str]:
    """Return the module of every parameter: the first part of its name unless one is given.

    Args:
        names: Parameter -> name.
        given: Module -> name patterns, see :func:`match_patterns`; the first that matches counts.

    Raises:
        UserError: If a pattern means no parameter.
    """
    found = {parameter: _first_part(name) for parameter, name in names.items()}
    for module, patterns in reversed(list(given.items())):
        for parameter in match_patterns(patterns, names, "modules of the figures"):
            found[parameter] = module
    return found


def _first_part(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    return parts[0]
