"""Scene -> writer -> reader gives the same frames, in every layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from turbotrain_plugin.config import DataConfig
from turbotrain_plugin.config.keys import CHOICES
from turbotrain_plugin.data.formats import FORMATS, open_root
from turbotrain_plugin.data.formats.writers import WRITERS, V2V4RealWriter, V2XPnPSeqWriter
from turbotrain_plugin.geometry.poses import pose_to_matrix
from turbotrain_plugin.structures import AgentFrame

SCENES = {"opv2v": "2021_08_16_22_26_54"}
FRAMES = (3, 4, 5, 8)


def random_frame(agent_id: int, frame: int, objects: int = 5) -> AgentFrame:
    """Anything the dataclass can hold: far from the origin, tilted, all headings."""
    rng = np.random.default_rng([agent_id + 100, frame])
    boxes = rng.normal([2500, -1700, 30, 0, 0, 0, 0], 60, (objects, 7))
    boxes[:, 3:6] = rng.uniform(0.3, 12, (objects, 3))
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, objects)
    pose = [2500 + rng.normal(), -1700.25, 30.1, *rng.normal(0, [5, 170, 5])]
    return AgentFrame(
        agent_id=agent_id,
        is_infrastructure=agent_id < 0,
        frame=frame,
        world_SE3_lidar=pose_to_matrix(pose),
        object_ids=rng.permutation(10_000)[:objects].astype(np.int64),
        world_boxes=boxes,
        roll_pitch_rad=rng.normal(0, 0.1, (objects, 2)),
        raw_types=tuple(rng.choice(["Car", "Truck", "Pedestrian"], objects).tolist()),
    )


def random_cloud(agent_id: int, frame: int) -> NDArray[np.float32]:
    rng = np.random.default_rng([agent_id + 200, frame])
    points = rng.normal(0, 40, (50, 4)).astype(np.float32)
    points[:, 3] = rng.uniform(0, 1, 50)
    return points


def assert_same(read: AgentFrame, made: AgentFrame) -> None:
    assert (read.agent_id, read.frame) == (made.agent_id, made.frame)
    assert read.is_infrastructure == made.is_infrastructure
    np.testing.assert_allclose(read.world_SE3_lidar, made.world_SE3_lidar, atol=1e-9)
    np.testing.assert_array_equal(read.object_ids, made.object_ids)
    np.testing.assert_allclose(read.world_boxes, made.world_boxes, atol=1e-9)
    np.testing.assert_allclose(read.roll_pitch_rad, made.roll_pitch_rad, atol=1e-9)
    assert read.raw_types == made.raw_types


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_round_trip(tmp_path: Path, name: str) -> None:
    writer = WRITERS[name]()
    agents = (1, 2, -1, -2) if writer.roadside_units else (0, 1)
    folder = tmp_path / "train" / SCENES.get(name, "scene")
    for agent_id in agents:
        for frame in FRAMES:
            cloud = None if frame == 5 else random_cloud(agent_id, frame)
            writer.write_frame(folder, random_frame(agent_id, frame), cloud)
    reader = open_root([tmp_path], name)
    (scene,) = reader.scenes
    assert tuple(scene.agents) == agents
    for agent_id in agents:
        assert scene.agents[agent_id].label_frames == FRAMES
        assert scene.agents[agent_id].cloud_frames == (3, 4, 8)
        for frame in FRAMES:
            made = random_frame(agent_id, frame)
            assert_same(reader.read_frame(scene, agent_id, frame), made)
        points = reader.read_points(scene, agent_id, 4)
        truth = random_cloud(agent_id, 4)
        np.testing.assert_array_equal(points[:, :3], truth[:, :3])
        exact = writer.cloud == "bin"
        np.testing.assert_allclose(
            points[:, 3], truth[:, 3], atol=0.0 if exact else 0.5 / 255 + 1e-7
        )


@pytest.mark.parametrize(
    ("name", "file"), [("v2xpnp_seq", "000004"), ("v2v4real", "000004"), ("v2xset", "000008")]
)
def test_file_numbers(tmp_path: Path, name: str, file: str) -> None:
    """Ticks of 0.05 s where the data set was simulated."""
    WRITERS[name]().write_frame(tmp_path, random_frame(1, 4), None)
    assert [path.name for path in (tmp_path / "1").iterdir()] == [f"{file}.yaml"]


@pytest.mark.parametrize("name", ["v2xpnp_seq", "opv2v", "v2v4real"])
def test_what_is_written_is_detected(tmp_path: Path, name: str) -> None:
    WRITERS[name]().write_frame(
        tmp_path / "train" / "scene", random_frame(1, 0), random_cloud(1, 0)
    )
    assert type(open_root([tmp_path])) is FORMATS[name]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_without_objects(tmp_path: Path, name: str) -> None:
    WRITERS[name]().write_frame(tmp_path / "s", random_frame(1, 0, objects=0), None)
    (path,) = (tmp_path / "s" / "1").iterdir()
    assert_same(FORMATS[name].read_label_file(path, 1, 0), random_frame(1, 0, objects=0))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_names_and_numbers_that_yaml_could_misread(tmp_path: Path, name: str) -> None:
    made = random_frame(1, 0, objects=4)
    kinds = ("null", "1e5", 'a: "b"', "Größe #1")
    boxes = made.world_boxes.copy()
    boxes[:, :3] *= 1e-7
    odd = AgentFrame(
        1, False, 0, pose_to_matrix([1e-5, -1e-9, 0, 0, 0, 0]), made.object_ids, boxes,
        made.roll_pitch_rad * 1e-6, kinds,
    )  # fmt: skip
    WRITERS[name]().write_frame(tmp_path / "s", odd, None)
    (path,) = (tmp_path / "s" / "1").iterdir()
    assert_same(FORMATS[name].read_label_file(path, 1, 0), odd)


def test_plain_yaml_readers_see_numbers() -> None:
    """Hosts without a patched float pattern take 1e-05 for a text."""
    content = yaml.safe_load(V2XPnPSeqWriter().label_text(random_frame(-1, 0)))
    assert content["infra"] is True
    assert all(type(v) is float for v in content["lidar_pose"])
    for item in content["vehicles"].values():
        for key in ("angle", "center", "extent", "location"):
            assert all(type(v) is float for v in item[key])


def test_the_full_loader_of_hosts_reads_the_matrix() -> None:
    """Ours never does; theirs would, and finds the same bits (names of NumPy 1 resolve in both)."""
    frame = random_frame(0, 0)
    text = V2V4RealWriter().label_text(frame)
    content = yaml.unsafe_load(text)  # written by ourselves a line ago
    assert isinstance(content["lidar_pose"], np.ndarray)
    np.testing.assert_array_equal(content["lidar_pose"], frame.world_SE3_lidar)
    assert content["true_ego_pos"] is content["lidar_pose"]


def test_negative_ids_are_no_shared_ones(tmp_path: Path) -> None:
    made = random_frame(1, 0, objects=1)
    negative = AgentFrame(
        1, False, 0, made.world_SE3_lidar, np.array([-1]), made.world_boxes,
        made.roll_pitch_rad, made.raw_types,
    )  # fmt: skip
    text = V2V4RealWriter().label_text(negative)
    assert "ass_id" not in text
    path = tmp_path / "000000.yaml"
    path.write_text(text)
    assert_same(FORMATS["v2v4real"].read_label_file(path, 1, 0), negative)


def test_tables_agree() -> None:
    field = next(f for f in DataConfig.__dataclass_fields__.values() if f.name == "format")
    assert set(field.metadata[CHOICES]) == {"auto", *FORMATS} == {"auto", *WRITERS}
