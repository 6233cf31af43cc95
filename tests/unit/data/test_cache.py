"""The label cache: the same labels as parsing, never old ones, never in the way."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.made_scenes import MadeScene, junction_scene, write_root, write_scene
from turbotrain_plugin.data.cache import CACHE_FOLDER, LabelCache, SceneLabels, fingerprint
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.data.formats import v2xpnp_seq as layout
from turbotrain_plugin.structures import AgentFrame

FRAMES = 4


def made_scene(frames: int = FRAMES) -> MadeScene:
    return junction_scene("2023-01-01-00-00-00_1_0", frames)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root", {"train": [made_scene()]}, with_map=False)


def read_all(root: Path, cache_dir: Path | None = None) -> list[AgentFrame]:
    reader = open_root([root], cache_dir=cache_dir)
    return [
        reader.read_frame(scene, agent_id, frame)
        for scene in reader.scenes
        for agent_id, frames in scene.agents.items()
        for frame in frames.label_frames
    ]


def assert_same(first: list[AgentFrame], second: list[AgentFrame]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.agent_id, a.is_infrastructure, a.frame) == (
            *(b.agent_id, b.is_infrastructure),
            b.frame,
        )
        assert a.raw_types == b.raw_types
        for name in ("world_SE3_lidar", "object_ids", "world_boxes", "roll_pitch_rad"):
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The label files that were parsed."""
    parsed: list[Path] = []
    parse = layout.read_label_frame

    def counted(path: Path, agent_id: int, frame: int) -> AgentFrame:
        parsed.append(path)
        return parse(path, agent_id, frame)

    monkeypatch.setattr(layout, "read_label_frame", counted)
    return parsed


def cache_file(root: Path) -> Path:
    (found,) = (root / CACHE_FOLDER).iterdir()
    return found


# --------------------------------------------------------------------------------- what comes back


def test_second_reader_parses_nothing_and_reads_the_same(root: Path, parses: list[Path]) -> None:
    first = read_all(root)
    assert len(parses) == 4 * FRAMES
    assert_same(read_all(root), first)
    assert len(parses) == 4 * FRAMES
    assert cache_file(root).name == "train-2023-01-01-00-00-00_1_0.npz"


def test_packing_keeps_empty_and_full_frames() -> None:
    def frame(number: int, ids: list[int], names: tuple[str, ...]) -> AgentFrame:
        rng = np.random.default_rng(number)
        shape = (len(ids),)
        boxes, tilt = rng.normal(size=(*shape, 7)), rng.normal(size=(*shape, 2))
        pose = rng.normal(size=(4, 4))
        return AgentFrame(-3, True, number, pose, np.array(ids, np.int64), boxes, tilt, names)

    frames = [frame(0, [], ()), frame(5, [2**62, -1], ("Car", "Van")), frame(7, [3], ("Müll",))]
    packed = SceneLabels.pack(frames)
    assert packed.type_names == ("Car", "Müll", "Van")
    assert list(packed.unpack()) == [(-3, 0), (-3, 5), (-3, 7)]
    assert_same(list(packed.unpack().values()), frames)
    nobody = SceneLabels.pack(frames[:1])
    assert_same(list(nobody.unpack().values()), frames[:1])


def test_stored_and_loaded(tmp_path: Path, root: Path) -> None:
    packed = SceneLabels.pack(read_all(root))
    cache = LabelCache(tmp_path / "cache")
    assert cache.load("a", "mark") is None
    cache.store("a", "mark", packed)
    loaded = cache.load("a", "mark")
    assert loaded is not None
    assert_same(list(loaded.unpack().values()), list(packed.unpack().values()))
    assert cache.load("a", "another mark") is None
    assert cache.load("b", "mark") is None


def test_labels_cannot_be_changed_by_accident(root: Path) -> None:
    for _ in range(2):  # parsed, then from the cache
        frame = read_all(root)[0]
        with pytest.raises(ValueError, match="read-only"):
            frame.world_boxes[0, 0] = 0.0


# ------------------------------------------------------------------------------------- never stale


def rewrite_larger(root: Path) -> None:
    path = root / "train" / made_scene().name / "1" / "000001.yaml"
    path.write_text(path.read_text().replace("obj_type: Car", "obj_type: Truck"))


def rewrite_same_size(root: Path) -> None:
    path = root / "train" / made_scene().name / "1" / "000001.yaml"
    stat = path.stat()
    path.write_text(path.read_text().replace("obj_type: Car", "obj_type: Bus"))
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def remove(root: Path) -> None:
    (root / "train" / made_scene().name / "1" / "000001.yaml").unlink()


def add(root: Path) -> None:
    write_scene(root / "train", made_scene(FRAMES + 1))


