"""Converting a root: the same labels and points in every layout, and no foreign folder touched."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_scenes import MadeScene, junction_scene, write_root
from turbotrain_plugin.cli import main
from turbotrain_plugin.data.convert import Conversion, convert_roots
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.structures import UserError

JUNCTION, CORRIDOR = "2023-01-01-00-00-00_1_0", "2023-01-02-00-00-00_1_0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    splits = {
        "train": [junction_scene(JUNCTION, 3)],
        "val": [junction_scene(CORRIDOR, 2, infrastructure=False)],
    }
    return write_root(tmp_path / "root", splits)


def assert_same_data(first: Path, second: Path, *, vehicles_only: bool = False) -> None:
    a, b = open_root([first]), open_root([second])
    assert [(s.split, s.name) for s in a.scenes] == [(s.split, s.name) for s in b.scenes]
    for one, two in zip(a.scenes, b.scenes, strict=True):
        agents = [n for n in one.agents if n >= 0 or not vehicles_only]
        assert list(two.agents) == agents
        for agent_id in agents:
            assert one.agents[agent_id] == two.agents[agent_id]
            for frame in one.agents[agent_id].label_frames:
                x, y = (r.read_frame(s, agent_id, frame) for r, s in ((a, one), (b, two)))
                np.testing.assert_array_equal(x.object_ids, y.object_ids)
                np.testing.assert_allclose(x.world_SE3_lidar, y.world_SE3_lidar, atol=1e-9)
                np.testing.assert_allclose(x.world_boxes, y.world_boxes, atol=1e-9)
                assert x.raw_types == y.raw_types
                p, q = (r.read_points(s, agent_id, frame) for r, s in ((a, one), (b, two)))
                np.testing.assert_array_equal(p[:, :3], q[:, :3])


@pytest.mark.parametrize("target", ["v2xpnp_seq", "opv2v"])
def test_there_and_back(root: Path, tmp_path: Path, target: str) -> None:
    done = convert_roots([root], "auto", target, tmp_path / "there")
    assert done == Conversion(2, 4 * 3 + 2 * 2, 4 * 3 + 2 * 2, 2 if target == "v2xpnp_seq" else 0)
    assert_same_data(root, tmp_path / "there")
    convert_roots([tmp_path / "there"], target, "v2xpnp_seq", tmp_path / "back")
    assert_same_data(root, tmp_path / "back")


def test_vehicles_only(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert_roots([root], "v2xpnp_seq", "v2v4real", tmp_path / "out")
    assert f"{JUNCTION}: left out 2 roadside unit(s)" in caplog.messages
    assert_same_data(root, tmp_path / "out", vehicles_only=True)


def test_a_scene_of_roadside_units_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = junction_scene("s", 1)
    units = MadeScene("s", tuple(a for a in made.agents if a.agent_id < 0), made.objects, 1)
    root = write_root(tmp_path / "root", {"train": [units]}, with_map=False)
    done = convert_roots([root], "auto", "v2v4real", tmp_path / "out")
    assert done == Conversion(0, 0, 0, 0)
    assert "s: left out, no vehicle has a frame" in caplog.text


def test_maps_go_with_their_area(root: Path, tmp_path: Path) -> None:
    convert_roots([root], "auto", "v2xreal", tmp_path / "out")
    a, b = open_root([root]), open_root([tmp_path / "out"])
    for one, two in zip(a.scenes, b.scenes, strict=True):
        first, second = a.read_map(one), b.read_map(two)
        assert first is not None
        assert second is not None
        np.testing.assert_array_equal(first.lanes[0].polyline, second.lanes[0].polyline)


def test_maps_that_find_no_place_are_told_of(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "left out the vector maps: opv2v has no place for them"
    convert_roots([root], "auto", "opv2v", tmp_path / "out")
    assert said in caplog.messages
    caplog.clear()
    convert_roots([tmp_path / "out"], "auto", "opv2v", tmp_path / "again")
    assert said not in caplog.messages
    convert_roots([root], "auto", "v2xreal", tmp_path / "with")
    assert "left out" not in caplog.text


def test_label_frames_without_a_cloud_stay_so(root: Path, tmp_path: Path) -> None:
    (root / "train" / JUNCTION / "1" / "000001.bin").unlink()
    done = convert_roots([root], "auto", "opv2v", tmp_path / "out")
    assert (done.frames, done.clouds) == (16, 15)
    scene = open_root([tmp_path / "out"]).scenes[0]
    assert scene.agents[1].cloud_frames == (0, 2)


# ------------------------------------------------------------------------------------------ errors


def test_a_folder_with_anything_in_it_is_left_alone(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"out: is not empty; give a new or empty folder"):
        convert_roots([root], "auto", "opv2v", out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="is not empty"):
        convert_roots([root], "auto", "opv2v", root)
    with pytest.raises(UserError, match=r"mine\.txt: is not empty"):
        convert_roots([root], "auto", "opv2v", out / "mine.txt")


def test_an_empty_folder_is_filled(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    convert_roots([root], "auto", "opv2v", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "validate"]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("auto", "kitti", "Unknown target format 'kitti'; known are v2xpnp_seq"),
        ("kitti", "opv2v", "Unknown data format 'kitti'"),
    ],
)
def test_unknown_formats(
    root: Path, tmp_path: Path, source: str, target: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        convert_roots([root], source, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_scene_leaves_no_half_of_itself(root: Path, tmp_path: Path) -> None:
    cloud = root / "train" / JUNCTION / "2" / "000001.bin"
    cloud.write_bytes(cloud.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"2/000001\.bin: truncated"):
        convert_roots([root], "auto", "opv2v", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.yaml"))


def test_a_place_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/out: cannot be (written|looked into)"):
        convert_roots([root], "auto", "opv2v", tmp_path / "file" / "out")


# ----------------------------------------------------------------------------------------- command


def test_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = ["data", "convert", str(root), "--from", "v2xpnp_seq", "--to", "opv2v", "--out"]
    assert main([*line, str(out)]) == 0
    said = capsys.readouterr()
    assert f"opv2v: {out} (2 scenes, 16 label files, 16 clouds, 0 maps)" in said.out
    assert f"opencood data verify {out}" in said.out
    assert_same_data(root, out)
    assert main([*line, str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_progress_is_told(root: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    convert_roots(
        [root], "auto", "opv2v", tmp_path / "out", progress=lambda *step: seen.append(step)
    )
    assert seen == [(0, 2, JUNCTION), (1, 2, CORRIDOR), (2, 2, "")]
