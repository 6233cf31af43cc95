"""YAML text to a tree of plain values that remember their file and line; nothing is executed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from turbotrain_plugin.errors import UserError

_MAX_NODES: Final = 100_000
"""Nodes after expanding aliases; a hypes file has hundreds, a YAML bomb millions."""

_FLOAT: Final = re.compile(r"[-+]?(\d[\d_]*)?\.?\d[\d_]*([eE][-+]?\d+)?\.?|[-+]?\d[\d_]*\.")
_PLAIN_TAGS: Final = {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")
}

Scalar = bool | int | float | str | None
Value: TypeAlias = "Scalar | list[Located] | dict[str, Located]"


@dataclass(frozen=True, slots=True)
class Located:
    """A value and where it was written.

    Attributes:
        value: Scalar, list or mapping of further located values.
        source: File name, or the override that gave the value.
        line: Line number from 1; 0 for overrides.
    """

    value: Value
    source: str
    line: int

    @property
    def place(self) -> str:
        """Return ``file:line`` for messages."""
        return f"{self.source}:{self.line}" if self.line else self.source

    def plain(self) -> Any:  # noqa: ANN401 - JSON-like
        """Return the value without positions."""
        if isinstance(self.value, dict):
            return {name: item.plain() for name, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class _Loader(yaml.SafeLoader):
    """Safe loader whose floats include ``1e-4``; a private subclass, nothing global is patched."""


class _Reader:
    """Turn composed nodes into located values, following anchors and merge keys."""

    def __init__(self, source: str, loader: _Loader) -> None:
        self._source = source
        self._loader = loader
        self._count = 0

    def read(self, node: yaml.Node) -> Located:
        """Return the located value of a node.

        Raises:
            UserError: On python tags, non-text keys, repeated keys or absurd expansion.
        """
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > _MAX_NODES:
            raise UserError(
                f"{self._source}: more than {_MAX_NODES} values after expanding aliases."
            )
        if node.tag not in _PLAIN_TAGS:
            raise UserError(
                f"{self._source}:{line}: the tag {node.tag.replace('tag:yaml.org,2002:', '!!')} is "
                "not allowed; only plain values are read and nothing is executed."
            )
        if isinstance(node, yaml.MappingNode):
            return Located(self._mapping(node), self._source, line)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.read(item) for item in node.value], self._source, line)
        return Located(self._scalar(node), self._source, line)

    def _scalar(self, node: yaml.Node) -> Scalar:
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and node.tag.endswith(":str") and _FLOAT.fullmatch(node.value):
            return float(node.value.replace("_", ""))
        value: Scalar = self._loader.construct_object(node)
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        merged: dict[str, Located] = {}
        own: dict[str, Located] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged = {**self._merge(value_node), **merged}
                continue
            name = str(key_node.value)
            if name in own:
                line = key_node.start_mark.line + 1
                raise UserError(
                    f"{self._source}:{line}: the key {name!r} is written twice "
                    f"(first in line {own[name].line})."
                )
            own[name] = self.read(value_node)
        return {**merged, **own}

    def _merge(self, node: yaml.Node) -> dict[str, Located]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Located] = {}
        for item in reversed(nodes):
            if not isinstance(item, yaml.MappingNode):
                line = node.start_mark.line + 1
                raise UserError(f"{self._source}:{line}: '<<' must name a mapping.")
            merged.update(self._mapping(item))
        return merged


def parse_text(text: str, source: str) -> Located:
    """Parse YAML text.

    Args:
        text: The YAML.
        source: What messages call it.

    Raises:
        UserError: With file and line when the text is no plain YAML.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)  # refuses characters that YAML does not know
        node = loader.get_single_node()
        if node is None:
            return Located({}, source, 1)
        return _Reader(source, loader).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 0
        raise UserError(f"{source}:{line}: not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        # KeyError: `!!bool maybe`
        reason = " ".join(str(error).split())
        raise UserError(f"{source}: not valid YAML: {reason}.") from error
    finally:
        if loader is not None:
            loader.dispose()


def read_tree(path: Path) -> Located:
    """Read a YAML file.

    Raises:
        UserError: When the file is missing, not text, or not plain YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    return parse_text(text, str(path))


def merge(base: Located, over: Located) -> Located:
    """Return ``base`` with ``over`` on top; mappings are merged, anything else is replaced.

    What ``over`` gives comes last, so that of a key and its alias the later one rules.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for name, item in over.value.items():
        merged[name] = merge(merged.pop(name), item) if name in merged else item
    return Located(merged, over.source, over.line)
