"""The folder tree: expected against found, and where the root is when this is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.made_formats import OPV2V_SCENE, write_opv2v
from tests.helpers.made_scenes import junction_scene, write_root
from turbotrain_plugin.data.layout import survey
from turbotrain_plugin.structures import UserError

SCENE = "2023-01-01-00-00-00_1_0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(
        tmp_path / "data" / "v2x",
        {"train": [junction_scene(SCENE, frames=6)], "val": [junction_scene("b", frames=3)]},
    )


def test_what_a_root_holds_and_what_it_lacks(root: Path) -> None:
    layout = survey(root)
    train, validate = layout.splits
    assert (layout.format, layout.clouds) == ("v2xpnp_seq", ("bin", "pcd"))
    assert [(Path(s.folder).name, s.split) for s in layout.splits] == [
        ("train", "train"),
        ("val", "validate"),
    ]
    assert [(a.agent_id, a.frames) for a in train.scenes[0].agents] == [
        (1, 6), (2, 6), (-1, 6), (-2, 6),
    ]  # fmt: skip
    assert [a.frames for a in validate.scenes[0].agents] == [3, 3, 3, 3]
    assert layout.missing == ("test/",)
    assert len(layout.maps) == 2
    assert layout.foreign == ()
    assert json.loads(json.dumps(layout.to_json()))["splits"][0]["scenes"][0]["name"] == SCENE


def test_missing_and_foreign_files_are_marked(root: Path) -> None:
    scene = root / "train" / SCENE
    (scene / "1" / "000002.bin").unlink()
    (scene / "2" / "000003.yaml").unlink()
    for frame in (1, 2, 4):
        (scene / "-1" / f"00000{frame}.yaml").unlink()
        (scene / "-1" / f"00000{frame}.bin").unlink()
    (scene / "-2" / "7.yaml").write_text("")
    (scene / "-2" / "000001_additional.yaml").write_text("")  # of another task: no remark
    (scene / "car3").mkdir()
    (root / "train" / "readme.txt").write_text("")
    (root / "old").mkdir()
    (root / "trajectory_database_train.pkl").write_text("")
    (root / ".hidden").mkdir()
    for path in (root / "map").iterdir():
        path.unlink()
    layout = survey(root)
    one, two, minus_one, minus_two = layout.splits[0].scenes[0].agents
    assert (one.frames, one.labels_only, one.clouds_only) == (5, 1, 0)
    assert (two.frames, two.labels_only, two.clouds_only, two.gaps) == (5, 0, 1, "000003")
    assert minus_one.gaps == "000001 to 000002, 000004"
    assert minus_two.foreign == ("7.yaml",)
    assert layout.splits[0].scenes[0].foreign == ("car3",)
    assert layout.splits[0].foreign == ("readme.txt",)
    assert layout.foreign == ("old",)
    assert layout.missing == ("test/", "map/*.pkl (training goes on without map)")
    text = layout.text()
    for line in (
        "         1/  5 frames; 1 labels without a cloud",
        "         2/  5 frames; 1 clouds without labels; missing 000003",
        "        -2/  6 frames; ? 7.yaml",
        "      ? car3/: no agent, its name is no number",
        "    ? readme.txt: not part of the layout",
        "  ? old: not part of the layout",
        "  - missing: test/",
        "  val/ (read as validate)  1 scenes, 12 agent frames",
    ):
        assert line in text.splitlines(), text


def test_long_splits_are_cut(tmp_path: Path) -> None:
    scenes = [junction_scene(f"s{number}", frames=1) for number in range(4)]
    layout = survey(write_root(tmp_path, {"train": scenes}))
    text = layout.text(scenes=1)
    assert "... and 3 more scenes" in text
    assert "s0/" in text
    assert "s1/" not in text


def test_other_formats_and_split_folders(tmp_path: Path, root: Path) -> None:
    write_opv2v(tmp_path / "opv2v" / "train", junction_scene(OPV2V_SCENE, frames=3))
    layout = survey(tmp_path / "opv2v")
    assert (layout.format, layout.clouds) == ("opv2v", ("pcd",))
    assert layout.missing == ("validate/", "test/")  # the layout has no place for maps
    assert layout.splits[0].scenes[0].agents[0].gaps == ""  # file numbers step by two
    split = survey(root / "train")
    assert split.missing == ()
    assert split.foreign == ()
    assert len(split.splits) == 1


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("data/v2x/none", ["no such folder"]),
        ("data", ["parent of a root", "data/v2x"]),
        (".", ["parent of a root", "data/v2x"]),
        (f"data/v2x/train/{SCENE}", ["a single scene", "child of the root", "data/v2x."]),
        (f"data/v2x/train/{SCENE}/1", ["one agent", f"train/{SCENE}", "data/v2x."]),
        ("data/v2x/map", ["no scenes found", "vector_map.pkl"]),
    ],
)
def test_a_wrong_root_names_the_right_one(
    root: Path, tmp_path: Path, place: str, words: list[str]
) -> None:
    assert root.is_dir()
    with pytest.raises(UserError) as error:
        survey(tmp_path / place)
    for word in words:
        assert word in str(error.value)


def test_an_empty_folder_is_no_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Found nothing"):
        survey(tmp_path)
