"""Point cloud files of PCL (``.pcd``), without PCL or Open3D: ascii, binary, binary_compressed.

OPV2V, V2XSet and V2V4Real keep the intensity in the first colour channel: ``rgb`` is 0x00RRGGBB in
the bits of a float32 or uint32, and intensity = red / 255. A field ``intensity`` is taken as it is.
The header is believed only as far as the file has bytes for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.files import finite_points, read_bytes
from turbotrain_plugin.data.formats.lzf import MAX_RATIO, compress, decompress
from turbotrain_plugin.structures import UserError

__all__ = ["ENCODINGS", "pcd_bytes", "read_pcd"]

ENCODINGS: Final = ("ascii", "binary", "binary_compressed")

_MAX_HEADER: Final = 8192
_MAX_FIELDS: Final = 64
_MAX_COUNT: Final = 4096
_MAX_TOKEN: Final = 64
_KEYS: Final = (
    *("VERSION", "FIELDS", "SIZE", "TYPE", "COUNT", "WIDTH", "HEIGHT", "VIEWPOINT", "POINTS"),
    "DATA",
)
_OPTIONAL: Final = {"VERSION", "COUNT", "VIEWPOINT"}
_TYPES: Final = {
    **{f"I{size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"F{size}": f"<f{size}" for size in (4, 8)},
}


@dataclass(frozen=True, slots=True)
class _Field:
    """A column: name, element type, elements per point, and bytes before it in a point."""

    name: str
    dtype: np.dtype[Any]
    count: int
    start: int

    @property
    def end(self) -> int:
        """Return the bytes of a point up to the end of this field."""
        return self.start + self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Header:
    fields: tuple[_Field, ...]
    points: int
    encoding: str
    size: int
    """Bytes of the header itself."""

    @property
    def point_bytes(self) -> int:
        return self.fields[-1].end

    def field(self, name: str) -> _Field | None:
        return next((field for field in self.fields if field.name == name), None)


def read_pcd(path: Path) -> NDArray[np.float32]:
    """Return (P, 4) x, y, z, intensity; rows with a non-finite position dropped.

    Bytes beyond what the header promises are passed over, as PCL and Open3D do. Without colour or
    intensity the last column is 0.

    Raises:
        UserError: When the file is missing, damaged, or smaller than its header promises.
    """
    raw = read_bytes(path)
    try:
        header = _parse_header(raw)
        columns = _columns(header, raw[header.size :])
    except ValueError as error:
        raise UserError(
            f"{path}: not a readable point cloud, {error}. Copy the file again from its source."
        ) from error
    # A cast of NaN to a float is silent; one of 1e300 need not be announced, the row is dropped.
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.stack([column.astype(np.float32) for column in columns], axis=-1)
    return finite_points(points)


# ------------------------------------------------------------------------------------------- header


def _parse_header(raw: bytes) -> _Header:
    entries, size = _header_lines(raw)
    missing = [key for key in _KEYS if key not in entries and key not in _OPTIONAL]
    if missing:
        raise ValueError(f"its header has no {', '.join(missing)}")
    fields = _fields(entries)
    names = [field.name for field in fields if field.name != "_"]
    if len(set(names)) != len(names):
        raise ValueError("its header names a field twice")
    for axis in "xyz":
        if next((field.count for field in fields if field.name == axis), 0) != 1:
            raise ValueError(f"its header has no field {axis} of one number")
    width, height, points = (_whole(entries[key], key) for key in ("WIDTH", "HEIGHT", "POINTS"))
    if width * height != points:
        raise ValueError(f"its header promises {points} POINTS in {width} x {height}")
    (encoding,) = entries["DATA"] if len(entries["DATA"]) == 1 else ("",)
    if encoding not in ENCODINGS:
        raise ValueError(f"DATA is none of {', '.join(ENCODINGS)}")
    return _Header(fields, points, encoding, size)


def _header_lines(raw: bytes) -> tuple[dict[str, list[str]], int]:
    """Return key to words up to DATA, and the bytes that took."""
    entries: dict[str, list[str]] = {}
    at = 0
    while "DATA" not in entries:
        end = raw.find(b"\n", at, _MAX_HEADER)
        if end < 0:
            raise ValueError(f"its first {min(len(raw), _MAX_HEADER)} bytes hold no PCD header")
        try:
            words = raw[at:end].decode("ascii").split()
        except UnicodeDecodeError:
            raise ValueError("its header is no plain text") from None
        at = end + 1
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _KEYS or words[0] in entries:
            raise ValueError(f"its header has an unexpected line {words[0][:20]!r}")
        entries[words[0]] = words[1:]
    return entries, at


def _fields(entries: Mapping[str, Sequence[str]]) -> tuple[_Field, ...]:
    names, sizes, types = entries["FIELDS"], entries["SIZE"], entries["TYPE"]
    counts = entries.get("COUNT", ["1"] * len(names))
    if not len(names) == len(sizes) == len(types) == len(counts) or len(names) > _MAX_FIELDS:
        raise ValueError("FIELDS, SIZE, TYPE and COUNT of its header have different lengths")
    fields: list[_Field] = []
    for name, size, kind, count in zip(names, sizes, types, counts, strict=True):
        code = _TYPES.get(f"{kind}{size}")
        if code is None:
            raise ValueError(f"field {name[:20]!r} has the unknown type {kind[:5]} {size[:5]}")
        number = _whole([count], "COUNT")
        if not 1 <= number <= _MAX_COUNT:
            raise ValueError(f"field {name[:20]!r} has {number} numbers per point")
        start = fields[-1].end if fields else 0
        fields.append(_Field(name, np.dtype(code), number, start))
    return tuple(fields)


def _whole(words: Sequence[str], key: str) -> int:
    if len(words) != 1 or not words[0].isdecimal() or len(words[0]) > 12:
        raise ValueError(f"{key} of its header is not one whole number")
    return int(words[0])


# ------------------------------------------------------------------------------------------- points


def _columns(header: _Header, body: bytes) -> list[NDArray[Any]]:
    """Return x, y, z and intensity, (P,) each."""
    if header.encoding == "ascii":
        read = _ascii_columns(header, body)
    else:
        read = _binary_columns(header, body)
    intensity = header.field("intensity")
    if intensity is not None and intensity.count == 1:
        last = read[intensity.name]
    else:
        last = _red(header, read)
    return [*(read[axis] for axis in "xyz"), last]


def _red(header: _Header, read: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the red channel as 0 ... 1; zeros without colours."""
    colour = header.field("rgb") or header.field("rgba")
    if colour is None:
        return np.zeros(header.points)
    if colour.dtype.itemsize != 4 or colour.count != 1:
        raise ValueError(f"field {colour.name} is not one number of 4 bytes")
    bits = read[colour.name].view("<u4")
    red: NDArray[Any] = (bits >> 16 & 255) / 255.0
    return red


