"""Which folders are read, for every way a user may name them, and what is said of wrong ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.made_scenes import MadeAgent, MadeScene, junction_scene, write_root
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.structures import UserError


def scene(name: str, frames: int = 1) -> MadeScene:
    return MadeScene(name, (MadeAgent(1, (0, 0, 2)),), (), frames)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    splits = {"train": [scene("b"), scene("a")], "val": [scene("c")], "test": [scene("d")]}
    return write_root(tmp_path / "root", splits)


def found(*roots: Path, split: str | None = None) -> list[tuple[str, str]]:
    return [(one.split, one.name) for one in open_root(roots, split=split).scenes]


def test_whole_root(root: Path) -> None:
    assert found(root) == [("test", "d"), ("train", "a"), ("train", "b"), ("validate", "c")]


@pytest.mark.parametrize("split", ["train", "validate", "test"])
def test_one_split_of_a_root(root: Path, split: str) -> None:
    names = {"train": ["a", "b"], "validate": ["c"], "test": ["d"]}[split]
    assert found(root, split=split) == [(split, name) for name in names]


def test_split_folder(root: Path) -> None:
    assert found(root / "train") == [("train", "a"), ("train", "b")]
    # Given directly it is taken whatever it is asked to serve as: overfitting tests do that.
    assert found(root / "train", split="test") == [("train", "a"), ("train", "b")]


def test_split_folder_of_any_name(root: Path) -> None:
    (root / "val").rename(root / "intersections")
    assert found(root / "intersections") == [("intersections", "c")]


@pytest.mark.parametrize(
    ("folder", "split"),
    [("validate", "validate"), ("val", "validate"), ("train3", "train"), ("test", "test")],
)
def test_names_of_splits(tmp_path: Path, folder: str, split: str) -> None:
    write_root(tmp_path, {folder: [scene("s")]}, with_map=False)
    assert found(tmp_path) == [(split, "s")]
    assert found(tmp_path, split=split) == [(split, "s")]


def test_parts_and_several_roots(root: Path, tmp_path: Path) -> None:
    write_root(tmp_path / "more", {"train1": [scene("e")], "train2": [scene("f")]}, with_map=False)
    assert [name for _, name in found(root, tmp_path / "more", split="train")] == [*"abef"]
    assert [name for _, name in found(root / "val", root / "test")] == ["c", "d"]


def test_the_map_is_looked_for_beside_the_split(root: Path) -> None:
    for given in (root, root / "train"):
        reader = open_root([given])
        assert reader.read_map(reader.scenes[0]) is not None


def test_cache_folder_is_no_scene(root: Path) -> None:
    for given in (root, root / "train"):
        reader = open_root([given])
        reader.read_frame(reader.scenes[0], 1, 0)
    assert (root / ".turbotrain_cache").is_dir()
    # Hosts take every folder of a split for a scene: nothing of ours may lie there.
    assert sorted(path.name for path in (root / "train").iterdir()) == ["a", "b"]
    assert len(found(root)) == 4


def test_relative_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "train")
    reader = open_root([Path()])
    assert [one.name for one in reader.scenes] == ["a", "b"]
    assert reader.scenes[0].split == "train"
    assert reader.read_map(reader.scenes[0]) is not None


def test_split_on_another_disk(root: Path, tmp_path: Path) -> None:
    shutil.move(root / "train", tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    for given in (root, root / "train"):
        reader = open_root([given], split="train")
        assert [(one.split, one.name) for one in reader.scenes] == [("train", "a"), ("train", "b")]
        assert reader.read_map(reader.scenes[0]) is not None


# ------------------------------------------------------------------------------------------ errors


def test_no_root() -> None:
    with pytest.raises(UserError, match="No dataset folder is given"):
        open_root([])


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_root([tmp_path / "nowhere"])


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: no such folder"):
        open_root([tmp_path / "file"])


def test_missing_split(root: Path) -> None:
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match=r"has no split 'validate', only test, train"):
        open_root([root], split="validate")


def test_folder_without_scenes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scenes found; expected <scenario>/<agent>/<frame>"):
        open_root([tmp_path])
    (tmp_path / "scene" / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="no scenes found"):
        open_root([tmp_path])


def test_single_scene_given(root: Path) -> None:
    with pytest.raises(UserError, match="train/a: is a single scene"):
        open_root([root / "train" / "a"])


@pytest.mark.parametrize("kept", ["yaml", "bin", "nothing", "no agents"])
def test_empty_scene(root: Path, kept: str) -> None:
    folder = root / "train" / "a" / "1"
    for path in folder.iterdir():
        if path.suffix != f".{kept}":
            path.unlink()
    if kept == "no agents":
        folder.rmdir()
    with pytest.raises(UserError, match="train/a: empty scene"):
        open_root([root])


def test_scene_twice_in_a_split(root: Path, tmp_path: Path) -> None:
    write_root(tmp_path / "again", {"train": [scene("a")]}, with_map=False)
    with pytest.raises(UserError, match=r"again/train/a: a scene of this name is also in .*root"):
        open_root([root / "train", tmp_path / "again" / "train"])
    with pytest.raises(UserError, match="Give each scene once"):
        open_root([root / "train", root / "train"])


def test_unknown_format(root: Path) -> None:
    with pytest.raises(UserError, match="Unknown data format 'kitti'; known are auto, v2xpnp_seq"):
        open_root([root], "kitti")


def test_pcd_beside_bin_is_no_other_layout(root: Path) -> None:
    (root / "train" / "a" / "1" / "000000.pcd").touch()
    assert len(found(root)) == 4


def test_junction_scene_has_all_agents(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": [junction_scene("s", frames=1)]})
    assert list(open_root([tmp_path]).scenes[0].agents) == [1, 2, -1, -2]
