"""What real recordings are known to hold, one made file each: survived, and with the right result.

The V2XPnP-Seq and V2X-Real ones first, then OPV2V, V2XSet and V2V4Real; file numbers, identities
and NumPy text of the latter are in the tests of their readers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_clips import OPTIONS
from tests.helpers.made_formats import OPV2V_SCENE, ascii_pcd, write_opv2v, write_v2v4real
from tests.helpers.made_scenes import (
    MadeAgent,
    MadeObject,
    MadeScene,
    junction_scene,
    lidar_points,
    world_box,
    world_SE3_lidar,
    write_root,
)
from turbotrain_plugin.data.clips import build_sample, select_objects
from turbotrain_plugin.data.formats import ScenarioReader, open_root
from turbotrain_plugin.data.inspect import root_stats, verify_root
from turbotrain_plugin.structures import GroundTruth, UserError

NAME = "2023-04-04-15-58-18_30_0"
CAR = MadeAgent(1, (0.0, 0.0, 1.9))


def written(folder: Path, *objects: MadeObject, frames: int = 31, agent: MadeAgent = CAR) -> Path:
    scene = MadeScene(NAME, (agent,), objects, frames)
    return write_root(folder, {"train": [scene]}, with_map=False)


def truth_of(reader: ScenarioReader, frame: int) -> GroundTruth:
    sample = build_sample(reader, reader.scenes[0], frame, OPTIONS)
    truth = select_objects(sample, OPTIONS).truth
    assert truth is not None
    return truth


# ------------------------------------------------------------------------- V2XPnP-Seq and V2X-Real


def test_clouds_without_labels_and_labels_without_clouds(tmp_path: Path) -> None:
    """`.bin` without `.yaml` (V2X-Real #6), a missing 000112.bin (#12)."""
    agent = MadeAgent(
        1, (0.0, 0.0, 1.9), without_labels=frozenset({3}), without_cloud=frozenset({5})
    )
    root = written(tmp_path, frames=8, agent=agent)
    reader = open_root([root])
    found = reader.scenes[0].agents[1]
    assert found.cloud_frames == (0, 1, 2, 4, 6, 7)
    assert found.label_frames == (0, 1, 2, 4, 5, 6, 7)
    with pytest.raises(UserError, match=r"000005\.bin: cannot be read"):
        reader.read_points(reader.scenes[0], 1, 5)


def test_agents_with_other_frames_are_matched_by_number_not_by_place(tmp_path: Path) -> None:
    """Hosts take positions in the ego's list: agent 2 would be a second late."""
    made = junction_scene(NAME, 30)
    late = frozenset(range(10))
    second = dataclasses.replace(made.agents[1], without_cloud=late, without_labels=late)
    moving = dataclasses.replace(second, velocity_mps=(7.0, 0.0))
    made = dataclasses.replace(made, agents=(made.agents[0], moving))
    reader = open_root([write_root(tmp_path, {"train": [made]}, with_map=False)])
    sample = build_sample(reader, reader.scenes[0], 20, OPTIONS)
    assert sample.agent_ids == (1, 2)
    to_ego = np.linalg.inv(world_SE3_lidar(made.agents[0], 20))
    expected = to_ego @ world_SE3_lidar(moving, 20)
    np.testing.assert_allclose(sample.ego_SE3_agent[1, -1], expected, atol=1e-4)


def test_reversed_headings_leave_futures_as_they_are(tmp_path: Path) -> None:
    """A box turned by half a turn drives backwards; its centre, and so its future, is right."""
    car = MadeObject(7, (10.0, 0.0, 0.8), velocity_mps=(6.0, 0.0), yaw_deg=180.0)
    truth = truth_of(open_root([written(tmp_path, car)]), 10)
    assert abs(truth.boxes[0, 6]) == pytest.approx(np.pi)
    np.testing.assert_allclose(truth.futures[0, :, 0], [19, 22, 25, 28], atol=1e-4)


def test_noisy_parked_cars_are_parked(tmp_path: Path) -> None:
    """More than 12 m of path and 1.3 m of displacement: standing, whatever its 10 Hz speed says."""
    root = written(tmp_path, MadeObject(7, (10.0, 0.0, 0.8)), frames=31)
    rng = np.random.default_rng(1)
    steps = rng.normal(0.0, 0.5, 31)
    steps[[0, 30]] = 0.0, 1.3
    for frame, step in enumerate(steps):
        path = root / "train" / NAME / "1" / f"{frame:06d}.yaml"
        path.write_text(path.read_text().replace("- 10.0", f"- {10 + step:.6f}"))
    assert np.abs(np.diff(steps)).sum() > 12
    (car,) = root_stats([root]).classes
    assert (car.objects, car.parked) == (1, 1.0)


def with_gap(folder: Path, first: int, last: int) -> Path:
    """A car of 6 m/s of which the labels between two frames are missing."""
    parts = (
        MadeObject(7, (10.0, 0.0, 0.8), (6.0, 0.0), last_frame=first),
        MadeObject(7, (10.0, 0.0, 0.8), (6.0, 0.0), first_frame=last),
    )
    return written(folder, *parts)


def test_short_gaps_of_a_track_are_closed(tmp_path: Path) -> None:
    truth = truth_of(open_root([with_gap(tmp_path, 13, 17)]), 10)
    assert truth.future_valid.all()
    np.testing.assert_allclose(truth.futures[0, :, 0], [19, 22, 25, 28], atol=1e-4)


def test_long_gaps_of_a_track_stay_open(tmp_path: Path) -> None:
    truth = truth_of(open_root([with_gap(tmp_path, 12, 28)]), 10)
    assert truth.future_valid.tolist() == [[False, False, False, True]]


def test_tracks_of_two_boxes(tmp_path: Path) -> None:
    short = MadeObject(7, (10.0, 0.0, 0.8), first_frame=10, last_frame=11)
    other = MadeObject(8, (-10.0, 0.0, 0.8))
    truth = truth_of(open_root([written(tmp_path, short, other)]), 10)
    assert truth.object_ids.tolist() == [7, 8]
    assert truth.future_valid.tolist() == [[False] * 4, [True] * 4]


def test_boxes_without_a_point_and_far_from_everything(tmp_path: Path) -> None:
    root = written(
        tmp_path, MadeObject(7, (10.0, 0.0, 0.8)), MadeObject(8, (12.0, 9.0, 60.0)),
        MadeObject(9, (90_000.0, -4.0, 0.8)),
    )  # fmt: skip
    for path in (root / "train" / NAME / "1").glob("*.bin"):
        points = np.fromfile(path, dtype="<f4").reshape(-1, 4)
        points[np.abs(points[:, :3]).max(axis=1) < 40].tofile(path)
    reader = open_root([root])
    assert reader.read_frame(reader.scenes[0], 1, 10).object_ids.tolist() == [7, 8, 9]
    assert truth_of(reader, 10).object_ids.tolist() == [7]
    assert verify_root([root]).ok


def test_agents_come_by_kind_and_number(tmp_path: Path) -> None:
    """By text -1 < -2 < 1 < 10 < 2, and 10 would be the ego before 2."""
    agents = tuple(MadeAgent(number, (0, 0, 2)) for number in (10, -2, 2, -1, 1))
    root = write_root(tmp_path, {"train": [MadeScene(NAME, agents, (), 1)]}, with_map=False)
    assert list(open_root([root]).scenes[0].agents) == [1, 2, 10, -1, -2]


def test_points_that_are_no_numbers(tmp_path: Path) -> None:
    root = written(tmp_path, MadeObject(7, (10.0, 0.0, 0.8)), frames=1)
    path = root / "train" / NAME / "1" / "000000.bin"
    points = np.fromfile(path, dtype="<f4").reshape(-1, 4)
    points[::5, 1] = np.nan
    points.tofile(path)
    reader = open_root([root])
    read = reader.read_points(reader.scenes[0], 1, 0)
    np.testing.assert_array_equal(read, points[~np.isnan(points[:, 1])])


@pytest.mark.parametrize("folder", ["data", "v1.0", "a.bin"])
def test_pcd_where_the_bin_is_missing(tmp_path: Path, folder: str) -> None:
    """Beside other .bin files; a folder with a dot must not confuse the change of suffix."""
    made = MadeScene(NAME, (CAR,), (MadeObject(7, (10.0, 0.0, 0.8)),), 4)
    root = write_root(tmp_path / folder, {"train": [made]}, with_map=False)
    agent = root / "train" / NAME / "1"
    (agent / "000002.bin").unlink()
    (agent / "000002.pcd").write_text(ascii_pcd(lidar_points(made, CAR, 2)))
    reader = open_root([root])
    scene = reader.scenes[0]
    assert scene.agents[1].cloud_frames == (0, 1, 2, 3)
    packed, plain = reader.read_points(scene, 1, 2), reader.read_points(scene, 1, 1)
    np.testing.assert_array_equal(packed[:, :3], plain[:, :3])
    np.testing.assert_allclose(packed[:, 3], plain[:, 3], atol=0.5 / 255 + 1e-6)
    assert verify_root([root], cloud_stride=1).problems == ()


def test_bin_is_preferred_to_pcd(tmp_path: Path) -> None:
    root = written(tmp_path, frames=1)
    (root / "train" / NAME / "1" / "000000.pcd").write_text("damaged")
    reader = open_root([root])
    assert len(reader.read_points(reader.scenes[0], 1, 0)) == 121


def test_two_ids_of_one_car_are_told(tmp_path: Path) -> None:
    first = MadeObject(7, (10.0, 0.0, 0.8), labelled_by=(1,))
    second = dataclasses.replace(first, object_id=70, start_xyz_m=(10.2, 0.0, 0.8))
    report = verify_root([written(tmp_path, first, dataclasses.replace(second, labelled_by=(1,)))])
    assert any("objects 7 and 70 are in one place" in one.message for one in report.findings)


# ------------------------------------------------------------------------------- OPV2V and V2XSet


def test_files_beside_those_of_opv2v(tmp_path: Path) -> None:
    folder = write_opv2v(tmp_path / "test_culvercity", junction_scene(OPV2V_SCENE, 2))
    assert (folder / "data_protocol.yaml").exists()
    for name in ("000068_camera0.png", "000068_view.png", "000070_camera1.png"):
        (folder / "1" / name).touch()
    reader = open_root([tmp_path / "test_culvercity"])
    assert list(reader.scenes[0].agents) == [1, 2, -1, -2]
    assert reader.scenes[0].agents[1].cloud_frames == (34, 35)
    assert reader.scenes[0].split == "test_culvercity"


def test_agents_are_actor_ids_and_units_negative(tmp_path: Path) -> None:
    """V2XSet; the id in the other files is that of the agent's folder."""
    agents = (MadeAgent(641, (0, 0, 2)), MadeAgent(650, (9, 0, 2)), MadeAgent(-1, (3, 3, 5)))
    partner = MadeObject(650, (9.0, 0.0, 0.8), labelled_by=(641,))
    write_opv2v(tmp_path / "train", MadeScene(OPV2V_SCENE, agents, (partner,), 1))
    reader = open_root([tmp_path])
    scene = reader.scenes[0]
    assert list(scene.agents) == [641, 650, -1]
    read = reader.read_frame(scene, 641, 34)
    assert (read.object_ids.tolist(), read.raw_types) == ([650], ("Car",))
    assert reader.read_frame(scene, -1, 34).is_infrastructure


def test_an_agent_whose_cloud_does_not_fit(tmp_path: Path) -> None:
    """OpenCOOD #170: read as it is, and verification says so."""
    folder = write_opv2v(tmp_path / "train", junction_scene(OPV2V_SCENE, 2))
    for path in (folder / "2").glob("*.yaml"):
        path.write_text(path.read_text().replace("- 1.9", "- 4.4"))
    report = verify_root([tmp_path], cloud_stride=1)
    assert any("ground of two agents differs" in one.message for one in report.findings)


def test_left_handed_files_read_as_right_handed_ones_fail_the_ground_check(tmp_path: Path) -> None:
    """Why the format is never guessed: tilted sensors then disagree, level ones would not."""
    made = junction_scene(OPV2V_SCENE, 2)
    made = dataclasses.replace(
        made, agents=tuple(dataclasses.replace(a, roll_deg=8.0) for a in made.agents[:2])
    )
    folder = write_opv2v(tmp_path / "train", made, step=1)
    assert verify_root([tmp_path], cloud_stride=1).worst_ground_gap_m == pytest.approx(0, abs=0.01)
    for path in folder.glob("*/*.yaml"):
        text = path.read_text()
        for key in ("true_ego_pos", "predicted_ego_pos", "plan_trajectory"):
            text = text.replace(key, f"x{len(key)}")
        path.write_text(text + "infra: false\n")
    folder.rename(folder.with_name("scene"))
    for path in (tmp_path / "train" / "scene").glob("*/*.pcd"):
        lines = path.read_text().splitlines()
        rows = [line.split() for line in lines[11:]]
        mirrored = [f"{x} {-float(y):.9g} {z} {c}" for x, y, z, c in rows]
        path.write_text("\n".join([*lines[:11], *mirrored]) + "\n")
    gap = verify_root([tmp_path], cloud_stride=1).worst_ground_gap_m
    assert gap is not None
    assert gap > 0.5


# ----------------------------------------------------------------------------------------- V2V4Real


def test_speed_zero_and_names_of_scenes(tmp_path: Path) -> None:
    """`ego_speed` is always 0 there; nothing of ours reads it."""
    name = "testoutput_CAV_data_2022-03-17-10-43-13_1"
    agents = (MadeAgent(0, (0, 0, 2), (9.0, 0.0)), MadeAgent(1, (9, 0, 2)))
    made = MadeScene(name, agents, (MadeObject(7, (10.0, 2.0, 0.8)),), 3)
    write_v2v4real(tmp_path / "validate", made)
    reader = open_root([tmp_path], split="validate")
    scene = reader.scenes[0]
    assert (scene.name, list(scene.agents)) == (name, [0, 1])
    assert not scene.has_infrastructure
    poses = [reader.read_frame(scene, 0, frame).world_SE3_lidar[0, 3] for frame in range(3)]
    np.testing.assert_allclose(np.diff(poses), 0.9)
    expected = [world_box(made.objects[0], 0)]
    np.testing.assert_allclose(reader.read_frame(scene, 1, 0).world_boxes, expected, atol=1e-9)
