"""Files have the layout of the real data, byte for byte where readers are picky."""

from __future__ import annotations

import pickle
import pickletools
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.helpers.recordings import Recording, rotation
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.data.vector_map import read_map
from turbotrain_plugin.geometry.poses import pose_to_matrix

MAP = "map/v2x_intersection_vector_map.pkl"


def test_tree(root: Path, recording: Recording) -> None:
    assert {path.name for path in root.iterdir()} == {
        "train",
        "map",
        "synthetic.json",
        "trajectory_database_train.pkl",
        "trajectory_database_val.pkl",
        "trajectory_database_test.pkl",
    }
    assert re.fullmatch(r"\d{4}(-\d\d){5}_\d+_\d+", recording.folder.name)
    assert recording.agents == [-2, -1, 1, 2]
    for agent in recording.agents:
        names = {path.name for path in (recording.folder / str(agent)).iterdir()}
        stems = {name.split(".")[0] for name in names}
        assert all(re.fullmatch(r"\d{6}", stem) for stem in stems)
        assert {name.split(".")[1] for name in names} == {"yaml", "bin"}
        # A frame is lost whole, clouds are written at every fifth.
        assert len(stems) >= 48
        clouds = {stem for stem in stems if int(stem) % 5 == 0}
        assert {name.split(".")[0] for name in names if name.endswith("bin")} == clouds


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
def test_labels_with_the_plain_safe_loader(recording: Recording, loader: type) -> None:
    path = recording.folder / "1" / "000000.yaml"
    content = yaml.load(path.read_text(), Loader=loader)
    assert set(content) == {"lidar_pose", "true_ego_pose", "ego_speed", "infra", "vehicles"}
    assert content["true_ego_pose"] == content["lidar_pose"]
    assert all(isinstance(value, float) for value in content["lidar_pose"])
    assert content["infra"] is False
    assert len(content["vehicles"]) > 5
    for number, entry in content["vehicles"].items():
        assert isinstance(number, int)
        assert set(entry) == {"location", "center", "angle", "extent", "obj_type", "speed"}
        assert entry["center"] == [0.0, 0.0, 0.0]
        for key in ("location", "angle", "extent"):
            assert [type(value) for value in entry[key]] == [float] * 3
        assert type(entry["speed"]) is float


def test_infrastructure_is_marked(recording: Recording) -> None:
    assert recording.label(-1, recording.frames(-1)[0])["infra"] is True
    assert recording.label(-2, recording.frames(-2)[0])["ego_speed"] == 0.0


def test_pose_angles_are_in_the_order_of_the_data(recording: Recording) -> None:
    """Yaw is the fifth number: a vehicle's LiDAR looks where the vehicle goes."""
    own = recording.meta["agents"]["1"]
    for frame in recording.frames(1):
        pose = recording.label(1, frame)["lidar_pose"]
        state = recording.state(own, frame)
        assert state is not None
        np.testing.assert_allclose(pose[3:], state[3:6], atol=1e-5)
        assert np.hypot(*(np.array(pose[:2]) - state[:2])) < 0.2
        np.testing.assert_allclose(pose_to_matrix(np.array(pose))[:3, :3], rotation(*pose[3:]))


def test_vehicles_of_agents_are_labelled_by_others_only(recording: Recording) -> None:
    owners = {agent: recording.meta["agents"][str(agent)] for agent in (1, 2)}
    seen_by: dict[int, set[int]] = {number: set() for number in owners.values()}
    for view in recording.views(stride=5):
        for number in owners.values():
            if number in view.label["vehicles"]:
                seen_by[number].add(view.agent)
    for agent, number in owners.items():
        assert agent not in seen_by[number]
        assert seen_by[number]


def test_clouds(recording: Recording) -> None:
    for view in recording.views():
        assert view.points.dtype == np.float32
        assert len(view.points) > 500
        assert np.isfinite(view.points).all()
        assert view.points[:, 3].min() >= 0
        assert view.points[:, 3].max() <= 1
        assert view.ranges().max() < 101