def _binary_columns(header: _Header, body: bytes) -> dict[str, NDArray[Any]]:
    promised = header.points * header.point_bytes
    columnar = header.encoding == "binary_compressed"
    if columnar:
        body = _unpacked(body, promised)
    if len(body) < promised:
        raise ValueError(
            f"its header promises {header.points} points, {promised} bytes, and it holds "
            f"{len(body)}: truncated"
        )
    columns: dict[str, NDArray[Any]] = {}
    for field in header.fields:
        if not header.points:
            columns[field.name] = np.empty(0, field.dtype)
        elif field.count == 1:
            # Compressed clouds hold one column after the other, plain ones point after point.
            step = field.dtype.itemsize if columnar else header.point_bytes
            start = field.start * (header.points if columnar else 1)
            columns[field.name] = np.ndarray(
                (header.points,), field.dtype, body, offset=start, strides=(step,)
            ).copy()
    return columns


def _unpacked(body: bytes, promised: int) -> bytes:
    if len(body) < 8:
        raise ValueError("it ends before the compressed points: truncated")
    packed, unpacked = struct.unpack_from("<II", body)
    if packed > len(body) - 8:
        raise ValueError(
            f"its header promises {packed} compressed bytes, and it holds {len(body) - 8}: "
            "truncated"
        )
    if unpacked != promised or unpacked > MAX_RATIO * packed:
        raise ValueError(f"{packed} compressed bytes cannot be the {promised} of its points")
    try:
        return decompress(body[8 : 8 + packed], unpacked)
    except ValueError as error:
        raise ValueError(f"its compressed points are damaged: {error}") from error


