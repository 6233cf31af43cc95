"""OPV2V and V2XSet: left-handed files against right-handed truth, file numbers in steps of two."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_formats import OPV2V_SCENE, opv2v_labels, write_opv2v
from tests.helpers.made_scenes import (
    MadeScene,
    junction_scene,
    lidar_points,
    rotation,
    visible_objects,
    world_box,
    world_SE3_lidar,
)
from turbotrain_plugin.data.formats import FORMATS, open_root
from turbotrain_plugin.data.formats.opv2v import OPV2VReader
from turbotrain_plugin.data.inspect import verify_root
from turbotrain_plugin.structures import UserError


def made_scene(frames: int = 4) -> MadeScene:
    return junction_scene(OPV2V_SCENE, frames)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_opv2v(tmp_path / "train", made_scene())
    return tmp_path


def test_mirroring_turns_roll_and_yaw_round_by_brute_force() -> None:
    """M R(roll, yaw, pitch) M = R(-roll, -yaw, pitch), on which everything here rests."""
    mirror = np.diag([1.0, -1.0, 1.0])
    for roll, yaw, pitch in ((3, 40, -7), (-20, 170, 11), (0, -90, 5)):
        expected = mirror @ rotation(roll, yaw, pitch) @ mirror
        np.testing.assert_allclose(rotation(-roll, -yaw, pitch), expected, atol=1e-12)


def test_frames_are_the_right_handed_truth(root: Path) -> None:
    reader, made = OPV2VReader([root]), made_scene()
    (scene,) = reader.scenes
    assert list(scene.agents) == [1, 2, -1, -2]
    for agent in made.agents:
        frames = scene.agents[agent.agent_id].cloud_frames
        assert frames == (34, 35, 36, 37)  # 000068, 000070, ... on the grid of 10 Hz
        for number, frame in enumerate(frames):
            read = reader.read_frame(scene, agent.agent_id, frame)
            world = world_SE3_lidar(agent, number)
            np.testing.assert_allclose(read.world_SE3_lidar, world, atol=1e-9)
            assert np.linalg.det(read.world_SE3_lidar[:3, :3]) == pytest.approx(1)
            objects = visible_objects(made, agent.agent_id, number)
            assert read.object_ids.tolist() == [one.object_id for one in objects]
            assert set(read.raw_types) <= {"Car"}
            expected = [world_box(one, number) for one in objects]
            np.testing.assert_allclose(read.world_boxes, expected, atol=1e-9)
            points = reader.read_points(scene, agent.agent_id, frame)
            truth = lidar_points(made, agent, number)
            np.testing.assert_array_equal(points[:, :3], truth[:, :3])
            np.testing.assert_allclose(points[:, 3], truth[:, 3], atol=0.5 / 255 + 1e-6)


def test_points_lie_in_their_boxes(root: Path) -> None:
    """The check a wrong sign of y, yaw or roll would fail, whatever the helper believes."""
    reader = OPV2VReader([root])
    (scene,) = reader.scenes
    for agent_id in scene.agents:
        read = reader.read_frame(scene, agent_id, 34)
        own = reader.read_points(scene, agent_id, 34)[:, :3].astype(float)
        world = own @ read.world_SE3_lidar[:3, :3].T + read.world_SE3_lidar[:3, 3]
        for box in read.world_boxes:
            turned = (world - box[:3]) @ rotation(0.0, np.rad2deg(box[6]), 0.0)
            assert (np.abs(turned) <= box[3:6] / 2).all(axis=1).sum() >= 27


def test_agents_agree_on_the_ground(root: Path) -> None:
    report = verify_root([root], cloud_stride=1)
    assert report.ok, report.findings
    assert report.ground_gap_m == pytest.approx(0.0, abs=1e-3)
    assert report.label_steps == (1,)
    assert report.clouds_read == 16


def test_tilted_boxes_turn_roll_and_yaw(tmp_path: Path) -> None:
    path = tmp_path / "000068.yaml"
    path.write_text(
        "lidar_pose: [1, 2, 3, 10, 20, 30]\nvehicles:\n  7: {location: [4, 5, 6], "
        "center: [0.5, 0.25, 0.7], angle: [1, 2, 3], extent: [2, 1, 0.5]}\n"
    )
    read = OPV2VReader.read_label_file(path, 641, 34)
    expected = [4.5, -5.25, 6.7, 4, 2, 1, np.deg2rad(-2)]
    np.testing.assert_allclose(read.world_boxes, [expected])
    np.testing.assert_allclose(read.roll_pitch_rad, np.deg2rad([[-1, 3]]))
    np.testing.assert_allclose(read.world_SE3_lidar[:3, :3], rotation(-10, -20, 30), atol=1e-12)
    np.testing.assert_array_equal(read.world_SE3_lidar[:3, 3], [1, -2, 3])


def test_heading_straight_back_stays_in_range(tmp_path: Path) -> None:
    path = tmp_path / "000068.yaml"
    path.write_text(
        "lidar_pose: [0, 0, 0, 0, 0, 0]\nvehicles:\n  7: {location: [4, 5, 6], "
        "angle: [0, -180, 0], extent: [2, 1, 0.5]}\n"
    )
    assert OPV2VReader.read_label_file(path, 641, 34).world_boxes[0, 6] == pytest.approx(-np.pi)


# ------------------------------------------------------------------------------------ file numbers


def frames_of(folder: Path) -> dict[int, tuple[int, ...]]:
    scene = OPV2VReader.index(folder)
    return {agent_id: found.label_frames for agent_id, found in scene.agents.items()}


@pytest.mark.parametrize("first", [0, 68, 69])
def test_offsets_differ_per_scene(tmp_path: Path, first: int) -> None:
    folder = write_opv2v(tmp_path, made_scene(3), first_stem=first)
    start = first // 2
    assert frames_of(folder)[1] == (start, start + 1, start + 2)
    index = OPV2VReader.index(folder)
    assert index.file(1, start + 1, "yaml").name == f"{first + 2:06d}.yaml"
    reader = OPV2VReader([tmp_path])
    assert len(reader.read_points(reader.scenes[0], 1, start)) > 100


def test_numbers_made_consecutive_by_somebody(tmp_path: Path) -> None:
    assert frames_of(write_opv2v(tmp_path, made_scene(3), step=1))[1] == (68, 69, 70)


def test_every_fifth_frame_keeps_its_time(tmp_path: Path) -> None:
    """A strided copy steps by ten ticks: 0.5 s, not one frame."""
    assert frames_of(write_opv2v(tmp_path, made_scene(3), step=10))[1] == (34, 39, 44)


def test_gaps_keep_their_time(tmp_path: Path) -> None:
    made = made_scene(6)
    gone = frozenset({2, 3})
    late = dataclasses.replace(made.agents[0], without_cloud=gone, without_labels=gone)
    made = dataclasses.replace(made, agents=(late, *made.agents[1:]))
    found = frames_of(write_opv2v(tmp_path, made))
    assert found[1] == (34, 35, 38, 39)
    assert found[2] == tuple(range(34, 40))


def test_files_between_the_frames_are_left_out_with_a_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = root / "train" / OPV2V_SCENE / "2"
    (agent / "000069.yaml").write_text("lidar_pose: [0, 0, 0, 0, 0, 0]\n")
    with caplog.at_level(logging.WARNING):
        found = frames_of(agent.parent)
    assert found[2] == (34, 35, 36, 37)
    assert "left out 1 label file(s) between the frames of 10 Hz" in caplog.text


def test_single_frame(tmp_path: Path) -> None:
    assert frames_of(write_opv2v(tmp_path, made_scene(1)))[1] == (34,)


# ------------------------------------------------------------------------------------------ reader


def test_one_root_read_as_two_formats_gives_no_stale_labels(root: Path) -> None:
    """The cache must not hand left-handed labels to the right-handed reader."""
    right, left = FORMATS["v2xpnp_seq"]([root]), FORMATS["opv2v"]([root])
    a = right.read_frame(right.scenes[0], 1, 68)
    b = left.read_frame(left.scenes[0], 1, 34)
    np.testing.assert_array_equal(a.world_boxes[:, 1], -b.world_boxes[:, 1])
    again = FORMATS["opv2v"]([root])
    np.testing.assert_array_equal(
        again.read_frame(again.scenes[0], 1, 34).world_boxes, b.world_boxes
    )


def test_no_map(root: Path) -> None:
    reader = open_root([root], "v2xset")
    assert reader.read_map(reader.scenes[0]) is None


def test_damaged_files_are_named(root: Path) -> None:
    agent = root / "train" / OPV2V_SCENE / "1"
    (agent / "000068.yaml").write_text("lidar_pose: [1, 2]\n")
    (agent / "000068.pcd").write_bytes((agent / "000068.pcd").read_bytes()[:-100])
    reader = OPV2VReader([root])
    with pytest.raises(UserError, match=r"1/000068\.yaml: lidar_pose must be a list of 6"):
        reader.read_frame(reader.scenes[0], 1, 35)
    with pytest.raises(UserError, match=r"1/000068\.pcd: .*truncated"):
        reader.read_points(reader.scenes[0], 1, 34)
    report = verify_root([root], cloud_stride=1)
    said = [finding.message for finding in report.findings if finding.severity == "error"]
    assert any("000068.yaml" in one for one in said)
    assert any("000068.pcd" in one for one in said)


def test_helper_labels_are_left_handed() -> None:
    made = made_scene()
    agent = made.agents[1]
    labels = opv2v_labels(made, agent, 0)
    pose = labels["lidar_pose"]
    assert isinstance(pose, list)
    assert pose[1] == -10.0