def test_side_file_agrees_with_labels(recording: Recording) -> None:
    for view in recording.views(stride=5):
        for number, entry in view.label["vehicles"].items():
            state = recording.state(number, view.frame)
            assert state is not None
            np.testing.assert_allclose(entry["location"], state[:3], atol=2e-6)
            np.testing.assert_allclose(entry["angle"], state[3:6], atol=2e-6)
            clean = recording.meta["objects"][str(number)]
            assert entry["obj_type"] == clean["type"]
            np.testing.assert_allclose(entry["extent"], clean["half_size"], atol=2e-6)
            assert any(a <= view.frame <= b for a, b in clean["labelled"])


def test_map_has_exactly_three_globals(root: Path) -> None:
    data = (root / MAP).read_bytes()
    globals_ = {argument for op, argument, _ in pickletools.genops(data) if op.name == "GLOBAL"}
    module = "opencood.data_utils.datasets.map.map_types"
    assert globals_ == {f"{module} {name}" for name in ("Map", "Lane", "MapPoint")}
    assert not any(op.name == "STACK_GLOBAL" for op, _, _ in pickletools.genops(data))


def test_map_fits_the_traffic(root: Path, recording: Recording) -> None:
    """Driven vehicles are on driving lanes, in height too; lanes link to lanes that exist."""
    lanes = read_map(root / MAP).lanes
    names = {lane.name for lane in lanes}
    assert len(names) == len(lanes)
    assert {lane.type for lane in lanes} == {1, 2, 3, 4}
    for lane in lanes:
        assert set(lane.entry) | set(lane.exit) <= names
        step = np.linalg.norm(np.diff(lane.polyline, axis=0), axis=1)
        assert step.min() > 0.8
        assert step.max() < 1.2
        assert len(lane.boundary) == (2 * len(lane.polyline) if lane.type == 1 else 0)
    centre = np.concatenate([lane.polyline for lane in lanes if lane.type == 1])
    moving = 0
    for number, entry in recording.meta["objects"].items():
        if entry["type"] not in ("Car", "Van", "Bus", "Truck") or len(entry["states"]) == 1:
            continue
        moving += 1
        for frame in range(0, 51, 10):
            state = recording.state(int(number), frame)
            if state is not None:
                away = np.linalg.norm(centre[:, :2] - state[:2], axis=1)
                assert away.min() < 0.6
                bottom = state[2] - entry["half_size"][2]
                assert abs(centre[away.argmin(), 2] - bottom) < 0.1
    assert moving > 5


def test_map_links_lead_on(root: Path) -> None:
    """A lane that follows another begins where that ends (a pocket begins beside its lane)."""
    lanes = {lane.name: lane for lane in read_map(root / MAP).lanes}
    links = 0
    for lane in lanes.values():
        for name in lane.exit:
            if name.endswith("_3"):
                continue
            links += 1
            gap = np.linalg.norm(lane.polyline[-1] - lanes[name].polyline[0])
            assert gap < 0.6
            assert lane.name in lanes[name].entry
    assert links == 32


def test_trajectory_database(root: Path, recording: Recording) -> None:
    data = (root / "trajectory_database_train.pkl").read_bytes()
    names = [str(argument) for op, argument, _ in pickletools.genops(data) if op.name == "GLOBAL"]
    modules = {name.split()[0].replace("_core", "core") for name in names}
    assert modules <= {"collections", "numpy", "numpy.core.multiarray"}
    assert pickletools.optimize(data)[1] == 3
    (scene,) = pickle.loads(data).values()
    labelled = {n for n, entry in recording.meta["objects"].items() if entry["labelled"]}
    assert {str(number) for number in scene} == labelled
    for number, track in scene.items():
        assert track["trajectory"].shape == (51, 4)
        frames = np.nonzero(track["trajectory_mask"])[0]
        assert len(frames)
        for frame in frames[::10]:
            state = recording.state(number, int(frame))
            assert state is not None
            np.testing.assert_allclose(track["trajectory"][frame], [frame, *state[:3]])


def test_our_reader_reads_it(root: Path, recording: Recording) -> None:
    reader = open_root([root])
    (scene,) = reader.scenes
    assert set(scene.agents) == {1, 2, -1, -2}
    assert scene.agents[1].cloud_frames == tuple(recording.frames(1))
    frame = reader.read_frame(scene, 1, 0)
    own = recording.view(1, 0)
    assert set(frame.object_ids.tolist()) == set(own.label["vehicles"])
    np.testing.assert_array_equal(reader.read_points(scene, 1, 0), own.points)
    assert reader.read_map(scene) is not None