@pytest.mark.parametrize("change", [rewrite_larger, rewrite_same_size, remove, add])
def test_changed_files_are_parsed_anew(
    root: Path, parses: list[Path], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    before = read_all(root)
    change(root)
    parses.clear()
    after = read_all(root)
    assert parses
    assert [a.raw_types for a in after] != [b.raw_types for b in before]
    fresh = tmp_path / "fresh"
    assert_same(after, read_all(root, cache_dir=fresh))
    parses.clear()
    read_all(root)
    assert not parses  # the new state is cached in its turn


def test_fingerprint_says_what_it_depends_on(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.write_bytes(b"12")
        os.utime(path, ns=(0, 5))
    mark = fingerprint(tmp_path, [a, b])
    assert fingerprint(tmp_path, [b, a]) == mark
    assert fingerprint(tmp_path, [a]) != mark
    os.utime(a, ns=(0, 6))
    assert fingerprint(tmp_path, [a, b]) != mark
    os.utime(a, ns=(0, 5))
    assert fingerprint(tmp_path, [a, b]) == mark
    a.write_bytes(b"123")
    os.utime(a, ns=(0, 5))
    assert fingerprint(tmp_path, [a, b]) != mark
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (a, b):
        shutil.copy2(path, moved / path.name)
    assert fingerprint(moved, [moved / "a", moved / "b"]) == fingerprint(tmp_path, [a, b])


def test_moved_root_keeps_its_cache(root: Path, tmp_path: Path, parses: list[Path]) -> None:
    first = read_all(root)
    moved = tmp_path / "moved"
    root.rename(moved)
    parses.clear()
    assert_same(read_all(moved), first)
    assert not parses


# --------------------------------------------------------------------------------- never in the way


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"not a zip" * 100)


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for at in range(200, len(raw), 97):
        raw[at] ^= 0xFF
    path.write_bytes(bytes(raw))


def altered(**changed: Any) -> Callable[[Path], None]:  # noqa: ANN401
    def change(path: Path) -> None:
        with np.load(path) as packed:
            arrays = {name: packed[name] for name in packed.files}
        arrays.update({name: make(arrays[name]) for name, make in changed.items()})
        np.savez(path, **arrays)

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with np.load(path) as packed:
            arrays: dict[str, Any] = {key: packed[key] for key in packed.files if key != name}
        np.savez(path, **arrays)

    return change


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": truncate,
    "empty": empty,
    "garbage": garbage,
    "flipped bits": flip,
    "fewer boxes": altered(boxes=lambda a: a[:-1]),
    "narrow boxes": altered(boxes=lambda a: a[:, :5]),
    "offsets": altered(offsets=lambda a: a + 1),
    "no poses": without("poses"),
    "no fingerprint": without("fingerprint"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_rebuilt_silently(
    root: Path,
    parses: list[Path],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
) -> None:
    first = read_all(root)
    damage(cache_file(root))
    parses.clear()
    assert_same(read_all(root), first)
    assert len(parses) == 4 * FRAMES
    parses.clear()
    assert_same(read_all(root), first)
    assert not parses
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


class Payload:
    """Unpickling this the ordinary way makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_pickle_in_a_cache_is_not_executed(root: Path, tmp_path: Path) -> None:
    first = read_all(root)
    proof = tmp_path / "executed"
    for name in ("type_names", "fingerprint", "boxes"):
        evil = np.empty(1, dtype=object)
        evil[0] = Payload(proof)
        altered(**{name: lambda _, evil=evil: evil})(cache_file(root))
        assert_same(read_all(root), first)
        assert not proof.exists()


@pytest.mark.parametrize("blocked", ["cache folder", "cache file"])
def test_unwritable_cache_is_a_warning_once(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, blocked: str
) -> None:
    second = dict(made_scene().__dict__, name="second")
    write_scene(root / "train", MadeScene(**second))
    cache_dir = tmp_path / "cache"
    if blocked == "cache folder":
        cache_dir.touch()  # a file where the folder should be: no permission bits, root obeys too
    else:
        cache_dir.mkdir()
        reader = open_root([root], cache_dir=cache_dir)
        for scene in reader.scenes:
            reader.read_frame(scene, 1, 0)
        for path in list(cache_dir.iterdir()):
            folder(path)
    with caplog.at_level(logging.WARNING):
        frames = read_all(root, cache_dir=cache_dir)
    assert len(frames) == 2 * 4 * FRAMES
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "cannot be cached" in record.getMessage()
    assert "cache_dir" in record.getMessage()
    if blocked == "cache file":
        assert not [path for path in cache_dir.iterdir() if path.is_file()]  # no .part left


def test_cache_that_is_off(tmp_path: Path, root: Path) -> None:
    cache = LabelCache(None)
    cache.store("a", "mark", SceneLabels.pack(read_all(root)))
    assert cache.load("a", "mark") is None
    assert not (tmp_path / CACHE_FOLDER).exists()


def test_shared_cache_folder_keeps_roots_apart(tmp_path: Path) -> None:
    cache_dir = tmp_path / "cache"
    made = made_scene()
    fewer = MadeScene(made.name, made.agents, made.objects[:1], made.frames)
    one = write_root(tmp_path / "one", {"train": [made], "val": [fewer]}, with_map=False)
    two = write_root(tmp_path / "two", {"train": [fewer]}, with_map=False)
    for _ in range(2):
        assert len(read_all(one / "train", cache_dir)[0].object_ids) == 3
        assert len(read_all(one / "val", cache_dir)[0].object_ids) == 1
        assert len(read_all(two / "train", cache_dir)[0].object_ids) == 1
    assert len(list(cache_dir.iterdir())) == 3
    assert not (one / CACHE_FOLDER).exists()


def test_many_readers_at_once(root: Path) -> None:
    expected = read_all(root)
    shutil.rmtree(root / CACHE_FOLDER)
    with ThreadPoolExecutor(8) as pool:
        for frames in pool.map(lambda _: read_all(root), range(16)):
            assert_same(frames, expected)
    assert cache_file(root).suffix == ".npz"  # one file, nothing half written beside it


def test_cache_is_much_faster_than_parsing(tmp_path: Path) -> None:
    root = write_root(tmp_path, {"train": [made_scene(25)]}, with_map=False)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        read_all(root)
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < times[0] / 2  # about 15 times; half leaves room for a busy machine
