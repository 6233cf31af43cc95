"""Label files, clouds, scenes and maps of the V2XPnP-Seq layout, against hand-made files."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.helpers.made_scenes import (
    MadeAgent,
    MadeScene,
    junction_scene,
    lidar_points,
    straight_map,
    visible_objects,
    world_box,
    world_SE3_lidar,
    write_root,
)
from turbotrain_plugin.data.formats.v2xpnp_seq import (
    V2XPnPSeqReader,
    read_cloud,
    read_label_frame,
)
from turbotrain_plugin.data.vector_map import write_map
from turbotrain_plugin.structures import AgentFrame, UserError

POSE = "lidar_pose: [1, 2, 3, 0, 0, 0]\n"
CAR = "location: [10, 20, 1], center: [0, 0, 0], angle: [0, 90, 0], extent: [2, 1, 0.5]"


def labels(tmp_path: Path, text: str, agent_id: int = 1, frame: int = 7) -> AgentFrame:
    path = tmp_path / "000007.yaml"
    path.write_text(text)
    return read_label_frame(path, agent_id, frame)


# ----------------------------------------------------------------------------------------- labels


def test_label_file(tmp_path: Path) -> None:
    read = labels(tmp_path, f"{POSE}vehicles:\n  5: {{{CAR}, obj_type: Van}}\n", agent_id=-2)
    assert (read.agent_id, read.is_infrastructure, read.frame) == (-2, True, 7)
    assert read.object_ids.tolist() == [5]
    assert read.raw_types == ("Van",)
    np.testing.assert_allclose(read.world_boxes, [[10, 20, 1, 4, 2, 1, np.pi / 2]])
    np.testing.assert_array_equal(read.world_SE3_lidar[:3, 3], [1, 2, 3])
    for array in (read.world_SE3_lidar, read.world_boxes, read.roll_pitch_rad):
        assert array.dtype == np.float64


def test_pose_order_and_signs(tmp_path: Path) -> None:
    """x, y, z, roll, yaw, pitch in degrees; R = Rz(yaw) Ry(-pitch) Rx(-roll)."""
    read = labels(tmp_path, "lidar_pose: [0, 0, 0, 2, 70, -5]\nvehicles: {}\n")
    expected = Rotation.from_euler("ZYX", [70, 5, -2], degrees=True).as_matrix()
    np.testing.assert_allclose(read.world_SE3_lidar[:3, :3], expected, atol=1e-12)


def test_poses_keep_double_precision_far_from_the_origin(tmp_path: Path) -> None:
    read = labels(tmp_path, "lidar_pose: [500000.0001, -4000000.0002, 60, 0, 0, 0]\nvehicles: {}\n")
    assert read.world_SE3_lidar[0, 3] == 500000.0001
    assert read.world_SE3_lidar[1, 3] == -4000000.0002


def test_center_is_added_but_not_rotated(tmp_path: Path) -> None:
    moved = CAR.replace("center: [0, 0, 0]", "center: [1, 0.5, 0.7]")
    read = labels(tmp_path, f"{POSE}vehicles:\n  5: {{{moved}}}\n")
    np.testing.assert_allclose(read.world_boxes[0, :3], [11, 20.5, 1.7])


@pytest.mark.parametrize("given", ["", "center: null,"])
def test_center_is_optional(tmp_path: Path, given: str) -> None:
    text = CAR.replace("center: [0, 0, 0],", given)
    read = labels(tmp_path, f"{POSE}vehicles:\n  5: {{{text}}}\n")
    np.testing.assert_allclose(read.world_boxes[0, :3], [10, 20, 1])


def test_object_angles(tmp_path: Path) -> None:
    tilted = CAR.replace("angle: [0, 90, 0]", "angle: [1, 350, -2]")
    read = labels(tmp_path, f"{POSE}vehicles:\n  5: {{{tilted}}}\n")
    assert read.world_boxes[0, 6] == pytest.approx(np.deg2rad(-10))
    np.testing.assert_allclose(read.roll_pitch_rad, np.deg2rad([[1, -2]]))


def test_keys_as_numbers_and_texts(tmp_path: Path) -> None:
    text = (
        f"{POSE}vehicles:\n  12: {{{CAR}}}\n  '-3': {{{CAR}}}\n  \"9007199254740993\": {{{CAR}}}\n"
    )
    read = labels(tmp_path, text)
    assert read.object_ids.tolist() == [12, -3, 9007199254740993]
    assert read.raw_types == ("Car", "Car", "Car")


def test_floats_with_exponents(tmp_path: Path) -> None:
    small = CAR.replace("angle: [0, 90, 0]", "angle: [1e-05, 90, -2E-6]")
    read = labels(tmp_path, f"{POSE}vehicles:\n  5: {{{small}}}\n")
    np.testing.assert_allclose(read.roll_pitch_rad, np.deg2rad([[1e-05, -2e-6]]))


@pytest.mark.parametrize("given", ["", "vehicles: null\n", "vehicles: {}\n", "vehicles: []\n"])
def test_no_objects(tmp_path: Path, given: str) -> None:
    read = labels(tmp_path, POSE + given)
    assert read.object_ids.shape == (0,)
    assert read.object_ids.dtype == np.int64
    assert read.world_boxes.shape == (0, 7)
    assert read.roll_pitch_rad.shape == (0, 2)
    assert read.raw_types == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("extent: [2, 1, 0.5]", "extent: [2, 0, 0.5]", "object 5: extent .* above 0"),
        ("extent: [2, 1, 0.5]", "extent: [2, -1, 0.5]", "object 5: extent .* above 0"),
        ("extent: [2, 1, 0.5]", "extent: [2, .nan, 1]", "object 5: extent must hold finite"),
        ("extent: [2, 1, 0.5]", "extent: [.inf, 1, 1]", "object 5: extent must hold finite"),
        ("extent: [2, 1, 0.5]", "extent: [2, 1]", "object 5: extent must be a list of 3"),
        ("extent: [2, 1, 0.5]", "x: 1", "object 5: extent must be .* Found nothing"),
        ("location: [10, 20, 1]", "location: [10, .nan, 1]", "object 5: location must hold finite"),
        ("location: [10, 20, 1]", "location: {x: 1}", "object 5: location must be a list"),
        ("angle: [0, 90, 0]", "angle: [0, north, 0]", "object 5: angle must hold finite"),
        ("angle: [0, 90, 0]", "angle: [0, true, 0]", "object 5: angle must hold finite"),
        ("center: [0, 0, 0]", "center: [0, .inf, 0]", "object 5: center must hold finite"),
        ("center: [0, 0, 0]", f"center: [0, 1{'0' * 400}, 0]", "object 5: center must hold finite"),
    ],
)
def test_broken_objects_name_file_and_object(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = f"{POSE}vehicles:\n  4: {{{CAR}}}\n  5: {{{CAR.replace(old, new)}}}\n"
    with pytest.raises(UserError, match=rf"000007\.yaml: {message}"):
        labels(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vehicles: {}\n", r"lidar_pose must be a list of 6 numbers\. Found nothing"),
        ("lidar_pose: [1, 2, 3]\n", "lidar_pose must be a list of 6 numbers"),
        ("lidar_pose: [1, 2, 3, 0, .nan, 0]\n", "lidar_pose must hold finite"),
        ("lidar_pose: [[1, 0, 0, 0]]\n", "lidar_pose must be a list of 6 numbers"),
        (f"{POSE}vehicles: [1]\n", "vehicles must map"),
        (f"{POSE}vehicles: {{a7: {{{CAR}}}}}\n", "object id 'a7' is not a whole number"),
        (f"{POSE}vehicles: {{1.5: {{{CAR}}}}}\n", "object id 1.5 is not"),
        (f"{POSE}vehicles: {{true: {{{CAR}}}}}\n", "object id True is not"),
        (f"{POSE}vehicles: {{{2**63}: {{{CAR}}}}}\n", "is not a whole number"),
        (f"{POSE}vehicles: {{5: {{{CAR}}}, '5': {{{CAR}}}}}\n", "given twice"),
        (f"{POSE}vehicles: {{5: 3}}\n", "object 5: must be a mapping"),
    ],
)
def test_broken_label_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"000007\.yaml: .*{message}"):
        labels(tmp_path, text)


# ----------------------------------------------------------------------------------------- clouds


def test_cloud(tmp_path: Path) -> None:
    points = np.arange(20, dtype="<f4").reshape(5, 4)
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    read = read_cloud(tmp_path / "a.bin")
    np.testing.assert_array_equal(read, points)
    assert read.dtype == np.float32
    assert read.flags.writeable


def test_rows_without_a_position_are_dropped(tmp_path: Path) -> None:
    points = np.ones((6, 4), dtype="<f4")
    points[1, 0] = points[2, 1] = np.nan
    points[3, 2] = np.inf
    points[4, 3] = np.nan
    (tmp_path / "a.bin").write_bytes(points.tobytes())
    read = read_cloud(tmp_path / "a.bin")
    # The position counts; an unknown intensity becomes 0.
    np.testing.assert_array_equal(read, [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]])


def test_empty_cloud(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    assert read_cloud(tmp_path / "a.bin").shape == (0, 4)


@pytest.mark.parametrize("size", [1, 15, 17, 20, 1000])
def test_truncated_cloud(tmp_path: Path, size: int) -> None:
    (tmp_path / "000112.bin").write_bytes(b"\0" * size)
    with pytest.raises(UserError, match=rf"000112\.bin: truncated, its {size} bytes .* 16"):
        read_cloud(tmp_path / "000112.bin")


def test_missing_cloud(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin: cannot be read"):
        read_cloud(tmp_path / "a.bin")


# ------------------------------------------------------------------------------------------ scenes


def test_frames_are_those_with_both_files(tmp_path: Path) -> None:
    agents = (
        MadeAgent(1, (0, 0, 2), without_cloud=frozenset({2}), without_labels=frozenset({5, 6})),
        MadeAgent(-1, (9, 0, 4), without_cloud=frozenset(range(12))),
    )
    root = write_root(tmp_path, {"train": [MadeScene("s", agents, ())]}, with_map=False)
    scene = V2XPnPSeqReader.index(root / "train" / "s")
    assert scene.agents[1].cloud_frames == (0, 1, 3, 4, 7, 8, 9, 10, 11)
    assert scene.agents[1].label_frames == (0, 1, 2, 3, 4, 7, 8, 9, 10, 11)
    assert scene.agents[-1].cloud_frames == ()
    assert scene.agents[-1].label_frames == tuple(range(12))
    assert scene.agents[1].has_labels(2)
    assert not scene.agents[1].has_cloud(2)
    assert not scene.agents[1].has_labels(5)
    assert not scene.agents[1].has_labels(99)


def test_foreign_files_are_passed_over(tmp_path: Path) -> None:
    root = write_root(tmp_path, {"train": [junction_scene("s", frames=2)]}, with_map=False)
    agent = root / "train" / "s" / "1"
    for name in (
        "000001_additional.yaml",
        "additional_000002.yaml",
        "000003_camera_gt.yaml",
        "000004.pcd",
        "000005_cam1.jpeg",
        "5.yaml",
        "notes.yaml",
        "000006.yaml.part",
    ):
        (agent / name).write_text("x")
    (root / "train" / "s" / "synthetic_meta.json").write_text("{}")
    for folder in ("images", "01", ".git", "-0", "1a"):
        (root / "train" / "s" / folder).mkdir()
    scene = V2XPnPSeqReader.index(root / "train" / "s")
    assert list(scene.agents) == [1, 2, -1, -2]
    assert scene.agents[1].label_frames == (0, 1)


def test_agents_by_kind_and_number(tmp_path: Path) -> None:
    agents = tuple(MadeAgent(n, (0, 0, 2)) for n in (10, -10, 2, -2, 0))
    write_root(tmp_path, {"val": [MadeScene("s", agents, (), frames=1)]}, with_map=False)
    scene = V2XPnPSeqReader.index(tmp_path / "val" / "s")
    assert list(scene.agents) == [0, 2, 10, -2, -10]
    assert scene.has_infrastructure
    assert scene.split == "validate"


# ------------------------------------------------------------------------------------------ reader


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    junction = junction_scene("2023-01-01-00-00-00_1_0", frames=6)
    corridor = junction_scene("2023-01-02-00-00-00_1_0", frames=4, infrastructure=False)
    root: Path = tmp_path_factory.mktemp("root")
    return write_root(root, {"train": [junction, corridor]})


def test_reader_gives_back_what_was_written(root: Path) -> None:
    reader = V2XPnPSeqReader([root])
    made = junction_scene("2023-01-01-00-00-00_1_0", frames=6)
    scene = reader.scenes[0]
    assert scene.name == made.name
    for agent in made.agents:
        for frame in range(6):
            read = reader.read_frame(scene, agent.agent_id, frame)
            objects = visible_objects(made, agent.agent_id, frame)
            assert read.object_ids.tolist() == [one.object_id for one in objects]
            assert read.raw_types == tuple(one.raw_type for one in objects)
            expected = [world_box(one, frame) for one in objects]
            np.testing.assert_allclose(read.world_boxes, expected, atol=1e-9)
            world = world_SE3_lidar(agent, frame)
            np.testing.assert_allclose(read.world_SE3_lidar, world, atol=1e-9)
            points = reader.read_points(scene, agent.agent_id, frame)
            np.testing.assert_array_equal(points, lidar_points(made, agent, frame))


def test_frame_that_is_not_there(root: Path) -> None:
    reader = V2XPnPSeqReader([root])
    with pytest.raises(ValueError, match=r"`frame` .* Found 6 of agent 1"):
        reader.read_frame(reader.scenes[0], 1, 6)


def test_damaged_label_file_is_named_when_the_scene_is_read(tmp_path: Path, root: Path) -> None:
    shutil.copytree(root / "train", tmp_path / "train")
    reader = V2XPnPSeqReader([tmp_path / "train"])
    bad = reader.scenes[0].folder / "2" / "000003.yaml"
    bad.write_text("lidar_pose: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"/2/000003\.yaml: refused"):
        reader.read_frame(reader.scenes[0], 1, 0)


def test_memory_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turbotrain_plugin.data.formats.sequence._SCENES_IN_MEMORY", 1)
    reader = V2XPnPSeqReader([root])
    first, second = reader.scenes
    before = reader.read_frame(first, 1, 0)
    reader.read_frame(second, 1, 0)
    assert list(reader._labels) == [second.folder]
    np.testing.assert_array_equal(reader.read_frame(first, 1, 0).world_boxes, before.world_boxes)


# -------------------------------------------------------------------------------------------- maps


def test_map_by_the_agents_of_the_scene(root: Path) -> None:
    reader = V2XPnPSeqReader([root / "train"])
    junction, corridor = (reader.read_map(scene) for scene in reader.scenes)
    assert junction is not None
    assert corridor is not None
    assert junction.lanes[0].polyline[0, 1] == 0.0
    assert corridor.lanes[0].polyline[0, 1] == 100.0
    assert reader.read_map(reader.scenes[0]) is junction  # read once


def test_the_only_map_is_used_for_all(tmp_path: Path) -> None:
    write_root(tmp_path, {"val": [junction_scene("s", frames=1)]})
    (tmp_path / "map" / "v2x_intersection_vector_map.pkl").unlink()
    reader = V2XPnPSeqReader([tmp_path])
    found = reader.read_map(reader.scenes[0])
    assert found is not None
    assert found.lanes[0].polyline[0, 1] == 100.0


def test_no_map(tmp_path: Path) -> None:
    write_root(tmp_path, {"val": [junction_scene("s", frames=1)]}, with_map=False)
    reader = V2XPnPSeqReader([tmp_path])
    assert reader.read_map(reader.scenes[0]) is None
    (tmp_path / "map").mkdir()
    assert reader.read_map(reader.scenes[0]) is None


def test_maps_that_do_not_say_their_area(tmp_path: Path) -> None:
    write_root(tmp_path, {"val": [junction_scene("s", frames=1)]}, with_map=False)
    (tmp_path / "map").mkdir()
    for name in ("a.pkl", "b.pkl"):
        write_map(tmp_path / "map" / name, straight_map(0.0))
    reader = V2XPnPSeqReader([tmp_path])
    with pytest.raises(UserError, match=r"one file with 'intersection' .* Found a\.pkl, b\.pkl"):
        reader.read_map(reader.scenes[0])


def test_unequal_frame_sets(tmp_path: Path) -> None:
    made = junction_scene("s", frames=5)
    late = dataclasses.replace(
        made.agents[1], without_cloud=frozenset({0, 1}), without_labels=frozenset({0, 1})
    )
    made = dataclasses.replace(made, agents=(made.agents[0], late))
    reader = V2XPnPSeqReader([write_root(tmp_path, {"train": [made]})])
    scene = reader.scenes[0]
    assert scene.agents[1].cloud_frames == (0, 1, 2, 3, 4)
    assert scene.agents[2].cloud_frames == (2, 3, 4)
    np.testing.assert_allclose(  # by frame, not by place in the list
        reader.read_frame(scene, 2, 2).world_boxes[0], world_box(made.objects[0], 2)
    )
