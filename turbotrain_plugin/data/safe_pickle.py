"""Read the two pickles of a V2XPnP root without ever running what they name.

A pickle is a program: it may name any importable function and call it. The loaders here resolve
only the names on a short list, each to an inert stand-in made for that one file, and refuse the
rest. Not even NumPy's own constructors are handed out, because a forged dtype state can make them
read foreign memory; the stand-ins decode the raw bytes themselves.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.files import read_bytes
from turbotrain_plugin.data.pickle_scan import check_sizes
from turbotrain_plugin.structures import UserError

__all__ = ["decode_array", "load_pickle", "numpy_names"]

_DTYPES: Final = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"}
_MAX_BYTES: Final = 512 * 2**20
"""A database of 100 scenes has about 50 MB, a map a few."""
_ARRAY_MODULES: Final = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Unpickler(pickle.Unpickler):
    """Unpickler that knows the given names only."""

    def __init__(self, stream: Any, names: Mapping[tuple[str, str], Any], path: Path) -> None:  # noqa: ANN401
        super().__init__(stream)
        self._names = names
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401
        """Return the stand-in of a listed name; refuse every other one."""
        found = self._names.get((module_name, global_name))
        if found is None:
            raise UserError(
                f"{self._path}: refused, the pickle names {module_name}.{global_name}, which has "
                "no place in this file; nothing of it was executed. Get the file from its source."
            )
        return found

    def persistent_load(self, _pid: Any) -> Any:  # noqa: ANN401
        """Refuse references to things outside the file."""
        raise UserError(f"{self._path}: refused, the pickle refers to an outside object.")


def load_pickle(path: Path, names: Mapping[tuple[str, str], Any]) -> Any:  # noqa: ANN401
    """Return the content of a pickle that may name only ``names``.

    Args:
        path: The file.
        names: (module, name) to the inert stand-in that takes its place. Make the stand-ins anew
            for every call: a hostile file can set attributes on a class it was handed.

    Raises:
        UserError: When the file cannot be read, is damaged, or names anything else.
    """
    raw = read_bytes(path, _MAX_BYTES)
    try:
        check_sizes(raw)
        return _Unpickler(io.BytesIO(raw), names, path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything from EOFError to KeyError
        raise UserError(
            f"{path}: not a readable pickle of the expected content "
            f"({type(error).__name__}: {error}). Copy the file again from its source."
        ) from error


class _Dtype:
    """Stand-in of ``numpy.dtype``: remembers the code and the byte order."""

    def __init__(self, code: object = "", *_: object) -> None:
        if not isinstance(code, str) or code.lstrip("<>=|") not in _DTYPES:
            raise ValueError(f"array type {_brief(code)} is not a plain number type")
        self.code = code.lstrip("<>=|")
        self.order = "<"

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("unknown array type state")
        self.order = "<" if state[1] in ("|", "=") else state[1]


class _Array:
    """Stand-in of an array being rebuilt: the state is checked and kept as a real array."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("unknown array state")
        _, shape, dtype, fortran, raw = state
        self.values = decode_array(shape, dtype, fortran=bool(fortran), raw=raw)


def decode_array(shape: object, dtype: object, *, fortran: bool, raw: object) -> NDArray[Any]:
    """Return the array that a pickle describes, after checking that shape, type and bytes agree.

    Args:
        shape: Expected a tuple of non-negative ints.
        dtype: Expected a stand-in dtype of ``numpy_names``.
        fortran: Whether the bytes are in column-major order.
        raw: Expected bytes.

    Raises:
        ValueError: When something is not what it should be.
    """
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise ValueError("array without plain number bytes")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"array shape {_brief(shape)} is not a tuple of sizes")
    element = np.dtype(dtype.order + dtype.code)
    if math.prod(shape) * element.itemsize != len(raw):
        raise ValueError(f"array of shape {shape} does not fit its {len(raw)} bytes")
    flat = np.frombuffer(raw, dtype=element)
    return flat.reshape(shape, order="F" if fortran else "C").astype(element.newbyteorder("="))


def _brief(value: object) -> str:
    # Values that share parts can have a text without end: only what is short is shown.
    flat = value if isinstance(value, tuple) else (value,)
    plain = len(flat) <= 8 and all(isinstance(item, (str, int, float)) for item in flat)
    return repr(value)[:80] if plain else type(value).__name__


def numpy_names() -> dict[tuple[str, str], Any]:
    """Return stand-ins for ``OrderedDict`` and for what NumPy 1 and 2 write for an array."""
    array = type("ndarray", (_Array,), {})
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): type("OrderedDict", (OrderedDict,), {}),
        ("numpy", "ndarray"): array,
        ("numpy", "dtype"): type("dtype", (_Dtype,), {}),
    }
    for module in _ARRAY_MODULES:
        names[(module, "_reconstruct")] = array
    return names
