"""The walk over a pickle's opcodes: honest ones pass, promises beyond the file do not."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbotrain_plugin.data.map_files import Lane, VectorMap, read_map, write_map
from turbotrain_plugin.data.pickle_scan import check_sizes
from turbotrain_plugin.data.safe_pickle import load_pickle
from turbotrain_plugin.data.trajectory_database import read_trajectory_database
from turbotrain_plugin.structures import UserError


class Plain:
    """Something with a state."""

    def __init__(self) -> None:
        self.x: Any = 1


HONEST: list[Any] = [
    None,
    [True, False, 0, 255, 65536, -1, 2**31, 2**70, -(2**3000), 1.5, float("nan")],
    {"a": "text", "ä": b"bytes" * 100, "b": bytearray(300), "long": "x" * 70_000},
    ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {1, 2}, frozenset({3})),
    [f"memo {i}" for i in range(1000)],
    OrderedDict({0: {7: np.arange(12.0).reshape(4, 3)}}),
    Plain(),
    "line\nand\\line",
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", HONEST, ids=range(len(HONEST)))
def test_what_python_writes_passes(value: Any, protocol: int) -> None:  # noqa: ANN401
    check_sizes(pickle.dumps(value, protocol=protocol))
    check_sizes(pickle.dumps(value, protocol=protocol) + b"anything after it")


def test_a_map_passes(tmp_path: Path) -> None:
    line = np.arange(3000.0).reshape(-1, 3)
    write_map(tmp_path / "map.pkl", VectorMap((Lane(1, 2, 1, line, line),)))
    check_sizes((tmp_path / "map.pkl").read_bytes())
    np.testing.assert_array_equal(read_map(tmp_path / "map.pkl").lanes[0].polyline, line)


LARGE = struct.pack("<I", 2**31 - 1)
HUGE = struct.pack("<Q", 2**40)


@pytest.mark.parametrize(
    "raw",
    [
        b"X" + LARGE + b"text.",
        b"T" + LARGE + b"text.",
        b"B" + LARGE + b"text.",
        b"\x8d" + HUGE + b"text.",
        b"\x8e" + HUGE + b"text.",
        b"\x96" + HUGE + b"text.",
        b"\x8b" + LARGE + b"text.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x8cXtext.",
        b"UXtext.",
        b"CXtext.",
        b"\x8aXtext.",
        b"\x95" + HUGE + b"N.",
        b"Nr" + LARGE + b".",
        b"Np99999999\n.",
        b"Np-1\n.",
        b"Np" + b"9" * 5000 + b"\n.",
    ],
)
def test_promises_beyond_the_file(raw: bytes) -> None:
    with pytest.raises(ValueError, match="it promises"):
        check_sizes(b"\x80\x02" + raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "ends before its STOP"),
        (b"\x80\x02N", "ends before its STOP"),
        (b"\x80\x02]q", "no opcode|ends before|it promises"),
        (b"\x80\x02cos\nsystem", "inside a line"),
        (b"\x80\x02Inumber", "inside a line"),
        (b"\x80\x02\xff.", "byte 2 is no opcode"),
        (b"\x80\x02X\x01", "it promises"),
        (b"\x80\x02G\x00\x00", "ends before|no opcode|promises"),
    ],
)
def test_no_opcodes(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sizes(raw)


@pytest.mark.parametrize("opcodes", [b"]X" + LARGE + b"x.", b"]r" + LARGE + b"."])
def test_memory_stays_with_the_file(tmp_path: Path, opcodes: bytes) -> None:
    """The plain unpickler reserves gigabytes for these ten bytes."""
    path = tmp_path / "forged.pkl"
    path.write_bytes(b"\x80\x02" + opcodes)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"forged\.pkl: not a readable pickle .* promises"):
            read_map(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_long_runs_need_little_memory() -> None:
    raw = b"\x80\x02" + b"K\x01" * 2_000_000 + b"."
    tracemalloc.start()
    try:
        check_sizes(raw)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(20)
def test_texts_of_shared_parts_are_not_spelt_out(tmp_path: Path) -> None:
    """Fifty doublings of a tuple are 52 bytes, and a message of a petabyte if it were shown."""
    doubled = b"K\x01" + b"2\x86" * 50
    path = tmp_path / "doubled.pkl"
    path.write_bytes(b"\x80\x02" + doubled + b"Q.")
    with pytest.raises(UserError, match="refers to an outside object"):
        load_pickle(path, {})
    path.write_bytes(b"\x80\x02cnumpy\ndtype\n" + doubled + b"\x85R.")
    with pytest.raises(UserError, match="array type tuple is not a plain number type"):
        read_trajectory_database(path)
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    state = b"(K\x01" + doubled + b"cnumpy\ndtype\n\x8c\x02f8\x85RI00\nC\x00t"
    path.write_bytes(b"\x80\x04" + array + state + b"b.")
    with pytest.raises(UserError, match="array shape tuple is not a tuple of sizes"):
        read_trajectory_database(path)
