"""Located YAML values to frozen dataclasses, with errors that name file, line, key and remedy."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

from turbotrain_plugin.config.keys import ALIASES, CHOICES, name_of
from turbotrain_plugin.config.yaml_tree import Located
from turbotrain_plugin.errors import UserError

_T = TypeVar("_T")

_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def build(cls: type[_T], tree: Located, path: str = "") -> _T:
    """Build the dataclass ``cls`` from a located mapping.

    Args:
        cls: A dataclass whose fields were declared with ``key`` or ``group``.
        tree: The mapping; an empty list counts as an empty mapping (OpenCOOD writes ``args: []``).
        path: Dotted name of the mapping, for messages.

    Raises:
        UserError: On unknown keys (with the nearest valid name), wrong types or values.
    """
    if tree.value in (None, []):
        tree = Located({}, tree.source, tree.line)
    if not isinstance(tree.value, dict):
        raise UserError(
            f"{tree.place}: {path or 'the file'} must be a mapping. Found {tree.plain()!r}."
        )
    declared = {name_of(f): f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    by_alias = {f.name: n for n, f in declared.items() if f.name != n}
    by_alias |= {alias: n for n, f in declared.items() for alias in f.metadata.get(ALIASES, ())}
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, item in tree.value.items():
        target = by_alias.get(name, name)
        where = f"{path}.{name}" if path else name
        if target not in declared:
            raise UserError(_unknown(item, where, name, [*declared, *by_alias]))
        if seen.get(target) == item.source:
            raise UserError(f"{item.place}: {where} and its alias are both given.")
        seen[target] = item.source  # from another file or an override: the later one rules
        field = declared[target].name
        values[field] = _convert(hints[field], item, where)
        _check_choice(declared[target], values[field], item, where)
    return cls(**values)


def _unknown(item: Located, where: str, name: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Valid keys: {', '.join(valid)}."
    return f"{item.place}: unknown key {where!r}.{hint}"


def _check_choice(
    declared: dataclasses.Field[Any], value: object, item: Located, where: str
) -> None:
    choices: tuple[str, ...] = declared.metadata.get(CHOICES, ())
    if choices and not any(_is_choice(value, choice) for choice in choices):
        nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        listed = ", ".join(repr(choice) for choice in choices)
        raise UserError(f"{item.place}: {where} must be one of {listed}. Found {value!r}.{hint}")


def _is_choice(value: object, choice: str) -> bool:
    if not choice.endswith("*"):
        return value == choice
    start = choice[:-1]
    return isinstance(value, str) and value.startswith(start) and value != start


def _convert(hint: Any, item: Located, where: str) -> Any:  # noqa: ANN401 - by annotation
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, item, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if item.value is None or item.value == []:
            return None
        inner = [option for option in typing.get_args(hint) if option is not type(None)]
        return _convert(inner[0], item, where)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), item, where)
    return _convert_scalar(hint, item, where)


def _convert_tuple(options: tuple[Any, ...], item: Located, where: str) -> tuple[Any, ...]:
    # A single value stands for a list of one, as in OpenCOOD's `root_dir` and `step_size`.
    items = item.value if isinstance(item.value, list) else [item]
    if item.value is None or item.value == "":
        items = []
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(
            _convert(options[0], entry, f"{where}[{index}]") for index, entry in enumerate(items)
        )
    if len(items) != len(options):
        raise UserError(
            f"{item.place}: {where} must hold {len(options)} values. Found {len(items)}."
        )
    return tuple(
        _convert(option, entry, f"{where}[{index}]")
        for index, (option, entry) in enumerate(zip(options, items, strict=True))
    )


def _convert_scalar(hint: type, item: Located, where: str) -> Any:  # noqa: ANN401 - by annotation
    value = item.value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is str and value is None:
        return ""
    # bool is a subclass of int in Python, but `epoches: true` is a mistake.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{item.place}: {where} must be {_WORDS[hint]}. Found {item.plain()!r}.")
    return value
