"""Damaged and hostile files of every format: a value that holds, or one clean error; never more.

Every mutation follows from (kind, number), so a failure names the file to look at again. An audit
hook sees every process, import and write that reading would cause, whatever a payload tries.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml

from tests.helpers.made_formats import ascii_pcd, opv2v_labels, v2v4real_labels
from tests.helpers.made_scenes import junction_scene, lidar_points, straight_map, yaml_text
from turbotrain_plugin.data.formats import FORMATS, open_root
from turbotrain_plugin.data.formats.pcd import pcd_bytes
from turbotrain_plugin.data.map_files import VectorMap, read_map, write_map
from turbotrain_plugin.data.trajectory_database import read_trajectory_database
from turbotrain_plugin.structures import AgentFrame, UserError

FILES_PER_KIND: Final = 250
SLOWEST_S: Final = 2.0
LARGEST_BYTES: Final = 64 * 2**20

SCENE = junction_scene("2021_08_16_22_26_54", frames=1)
AGENT = SCENE.agents[1]
POINTS = lidar_points(SCENE, AGENT, 0)


class Foreign:
    """Pickles to a call of the shell."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def database() -> bytes:
    track = np.arange(40.0).reshape(10, 4)
    tracks = {7: {"trajectory": track, "trajectory_mask": np.ones(10, np.bool_)}}
    return pickle.dumps(OrderedDict({0: OrderedDict(tracks), 1: OrderedDict()}), protocol=3)


def vector_map(folder: Path) -> bytes:
    write_map(folder / "map.pkl", straight_map(0.0, count=2))
    return (folder / "map.pkl").read_bytes()


def label_kind(name: str) -> Callable[[Path], object]:
    return lambda path: FORMATS[name].read_label_file(path, 1, 0)


def cloud_kind(name: str) -> Callable[[Path], object]:
    return FORMATS[name].read_cloud_file


TEXTS: Final[dict[str, bytes]] = {
    "v2xpnp_seq": yaml_text(SCENE, AGENT, 0).encode(),
    "opv2v": yaml.safe_dump(opv2v_labels(SCENE, AGENT, 0)).encode(),
    "v2v4real": yaml.dump(v2v4real_labels(SCENE, AGENT, 0)).encode(),
}
CLOUDS: Final[dict[str, tuple[str, bytes]]] = {
    "bin": ("v2xpnp_seq", POINTS.tobytes()),
    "ascii.pcd": ("opv2v", ascii_pcd(POINTS[:60]).encode()),
    "binary.pcd": ("v2v4real", pcd_bytes(POINTS)),
    "packed.pcd": ("opv2v", pcd_bytes(POINTS[:100], encoding="binary_compressed")),
    "fallback.pcd": ("v2xpnp_seq", pcd_bytes(POINTS, colour=False)),
}

# --------------------------------------------------------------------------------------- mutations

TOKENS: Final = (
    *(".nan", ".inf", "-.inf", "1e400", "-1e308", "1e12", "1" + "0" * 400, "0x" + "f" * 4000),
    *(
        "null",
        "~",
        "true",
        "text",
        "''",
        "-",
        "1:2:3",
        "1_0",
        "2023-01-01",
        "2023-99-99",
        "&x [*x]",
    ),
    *("[]", "[1, 2]", "{a: 1}", "[[1], [2]]", "*nowhere", "!!binary AAAA", "!!binary '='"),
    *("!!timestamp x", "!!bool x", "!!int ''", "!!float ''", "!!int x", "!!set {a}", "!!null x"),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!str 1", "!!seq {a: 1}", "!!map [1]", "{<<: {a: 1}}"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system ''"),
    *("!!python/object/apply:subprocess.Popen [['true']]", "!!python/module:subprocess ''"),
    *("!!python/tuple [1, 2]", "!!python/object/apply:numpy.dtype [O]", "? [1]", "!x 1", "\x00"),
    *("!!python/object/apply:numpy.core.multiarray.scalar [f8, 1]", "9" * 5000, "[" * 2000),
)
NUMBER: Final = re.compile(rb"(?<=[ \[\-])-?\d+(\.\d+)?(?=[,\]\n])")
WORD: Final = re.compile(rb"[A-Za-z_]+")
HEADER_NUMBER: Final = re.compile(rb"(?<= )\d+(?=[ \n])")


