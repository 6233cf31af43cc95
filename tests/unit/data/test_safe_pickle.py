"""Hostile and damaged pickles are refused before anything in them runs; honest ones are read."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data.safe_pickle import numpy_names
from turbotrain_plugin.data.trajectory_database import read_trajectory_database
from turbotrain_plugin.data.vector_map import read_map
from turbotrain_plugin.structures import UserError

Reader = Callable[[Path], object]
READERS: list[Reader] = [read_map, read_trajectory_database]


class Payload:
    """Unpickling this the ordinary way runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.fixture
def trap(tmp_path: Path) -> tuple[Payload, Path]:
    proof = tmp_path / "executed"
    return Payload(f"touch {proof}"), proof


def database(frames: int = 4) -> OrderedDict[int, dict[int, Any]]:
    track = np.arange(frames * 4, dtype=np.float64).reshape(frames, 4)
    mask = np.array([True] * (frames - 1) + [False])
    return OrderedDict({0: {7: {"trajectory": track, "trajectory_mask": mask}}, 1: {}})


def write(path: Path, content: object, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("protocol", range(6))
def test_payload_is_refused_and_not_executed(
    tmp_path: Path, trap: tuple[Payload, Path], read: Reader, protocol: int
) -> None:
    payload, proof = trap
    path = write(tmp_path / "evil.pkl", payload, protocol)
    with pytest.raises(UserError, match=r"evil\.pkl: refused, the pickle names \w+\.system"):
        read(path)
    assert not proof.exists()
    # The trap is a real one: the ordinary loader springs it.
    pickle.loads(path.read_bytes())
    assert proof.exists()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [{0: {7: {"trajectory": None}}}, OrderedDict(a=1)])
def test_payload_inside_honest_content(
    tmp_path: Path, trap: tuple[Payload, Path], read: Reader, content: dict[Any, Any]
) -> None:
    payload, proof = trap
    content["late"] = payload
    with pytest.raises(UserError, match="refused"):
        read(write(tmp_path / "evil.pkl", content, 3))
    assert not proof.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(V1+1\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"cturbotrain_plugin.structures\nUserError\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\nfrombuffer\n.",
        b"ccollections\nOrderedDict.__init__.__globals__\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x08__dict__\x93.",
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_names_off_the_list(tmp_path: Path, opcodes: bytes, read: Reader) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(opcodes)
    with pytest.raises(UserError, match="refused, the pickle names"):
        read(path)


def test_extension_codes_and_persistent_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02\x82\x01.")
    with pytest.raises(UserError, match="not a readable pickle"):
        read_map(path)
    path.write_bytes(b"Phttp://example.org\n.")
    with pytest.raises(UserError, match="outside object"):
        read_map(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x63", pickle.dumps([1] * 50)[:-20]])
def test_damaged_file(tmp_path: Path, read: Reader, damage: bytes) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"broken\.pkl: not a readable pickle"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_missing_file(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(UserError, match=r"none\.pkl: cannot be read"):
        read(tmp_path / "none.pkl")


@pytest.mark.parametrize("names", ["numpy._core", "numpy.core"])
def test_trajectory_database_of_both_numpy_generations(tmp_path: Path, names: str) -> None:
    """Protocol 3, as released; NumPy 1 and 2 differ in the module of ``_reconstruct``."""
    raw = pickle.dumps(database(), protocol=3)
    for written in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        raw = raw.replace(written, f"{names}.multiarray".encode())
    path = tmp_path / "trajectory_database.pkl"
    path.write_bytes(raw)
    read = read_trajectory_database(path)
    assert list(read) == [0, 1]
    assert read[1] == {}
    np.testing.assert_array_equal(read[0][7].values, database()[0][7]["trajectory"])
    np.testing.assert_array_equal(read[0][7].valid, [True, True, True, False])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.arange(12, dtype=">f8").reshape(3, 4),
        np.arange(12, dtype=np.int64).reshape(3, 4),
        np.arange(24, dtype=np.float64).reshape(6, 4)[::2],
        np.zeros((0, 4)),
    ],
)
def test_arrays_of_every_layout(tmp_path: Path, array: NDArray[Any]) -> None:
    item = {"trajectory": array, "trajectory_mask": np.ones(len(array), dtype=np.uint8)}
    read = read_trajectory_database(write(tmp_path / "t.pkl", {0: {1: item}}, 3))[0][1]
    np.testing.assert_array_equal(read.values, array)
    assert read.values.dtype == np.float64


@pytest.mark.parametrize(
    "array",
    [np.array([object()], dtype=object), np.zeros(2, dtype="f4,i4"), np.array(["x"])],
)
def test_arrays_that_are_no_numbers(tmp_path: Path, array: NDArray[Any]) -> None:
    if array.dtype == object:
        array[0] = "text"
    path = write(tmp_path / "t.pkl", {0: {1: {"trajectory": array}}}, 3)
    with pytest.raises(UserError, match=r"not a readable pickle|refused"):
        read_trajectory_database(path)


def forged(shape: tuple[int, ...], dtype_state: bytes, raw: bytes) -> bytes:
    """An array pickle written by hand, as no NumPy would write it."""
    data = pickle.dumps(raw, protocol=3)[2:-1]
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        + b"(K\x01"
        + pickle.dumps(shape, protocol=2)[2:-1]
        + b"cnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R"
        + dtype_state
        + b"\x89"
        + data
        + b"tb."
    )


LITTLE = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


@pytest.mark.parametrize(
    ("shape", "state", "message"),
    [
        ((10**6, 4), LITTLE, "does not fit its 64 bytes"),
        ((2, 3), LITTLE, "does not fit its 64 bytes"),
        ((2, -1), LITTLE, "not a tuple of sizes"),
        ((2, 4), b"(K\x03X\x01\x00\x00\x00!tb", "unknown array type state"),
    ],
)
def test_forged_array_states(
    tmp_path: Path, shape: tuple[int, ...], state: bytes, message: str
) -> None:
    path = tmp_path / "forged.pkl"
    path.write_bytes(forged((1,), LITTLE, b"\0" * 8))
    with pytest.raises(UserError, match="expected scene index"):
        read_trajectory_database(path)  # well-formed array, but no database
    path.write_bytes(forged(shape, state, b"\0" * 64))
    with pytest.raises(UserError, match=f"not a readable pickle.*{message}"):
        read_trajectory_database(path)


def test_a_file_cannot_spoil_the_next_one(tmp_path: Path) -> None:
    """A class handed to a hostile file may be given attributes; it must not be met again."""
    path = tmp_path / "spoil.pkl"
    # BUILD with a (None, slot state) pair sets attributes on the class OrderedDict itself.
    path.write_bytes(b"\x80\x02ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsK\x01s\x86b.")
    with pytest.raises(UserError, match="expected scene index"):
        read_trajectory_database(path)
    names = numpy_names()
    assert callable(names["collections", "OrderedDict"].items)
    assert callable(OrderedDict.items)
    good = write(tmp_path / "good.pkl", database(), 3)
    assert len(read_trajectory_database(good)) == 2


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {0: {1: {"trajectory": 3, "trajectory_mask": 4}}},
        {0: {1: {"trajectory": np.zeros((2, 3)), "trajectory_mask": np.ones(2)}}},
        {0: {1: {"trajectory": np.zeros((2, 4)), "trajectory_mask": np.ones(3)}}},
        {0: {1: {"trajectory": np.zeros((2, 4))}}},
        {"a": {}},
    ],
)
def test_database_of_another_shape(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match="expected scene index"):
        read_trajectory_database(write(tmp_path / "t.pkl", content, 3))
