"""Verification finds each planted fault and nothing in a clean root; statistics count by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_scenes import (
    MadeAgent,
    MadeObject,
    MadeScene,
    junction_scene,
    write_root,
    write_scene,
)
from turbotrain_plugin.data.checks.agreement import ground_gap_m
from turbotrain_plugin.data.inspect import Finding, VerifyReport, root_stats, verify_root
from turbotrain_plugin.structures import UserError

NAME = "2023-01-01-00-00-00_1_0"


def clean_scene(name: str = NAME, frames: int = 6) -> MadeScene:
    """Scenes of different names have their objects elsewhere: no two have the same content."""
    made = junction_scene(name, frames)
    shift = 0.01 * sum(map(ord, name)) % 1.0
    objects = tuple(
        dataclasses.replace(one, start_xyz_m=(one.start_xyz_m[0] + shift, *one.start_xyz_m[1:]))
        for one in made.objects
    )
    return dataclasses.replace(made, objects=objects)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path, {"train": [clean_scene()]}, with_map=False)


def said(report: VerifyReport, part: str) -> list[Finding]:
    return [finding for finding in report.findings if part in finding.message]


# ------------------------------------------------------------------------------------ verification


def test_clean_root_has_no_findings(tmp_path: Path) -> None:
    splits = {"train": [clean_scene("a")], "val": [clean_scene("b")], "test": [clean_scene("c")]}
    report = verify_root([write_root(tmp_path, splits)], cloud_stride=2)
    assert report.problems == ()
    assert report.ok
    assert report.scenes == 3
    assert report.label_files == 3 * 4 * 6
    assert report.clouds_read == 3 * 4 * 3
    assert report.ground_gap_m == pytest.approx(0.0, abs=1e-3)
    assert not (tmp_path / ".turbotrain_cache").exists()  # reads only


def test_missing_files_and_gaps(root: Path) -> None:
    folder = root / "train" / NAME
    (folder / "1" / "000002.bin").unlink()
    (folder / "2" / "000003.yaml").unlink()
    for suffix in ("bin", "yaml"):
        (folder / "-1" / f"000005.{suffix}").unlink()
    report = verify_root([root])
    assert report.ok
    (one,) = said(report, "without .bin")
    assert (one.severity, one.agent, one.frame) == ("warning", 1, 2)
    (one,) = said(report, "without .yaml")
    assert (one.agent, one.frame) == (2, 3)
    (one,) = said(report, "time gaps")
    assert (one.agent, one.frame) == (2, 3)
    (one,) = said(report, "not all agents have")
    assert one.message.startswith("3 frames")
    assert (one.agent, one.frame) == (None, 2)


def keep_every(root: Path, suffix: str, step: int) -> None:
    for path in (root / "train" / NAME).glob(f"*/*.{suffix}"):
        if int(path.stem) % step != 1 % step:
            path.unlink()


def test_thinned_recordings_have_a_rhythm_not_gaps(tmp_path: Path) -> None:
    """Roots may keep clouds, or clouds and labels, at every fifth frame only."""
    root = write_root(tmp_path, {"train": [clean_scene(frames=33)]}, with_map=False)
    keep_every(root, "bin", 5)
    report = verify_root([root])
    assert report.problems == ()
    assert (report.label_steps, report.cloud_steps) == ((1,), (5,))
    (root / "train" / NAME / "1" / "000031.bin").unlink()
    (one,) = said(verify_root([root]), "without .bin")
    assert (one.agent, one.frame) == (1, 31)

    keep_every(root, "yaml", 5)
    (root / "train" / NAME / "2" / "000016.yaml").unlink()
    report = verify_root([root])
    assert (report.label_steps, report.cloud_steps) == ((5,), (5,))
    assert "labels 5, clouds 5" in report.table()
    (one,) = said(report, "time gaps")
    assert (one.agent, one.frame, one.message[:2]) == (2, 16, "1 ")


def test_agent_without_any_cloud(root: Path) -> None:
    for path in (root / "train" / NAME / "2").glob("*.bin"):
        path.unlink()
    (one,) = said(verify_root([root]), "without .bin")
    assert (one.agent, one.message[:2]) == (2, "6 ")


def test_damaged_labels_are_all_named_and_the_rest_is_read(root: Path) -> None:
    folder = root / "train" / NAME / "2"
    for frame in range(4):
        (folder / f"{frame:06d}.yaml").write_text("lidar_pose: [1, 2, .nan, 0, 0, 0]\n")
    (folder / "000004.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    report = verify_root([root])
    assert not report.ok
    assert len(said(report, "finite numbers")) == 4
    assert len(said(report, "nothing is executed")) == 1
    assert report.label_files == 4 * 6 - 5


def test_many_damaged_labels_are_counted(tmp_path: Path) -> None:
    root = write_root(tmp_path, {"train": [clean_scene(frames=30)]}, with_map=False)
    for path in (root / "train" / NAME / "2").glob("*.yaml"):
        path.write_text("")
    report = verify_root([root])
    assert len(said(report, "empty file")) == 20
    assert len(said(report, "10 more label files")) == 1


def test_box_with_impossible_size_is_an_error(root: Path) -> None:
    path = root / "train" / NAME / "1" / "000001.yaml"
    path.write_text(path.read_text().replace("- 2.3", "- -2.3", 1))
    report = verify_root([root])
    (one,) = said(report, "extent")
    assert (one.severity, one.agent, one.frame) == ("error", 1, 1)
    assert "object 11" in one.message


def test_truncated_and_empty_clouds(root: Path) -> None:
    folder = root / "train" / NAME
    truncated, empty = folder / "1" / "000003.bin", folder / "-2" / "000004.bin"
    truncated.write_bytes(truncated.read_bytes()[:-3])
    empty.write_bytes(b"")
    report = verify_root([root], cloud_stride=100)  # sizes are checked of every cloud
    found = said(report, "empty or truncated")
    assert {(one.severity, one.agent, one.frame) for one in found} == {
        ("error", 1, 3),
        ("error", -2, 4),
    }


def test_empty_scene_is_a_finding(root: Path) -> None:
    (root / "train" / "broken" / "1").mkdir(parents=True)
    report = verify_root([root])
    (one,) = said(report, "empty scene")
    assert (one.severity, one.scene) == ("error", "broken")
    assert report.scenes == 2


def test_scene_in_two_splits(root: Path, tmp_path: Path) -> None:
    write_scene(root / "test", clean_scene())
    report = verify_root([root])
    (one,) = said(report, "splits overlap")
    assert (one.severity, one.scene) == ("error", NAME)
    assert str(tmp_path / "train") in one.message
    assert str(tmp_path / "test") in one.message
    # The same when the splits are given one by one.
    assert said(verify_root([root / "train", root / "test"]), "splits overlap")


def planted(tmp_path: Path, *objects: MadeObject) -> VerifyReport:
    made = clean_scene()
    scene = dataclasses.replace(made, objects=made.objects + objects)
    return verify_root([write_root(tmp_path, {"train": [scene]}, with_map=False)])


def test_one_object_with_two_ids(tmp_path: Path) -> None:
    twin = MadeObject(99, (12.8, 3.4, 0.8), velocity_mps=(8.0, 0.0), yaw_deg=20.0, labelled_by=(2,))
    (one,) = planted(tmp_path, twin).problems
    assert one.severity == "warning"
    assert "objects 11 and 99 are in one place in 6 frames" in one.message


@pytest.mark.parametrize(
    "other",
    [
        MadeObject(99, (12.0, 6.5, 0.8), velocity_mps=(8.0, 0.0)),  # beside it in the next lane
        MadeObject(99, (12.5, 3.0, 0.8), velocity_mps=(8.0, 0.0), yaw_deg=60.0),  # turned
        MadeObject(99, (8.2, 8.0, 0.87), (1.4, 0.0), (0.64, 0.64, 1.74)),  # walks arm in arm
        MadeObject(99, (-8.0, 3.0, 0.8), velocity_mps=(58.0, 0.0)),  # overtakes through it
    ],
    ids=["beside", "turned", "people", "passing"],
)
def test_two_objects_near_each_other(tmp_path: Path, other: MadeObject) -> None:
    # A long vehicle elsewhere must not widen what counts as near for the others.
    bus = MadeObject(96, (-40.0, 40.0, 1.6), size_m=(12.0, 2.6, 3.2))
    assert not said(planted(tmp_path, other, bus), "two ids")


def test_yaws_are_compared_around_the_circle(tmp_path: Path) -> None:
    twin = MadeObject(99, (-15.2, -4.0, 0.8), yaw_deg=30.0 - 355.0)
    assert said(planted(tmp_path, twin), "objects 12 and 99")


def test_box_at_the_sensor(tmp_path: Path) -> None:
    own = MadeObject(98, (0.2, 0.0, 0.8), velocity_mps=(5.0, 0.0))
    report = planted(tmp_path, own)
    (one,) = said(report, "own LiDAR")
    assert (one.agent, one.frame) == (1, 0)  # the other agents see a car, as they should
    assert "object 98" in one.message
    assert "6 frames" in one.message


@pytest.mark.parametrize("size", [(40.0, 2.5, 3.0), (0.4, 0.05, 1.0)])
def test_odd_sizes(tmp_path: Path, size: tuple[float, float, float]) -> None:
    odd = MadeObject(97, (-40.0, -40.0, 1.0), size_m=size)
    found = said(planted(tmp_path, odd), "unusual size")
    assert sorted(one.agent or 0 for one in found) == [-2, -1, 1, 2]


def test_ground_of_a_wrong_pitch_sign(tmp_path: Path) -> None:
    """Files written with +pitch where -pitch is meant: the clouds no longer agree on the ground."""
    made = clean_scene()
    agents = tuple(
        dataclasses.replace(one, pitch_deg=one.pitch_deg * 3, roll_deg=one.roll_deg * 3)
        for one in made.agents
    )
    right = dataclasses.replace(made, agents=agents)
    write_root(tmp_path / "right", {"train": [right]}, with_map=False)
    wrong = write_root(tmp_path / "wrong", {"train": [right]}, with_map=False)
    for agent in agents:
        for path in (wrong / "train" / NAME / str(agent.agent_id)).glob("*.yaml"):
            lines = path.read_text().splitlines()
            start = lines.index("lidar_pose:")
            for row, value in ((4, -agent.roll_deg), (6, -agent.pitch_deg)):
                lines[start + row] = f"- {value}"
            path.write_text("\n".join(lines))
    good, bad = (verify_root([tmp_path / name]) for name in ("right", "wrong"))
    assert good.ground_gap_m == pytest.approx(0.0, abs=1e-3)
    assert good.problems == ()
    assert bad.ground_gap_m is not None
    assert bad.ground_gap_m > 0.5
    assert bad.worst_ground_gap_m == bad.ground_gap_m
    assert said(bad, "ground of two agents differs")


def test_ground_gap_measures_the_offset() -> None:
    rng = np.random.default_rng(0)

    def cloud(lift_m: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        xy = rng.uniform(-30, 30, size=(20_000, 2))
        z = 0.03 * xy[:, 0] + rng.normal(scale=0.02, size=len(xy)) + lift_m
        cars = rng.uniform(0, 2.0, size=len(xy)) * (rng.random(len(xy)) < 0.2)
        return np.column_stack([xy, z + cars])

    assert ground_gap_m(cloud(0.0), cloud(0.0)) == pytest.approx(0.0, abs=0.05)
    assert ground_gap_m(cloud(0.0), cloud(0.7)) == pytest.approx(0.7, abs=0.05)
    assert ground_gap_m(cloud(0.0), cloud(0.0) + np.array([500.0, 0.0, 0.0])) is None
    assert ground_gap_m(cloud(0.0), np.zeros((0, 3))) is None


def test_single_agent_has_no_ground_to_compare(tmp_path: Path) -> None:
    alone = dataclasses.replace(clean_scene(), agents=clean_scene().agents[:1])
    report = verify_root([write_root(tmp_path, {"train": [alone]}, with_map=False)])
    assert report.ground_gap_m is None
    assert "unknown" in report.table()
    assert report.ok


def test_points_outside_the_z_range(tmp_path: Path) -> None:
    high = MadeScene("s", (MadeAgent(1, (0, 0, 6.0)),), (), 1)
    root = write_root(tmp_path, {"train": [high]}, with_map=False)
    assert verify_root([root]).points_outside_z == 1.0  # all ground lies 6 m below
    assert verify_root([root], z_range_m=(-7.0, 3.0)).points_outside_z == 0.0


def test_errors_come_first_in_json_and_table(root: Path) -> None:
    folder = root / "train" / NAME
    (folder / "1" / "000002.bin").unlink()
    (folder / "2" / "000003.yaml").write_text("")
    report = verify_root([root])
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=("error", "warning", "info").index)
    assert "error" in severities
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["ok"] is False
    assert plain["findings"][0]["severity"] == "error"
    assert plain["z_range_m"] == [-5.0, 3.0]
    text = report.table()
    assert "1 errors, 1 warnings, 2 notes" in text
    assert f"{NAME} agent 2 frame 000003: " in text
    short = report.table(limit=1)
    assert "... and 3 more" in short
    assert "agent 1 frame" not in short


def test_progress_is_told(tmp_path: Path) -> None:
    splits = {"train": [clean_scene("a", 1), clean_scene("b", 1)]}
    root = write_root(tmp_path, splits, with_map=False)
    for work in (verify_root, root_stats):
        calls: list[tuple[int, int, str]] = []
        work([root], progress=lambda *call, calls=calls: calls.append(call))
        assert calls == [(0, 2, "a"), (1, 2, "b"), (2, 2, "")]


@pytest.mark.parametrize("look", [verify_root, root_stats])
def test_missing_and_empty_folders(tmp_path: Path, look: object) -> None:
    assert callable(look)
    with pytest.raises(UserError, match="no such folder"):
        look([tmp_path / "none"])
    with pytest.raises(UserError, match="no scenes found"):
        look([tmp_path])


# -------------------------------------------------------------------------------------- statistics


def test_statistics_by_hand(tmp_path: Path) -> None:
    agents = (
        MadeAgent(1, (0.0, 0.0, 2.0), without_cloud=frozenset({3, 4})),
        MadeAgent(-1, (10.0, 0.0, 4.0), roll_deg=3.0),
    )
    objects = (
        MadeObject(1, (5.0, 5.0, 0.8), velocity_mps=(6.0, 8.0)),
        MadeObject(2, (-9.0, 5.0, 0.8), labelled_by=(1,)),
        MadeObject(3, (5.0, -9.0, 0.8), velocity_mps=(3.0, 0.0), last_frame=9),
        MadeObject(4, (0.0, 9.0, 0.9), (1.0, 0.0), (0.6, 0.6, 1.7), 0.0, "Pedestrian", 5, 14),
    )
    long = MadeScene("a", agents, objects, frames=20)
    short = MadeScene("b", agents[:1], objects[1:2], frames=5)
    root = write_root(tmp_path, {"train": [long], "val": [short]}, with_map=False)
    stats = root_stats([root], cloud_stride=5)

    train, validate = stats.splits
    assert dataclasses.astuple(train) == ("train", 1, 1, 1, 38, 2, 1.9)
    assert dataclasses.astuple(validate) == ("validate", 1, 1, 0, 3, 2, 0.4)

    car, pedestrian = stats.classes
    assert (car.name, pedestrian.name) == ("Car", "Pedestrian")
    # Ids 1, 2, 3 of scene a and 2 of scene b.
    assert car.objects == 4
    assert car.boxes == 2 * 20 + 20 + 2 * 10 + 5
    assert car.parked == pytest.approx(0.5)
    # 15 steps at 10 m/s, 5 at 3 m/s.
    assert car.speed_mps == pytest.approx((10.0, 10.0))
    # Seen for one second at 1 m/s: its net way of 0.9 m is a standing one.
    assert (pedestrian.objects, pedestrian.boxes, pedestrian.parked) == (1, 20, 1.0)
    assert pedestrian.speed_mps == (0.0, 0.0)
    # 27 points are written into each box; ground may add a few below.
    assert car.points_per_box[1] == 27.0
    assert car.empty_boxes == 0.0

    text = stats.table()
    assert "Pedestrian" in text
    assert json.loads(json.dumps(stats.to_json()))["classes"][0]["objects"] == 4


def test_boxes_without_points_are_counted(tmp_path: Path) -> None:
    made = clean_scene(frames=1)
    root = write_root(tmp_path, {"train": [made]}, with_map=False)
    for agent in made.agents:
        path = root / "train" / NAME / str(agent.agent_id) / "000000.bin"
        path.write_bytes(np.array([60.0, 60.0, 0.0, 0.0], dtype="<f4").tobytes())
    for one in root_stats([root]).classes:
        assert one.empty_boxes == 1.0
        assert one.points_per_box == (0.0, 0.0, 0.0)


def test_statistics_of_a_root_without_objects(tmp_path: Path) -> None:
    bare = MadeScene("s", (MadeAgent(1, (0, 0, 2)),), (), 3)
    stats = root_stats([write_root(tmp_path, {"train": [bare]}, with_map=False)])
    assert stats.classes == ()
    assert stats.splits[0].agent_frames == 3
    assert "train" in stats.table()
