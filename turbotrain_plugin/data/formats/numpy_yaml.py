"""NumPy values in YAML, as Python's full dumper writes them, read as plain lists and numbers.

V2V4Real's files hold tags such as ``!!python/object/apply:numpy.core.multiarray._reconstruct``,
which name functions to be called. Here each of a few tags has a constructor of ours that decodes
the bytes beside it; no name is looked up and nothing is called. Every other tag is refused.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Final

import numpy as np
import yaml

from turbotrain_plugin.data.formats.yaml_text import LabelLoader

__all__ = ["NumpyLabelLoader"]

_PYTHON: Final = "tag:yaml.org,2002:python/"
_ELEMENTS: Final = {"f4", "f8", "i4", "i8"}
_ORDERS: Final = ("<", "=", "|")
_MAX_ITEMS: Final = 4096
"""A pose has 16 numbers; nothing in a label file is larger by much."""


class _Element:
    """Stand-in of ``numpy.dtype``: a little-endian number type."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(f"<{code}")


class NumpyLabelLoader(LabelLoader):
    """The loader of label files, with constructors for NumPy numbers and arrays."""

    # Every number refers to the type of the first one by an alias.
    max_aliases: ClassVar[int] = 5000


def _refuse(node: yaml.Node, why: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


def _call(loader: LabelLoader, node: yaml.Node) -> tuple[list[Any], Any]:
    """Return arguments and state of a call tag: a list, or a mapping of ``args`` and ``state``."""
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True), None
    if isinstance(node, yaml.MappingNode):
        content = loader.construct_mapping(node, deep=True)
        args = content.pop("args", [])
        state = content.pop("state", None)
        if not content and isinstance(args, list):
            return args, state
    raise _refuse(node, "a NumPy value must have args and state only")


def _list(loader: LabelLoader, node: yaml.Node) -> list[Any]:
    # A list, not a tuple: nested tuples as keys of a mapping cost time without bound to hash.
    if not isinstance(node, yaml.SequenceNode):
        raise _refuse(node, "a tuple must be a sequence")
    return loader.construct_sequence(node, deep=True)


def _nothing(loader: LabelLoader, node: yaml.Node) -> None:  # noqa: ARG001 - PyYAML's signature
    return None


def _element(loader: LabelLoader, node: yaml.Node) -> _Element:
    args, state = _call(loader, node)
    code = args[0].lstrip("<=|") if args and isinstance(args[0], str) else ""
    order = state[1] if isinstance(state, list) and len(state) > 1 else "<"
    if code not in _ELEMENTS or order not in _ORDERS or args[0][0] == ">":
        raise _refuse(node, f"a NumPy type must be one of {', '.join(sorted(_ELEMENTS))}")
    return _Element(code)


def _scalar(loader: LabelLoader, node: yaml.Node) -> float | int:
    args, state = _call(loader, node)
    if len(args) != 2 or state is not None or not isinstance(args[0], _Element):
        raise _refuse(node, "a NumPy number must have a type and bytes")
    return _decoded(node, args[0], args[1], [], order="C")  # type: ignore[no-any-return]


def _array(loader: LabelLoader, node: yaml.Node) -> list[Any]:
    _, state = _call(loader, node)
    if not isinstance(state, list) or len(state) != 5 or not isinstance(state[2], _Element):
        raise _refuse(node, "a NumPy array must have a shape, a type and bytes")
    _, shape, element, fortran, raw = state
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4:
        raise _refuse(node, "a NumPy array must have 1 to 4 dimensions")
    if not all(type(size) is int and 0 < size <= _MAX_ITEMS for size in shape):
        raise _refuse(node, "the sizes of a NumPy array must be whole numbers above 0")
    order = "F" if fortran is True else "C"
    return _decoded(node, element, raw, shape, order=order)  # type: ignore[no-any-return]


def _decoded(node: yaml.Node, element: _Element, raw: object, shape: list[int], order: str) -> Any:  # noqa: ANN401
    """Return the numbers that bytes stand for, as nested lists of ``shape``."""
    count = math.prod(shape)
    if count > _MAX_ITEMS:
        raise _refuse(node, f"a NumPy array must have at most {_MAX_ITEMS} numbers")
    if not isinstance(raw, bytes) or len(raw) != count * element.dtype.itemsize:
        raise _refuse(node, f"a NumPy value of {count} numbers does not fit its bytes")
    values = np.frombuffer(raw, dtype=element.dtype)
    return values.reshape(shape, order="F" if order == "F" else "C").tolist()


NumpyLabelLoader.add_constructor(f"{_PYTHON}tuple", _list)
NumpyLabelLoader.add_constructor(f"{_PYTHON}name:numpy.ndarray", _nothing)
NumpyLabelLoader.add_constructor(f"{_PYTHON}object/apply:numpy.dtype", _element)
for _core in ("numpy.core", "numpy._core"):
    NumpyLabelLoader.add_constructor(f"{_PYTHON}object/apply:{_core}.multiarray.scalar", _scalar)
    NumpyLabelLoader.add_constructor(
        f"{_PYTHON}object/apply:{_core}.multiarray._reconstruct", _array
    )