def _ascii_columns(header: _Header, body: bytes) -> dict[str, NDArray[Any]]:
    per_point = sum(field.count for field in header.fields)
    # Every number takes a digit and a blank: the list below is no longer than the file allows.
    tokens = body.split(None, header.points * per_point)[: header.points * per_point]
    if len(tokens) < header.points * per_point:
        raise ValueError(
            f"its header promises {header.points} points of {per_point} numbers, and it holds "
            f"{len(tokens)} numbers: truncated"
        )
    if max(map(len, tokens), default=0) > _MAX_TOKEN:
        raise ValueError(f"it holds a number of more than {_MAX_TOKEN} characters")
    columns: dict[str, NDArray[Any]] = {}
    place = 0
    for field in header.fields:
        if field.count == 1:
            columns[field.name] = _typed([float(t) for t in tokens[place::per_point]], field)
        place += field.count
    return columns


def _typed(values: list[float], field: _Field) -> NDArray[Any]:
    """Return text numbers in the type of their field, so that colours keep their bits."""
    if field.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.array(values).astype(field.dtype)
    limits = np.iinfo(field.dtype)
    if not all(limits.min <= value <= limits.max and value % 1 == 0 for value in values):
        raise ValueError(f"field {field.name[:20]!r} holds a number that is none of its type")
    return np.array([int(value) for value in values], dtype=field.dtype)


# ------------------------------------------------------------------------------------------ writing


def pcd_bytes(
    points: NDArray[np.float32], *, encoding: str = "binary", colour: bool = True
) -> bytes:
    """Return a point cloud as a file.

    Args:
        points: (P, 4) x, y, z, intensity in 0 ... 1 where ``colour`` is set.
        encoding: One of ``ENCODINGS``.
        colour: Keep the intensity as the hosts' data sets do, rounded to 8 bit in all three
            channels of ``rgb``; else as a float field ``intensity``.

    Raises:
        ValueError: For an unknown encoding.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"`encoding` must be one of {', '.join(ENCODINGS)}. Found {encoding!r}.")
    table = np.ascontiguousarray(points, dtype="<f4").copy()
    if colour:
        level = np.rint(np.clip(table[:, 3], 0.0, 1.0) * 255).astype("<u4")
        table[:, 3] = (level << 16 | level << 8 | level).view("<f4")
    last = "rgb" if colour else "intensity"
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\n"
        f"FIELDS x y z {last}\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\n"
        f"WIDTH {len(table)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(table)}\n"
        f"DATA {encoding}\n"
    ).encode("ascii")
    if encoding == "binary":
        return header + table.tobytes()
    if encoding == "ascii":
        return header + b"".join(_ascii_line(row) for row in table.tolist())
    columns = table.T.tobytes()
    packed = compress(columns)
    return header + struct.pack("<II", len(packed), len(columns)) + packed


def _ascii_line(row: list[float]) -> bytes:
    # Nine digits tell any two float32 apart, the tiny ones that colours look like included.
    return (" ".join("nan" if math.isnan(v) else f"{v:.9g}" for v in row) + "\n").encode("ascii")
