"""Names of parameters, and which of them a name pattern means."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor
from torch.optim import Optimizer

from turbotrain_plugin.structures import UserError

__all__ = ["match_patterns", "parameter_names", "summarise"]


def parameter_names(
    optimizer: Optimizer, named_parameters: Iterable[tuple[str, Tensor]] | None
) -> dict[Tensor, str]:
    """Return a name for every parameter of ``optimizer``, in its order.

    Args:
        optimizer: Any torch optimiser.
        named_parameters: As of ``module.named_parameters()``; without it (or for a parameter it
            lacks) the name is the place in the optimiser, ``group0.7``.
    """
    known = {parameter: name for name, parameter in named_parameters or ()}
    return {
        parameter: known.get(parameter, f"group{group_index}.{index}")
        for group_index, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
    }


def match_patterns(
    patterns: Sequence[str], names: Mapping[Tensor, str], meaning: str = "shared parameters"
) -> set[Tensor]:
    """Return the parameters meant by ``patterns``.

    A pattern is a shell pattern over the whole name (``encoder.*``, ``*.weight``) or the name of a
    module, which means everything inside it (``encoder``).

    Args:
        patterns: At least one pattern.
        names: Parameter -> name.
        meaning: What the patterns stand for, for the message.

    Raises:
        UserError: If a pattern means no parameter.
    """
    found: set[Tensor] = set()
    for pattern in patterns:
        matched = {
            parameter
            for parameter, name in names.items()
            if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        }
        if not matched:
            raise UserError(_no_match(pattern, list(names.values()), meaning))
        found |= matched
    return found


def _no_match(pattern: str, names: Sequence[str], meaning: str) -> str:
    """Return the sentence about a pattern without a parameter, with what may have been meant."""
    prefixes = {name[:end] for name in names for end in _dots(name)}
    close = difflib.get_close_matches(pattern, sorted({*names, *prefixes}), n=3)
    candidates = close or sorted({name.partition(".")[0] for name in names})
    return (
        f"The pattern {pattern!r} of the {meaning} matches no parameter; "
        f"write a name, a module or a shell pattern, for instance {', '.join(candidates[:6])}."
    )


def _dots(name: str) -> list[int]:
    return [index for index, letter in enumerate(name) if letter == "."]


def summarise(names: Iterable[str]) -> str:
    """Return ``module (count)`` for the outermost modules of ``names``, in their order."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in counts.items()) or "none"