def cut(raw: bytes, rng: np.random.Generator) -> bytes:
    return raw[: rng.integers(len(raw))]


def flip(raw: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(raw)
    # Heads hold the structure: half of the flips go there.
    end = min(len(out), 200) if rng.random() < 0.5 else len(out)
    for place in rng.integers(end, size=rng.integers(1, 9)):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def noise(raw: bytes, rng: np.random.Generator) -> bytes:
    start, size = int(rng.integers(len(raw))), int(rng.integers(1, 64))
    return raw[:start] + rng.bytes(size) + raw[start + int(rng.integers(64)) :]


def repeat(raw: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(len(raw), size=2).tolist())
    return raw[:end] + raw[start:end] + raw[end:]


def _replaced(
    raw: bytes, pattern: re.Pattern[bytes], new: bytes, rng: np.random.Generator
) -> bytes:
    found = list(pattern.finditer(raw))
    if not found:
        return raw + new
    one = found[rng.integers(len(found))]
    return raw[: one.start()] + new + raw[one.end() :]


def other_value(raw: bytes, rng: np.random.Generator) -> bytes:
    return _replaced(raw, NUMBER, str(rng.choice(TOKENS)).encode(), rng)


def other_word(raw: bytes, rng: np.random.Generator) -> bytes:
    return _replaced(raw, WORD, str(rng.choice(TOKENS)).encode(), rng)


def bomb(raw: bytes, rng: np.random.Generator) -> bytes:
    """A billion laughs in the place of a value or of a class name."""
    width = int(rng.integers(2, 10))
    levels = int(rng.integers(2, 120))
    opening, closing = ("[", "]") if rng.random() < 0.7 else ("!!python/tuple [", "]")
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {opening}{inner}{closing}")
    place = NUMBER if rng.random() < 0.5 else re.compile(rb"(?<=: )\w+")
    # A mapping may define anchors after their use is refused, so the bomb comes first.
    return (
        "\n".join(lines).encode() + b"\n" + _replaced(raw, place, f"*a{levels - 1}".encode(), rng)
    )


def other_header(raw: bytes, rng: np.random.Generator) -> bytes:
    end = raw.find(b"DATA")
    news = (b"0", b"3", b"1000000", b"4294967295", b"999999999999", b"-1", b"1e9", b"8", b"nan")
    return _replaced(raw[:end], HEADER_NUMBER, news[rng.integers(len(news))], rng) + raw[end:]


def other_floats(raw: bytes, rng: np.random.Generator) -> bytes:
    """NaN, infinities, huge and tiny numbers over four bytes here and there."""
    out = bytearray(raw)
    start = raw.find(b"DATA") + 12 if b"DATA" in raw else 0
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45], dtype="<f4")
    for place in rng.integers(start // 4, len(raw) // 4, size=20):
        out[4 * place : 4 * place + 4] = odd[rng.integers(len(odd))].tobytes()
    return bytes(out)


def foreign(raw: bytes, rng: np.random.Generator) -> bytes:
    """A call in a pickle: alone, in front, in the middle, or in honest company."""
    payload = pickle.dumps(Foreign(), protocol=int(rng.integers(6)))
    place = int(rng.integers(len(raw)))
    return (
        payload,
        payload[:-1] + raw,
        raw[:place] + payload[:-1] + raw[place:],
        pickle.dumps(OrderedDict({0: {1: Foreign()}}), protocol=int(rng.integers(6))),
    )[rng.integers(4)]


def forged(raw: bytes, rng: np.random.Generator) -> bytes:
    """Opcodes that promise sizes the file does not have, and nested ones."""
    large = int(rng.integers(2**20, 2**31)).to_bytes(4, "little")
    return (
        b"\x80\x02]X" + large + b"text.",
        b"\x80\x04\x8d" + large + large + b"text.",
        b"\x80\x04]\x8e" + large + bytes(4) + b"text.",
        b"\x80\x02\x8b" + large + b"1.",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02(K\x01" + b"\x85" * 50_000 + b"Q.",
        b"\x80\x02K\x01" + b"2\x86" * 60 + b"Q.",
        b"\x80\x04\x95" + large + large + raw[2:],
        raw[:2] + b"I" + b"9" * 5000 + b"\n0" + raw[2:],
    )[rng.integers(10)]


Mutation = Callable[[bytes, np.random.Generator], bytes]
ANY: Final[tuple[Mutation, ...]] = (cut, flip, noise, repeat)
YAML_MUTATIONS: Final = (*ANY, other_value, other_value, other_word, bomb)
PCD_MUTATIONS: Final = (*ANY, other_header, other_header, other_floats)
PICKLE_MUTATIONS: Final = (*ANY, flip, foreign, forged)


def mutated(raw: bytes, mutations: tuple[Mutation, ...], number: int, kind: str) -> bytes:
    rng = np.random.default_rng([number, *kind.encode()])
    mutate = mutations[number % len(mutations)]
    return mutate(raw, rng)


# ------------------------------------------------------------------------------------------ running

WATCHED: Final = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "socket.connect"),
    *("pickle.find_class", "exec", "ctypes.dlopen"),
}
"""Audit events that reading a data file never raises; our unpickler has a find_class of its own."""
_seen: list[str] = []
_armed = [False]


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _armed[0] and (event in WATCHED or (event == "open" and _writes(arguments))):
        _seen.append(f"{event} {arguments!r}"[:200])


def _writes(arguments: tuple[Any, ...]) -> bool:
    return isinstance(arguments[1], str) and any(sign in arguments[1] for sign in "wax+")


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_hook)  # cannot be removed; idle unless armed


@contextmanager
def watched() -> Iterator[None]:
    _seen.clear()
    _armed[0] = True
    try:
        yield
    finally:
        _armed[0] = False
    assert _seen == []


def check(read: Callable[[Path], object], path: Path, label: str) -> bool:
    """Read a file under guard; return whether it was refused."""
    tracemalloc.reset_peak()
    before, begin = tracemalloc.get_traced_memory()[0], time.perf_counter()
    refusal = ""
    try:
        with watched():
            value = read(path)
        assert_holds(value, label)
    except UserError as error:
        refusal = str(error)
    except Exception as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
    taken = time.perf_counter() - begin
    assert not refusal or path.name in refusal, f"{label}: the file is not named: {refusal}"
    assert len(refusal) < 2000, f"{label}: an endless message"
    assert taken < SLOWEST_S, f"{label}: {taken:.1f} s"
    peak = tracemalloc.get_traced_memory()[1] - before
    assert peak < LARGEST_BYTES, f"{label}: {peak / 2**20:.0f} MB"
    return bool(refusal)


def assert_holds(value: object, label: str) -> None:
    if isinstance(value, AgentFrame):
        count = len(value.object_ids)
        assert value.world_boxes.shape == (count, 7), label
        assert value.roll_pitch_rad.shape == (count, 2), label
        assert len(value.raw_types) == count, label
        for array in (value.world_SE3_lidar, value.world_boxes, value.roll_pitch_rad):
            assert np.isfinite(array).all(), label
        assert (value.world_boxes[:, 3:6] > 0).all(), label
        assert len(np.unique(value.object_ids)) == count, label
    elif isinstance(value, VectorMap):
        assert all(np.isfinite(lane.polyline).all() for lane in value.lanes), label
    elif isinstance(value, np.ndarray):
        assert value.dtype == np.float32, label
        assert value.ndim == 2, label
        assert value.shape[1] == 4, label
        assert np.isfinite(value).all(), label


def fuzz(
    kind: str,
    raw: bytes,
    path: Path,
    read: Callable[[Path], object],
    mutations: Any,  # noqa: ANN401
) -> None:
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        assert not check(read, path, f"{kind}: the honest file")
        refused = 0
        for number in range(FILES_PER_KIND):
            path.write_bytes(mutated(raw, mutations, number, kind))
            refused += check(read, path, f"{kind} {number}")
    finally:
        tracemalloc.stop()
    # A mutation that changes a digit is read; but a fuzz that damages nothing would show nothing.
    assert refused > FILES_PER_KIND / 5, refused


@pytest.mark.parametrize("name", TEXTS)
def test_labels(tmp_path: Path, name: str) -> None:
    fuzz(name, TEXTS[name], tmp_path / "000007.yaml", label_kind(name), YAML_MUTATIONS)


@pytest.mark.parametrize("name", [name for name in CLOUDS if name != "bin"])
def test_clouds(tmp_path: Path, name: str) -> None:
    layout, raw = CLOUDS[name]
    fuzz(name, raw, tmp_path / "000007.pcd", cloud_kind(layout), PCD_MUTATIONS)


def test_plain_clouds(tmp_path: Path) -> None:
    layout, raw = CLOUDS["bin"]
    read, mutations = cloud_kind(layout), (cut, noise, repeat, other_floats)
    fuzz("bin", raw, tmp_path / "000007.bin", read, mutations)


def test_maps(tmp_path: Path) -> None:
    raw = vector_map(tmp_path)
    fuzz("map", raw, tmp_path / "map.pkl", read_map, PICKLE_MUTATIONS)


def test_databases(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.pkl"
    fuzz("database", database(), path, read_trajectory_database, PICKLE_MUTATIONS)


@pytest.mark.parametrize("name", TEXTS)
def test_roots_of_unknown_format(tmp_path: Path, name: str) -> None:
    """Detection meets damaged files first, and the reader the same ones after it."""
    agent = tmp_path / "train" / "scene" / "1"
    agent.mkdir(parents=True)
    suffix, cloud = ("bin", "bin") if name == "v2xpnp_seq" else ("pcd", "binary.pcd")
    (agent / f"000000.{suffix}").write_bytes(CLOUDS[cloud][1])

    def read() -> object:
        reader = open_root([tmp_path], cache_dir=tmp_path / "cache")
        (scene,) = reader.scenes
        return reader.read_frame(scene, 1, 0)

    path, refusals = agent / "000000.yaml", list[str]()
    for number in range(60):
        path.write_bytes(mutated(TEXTS[name], YAML_MUTATIONS, number, f"root {name}"))
        try:
            assert_holds(read(), f"{name} {number}")
        except UserError as error:
            refusals.append(str(error))
    assert all(str(tmp_path) in one for one in refusals)
    assert len(refusals) > 10


def test_enough_files() -> None:
    kinds = len(TEXTS) + len(CLOUDS) + 2
    assert FILES_PER_KIND * kinds >= 2000


def test_the_guards_see(tmp_path: Path) -> None:
    """Each guard must be able to fail."""
    path = tmp_path / "x"
    tracemalloc.start()
    try:
        with pytest.raises(AssertionError, match=r"os\.system"):
            check(lambda _: os.system("true"), path, "call")
        with pytest.raises(AssertionError, match="open"):
            check(lambda p: p.write_text("x"), path, "write")
        with pytest.raises(AssertionError, match="KeyError"):
            check(lambda _: TEXTS["x"], path, "error")
        with pytest.raises(AssertionError, match="MB"):
            check(lambda _: len(bytearray(LARGEST_BYTES + 1000)), path, "memory")
        with pytest.raises(AssertionError, match="not named"):
            check(lambda _: (_ for _ in ()).throw(UserError("no")), path, "name")
        with pytest.raises(AssertionError):
            check(lambda _: np.full((1, 4), np.nan, np.float32), path, "NaN")
    finally:
        tracemalloc.stop()
