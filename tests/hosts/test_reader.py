"""A host's data set on our reader: the same frames as the host reads, and frames it cannot read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.helpers.made_formats import OPV2V_SCENE, write_opv2v, write_v2v4real
from tests.helpers.made_readings import REAL_NAME, agents_of, broken_scene, data_set, ours
from tests.helpers.made_scenes import (
    MadeAgent,
    MadeObject,
    MadeScene,
    junction_scene,
    lidar_points,
    world_box,
    world_SE3_lidar,
    write_scene,
)
from turbotrain_plugin.data.formats import SceneIndex, open_root
from turbotrain_plugin.hosts.checkout import tree_hash
from turbotrain_plugin.hosts.frames import FrameFile, HostFrames


def centre(item: dict[str, Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.add(item["location"], item["center"])
    return found


def assert_same_frame(found: dict[str, Any], expected: dict[str, Any], *, exact: bool) -> None:
    """Compare two answers of ``retrieve_base_data``."""
    assert list(found) == list(expected)
    for name, agent in found.items():
        other = expected[name]
        assert (agent["ego"], agent["time_delay"]) == (other["ego"], other["time_delay"])
        assert agent["lidar_np"].dtype == other["lidar_np"].dtype == np.float32
        columns = 4 if exact else 3  # a .pcd has 8 bits of intensity
        assert np.array_equal(agent["lidar_np"][:, :columns], other["lidar_np"][:, :columns])
        params, theirs = agent["params"], other["params"]
        for key in ("lidar_pose", "transformation_matrix"):
            np.testing.assert_allclose(params[key], theirs[key], rtol=0, atol=1e-9)
        if exact:
            assert params["ego_speed"] == theirs["ego_speed"]
        assert list(params["vehicles"]) == list(theirs["vehicles"])
        for number, item in params["vehicles"].items():
            true = theirs["vehicles"][number]
            for left, right in (
                (
                    np.add(item["location"], item["center"]),
                    np.add(true["location"], true["center"]),
                ),
                (item["extent"], true["extent"]),
                (item["angle"], true["angle"]),
            ):
                np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)


# ------------------------------------------------------------------------------------ equal frames


@pytest.mark.parametrize("layout", ["opv2v", "v2xpnp_seq", "v2v4real"])
@pytest.mark.parametrize("late_ms", [0, 200])
def test_every_frame_is_what_the_host_reads_of_opv2v_files(
    fake_host: Path, tmp_path: Path, layout: str, late_ms: int
) -> None:
    """The scene is written in each layout by hand; the host reads its own, we read ours."""
    scene = junction_scene(OPV2V_SCENE, frames=5)
    if layout == "v2v4real":  # two cars
        scene = replace(scene, agents=scene.agents[:2])
    write_opv2v(tmp_path / "theirs" / "validate", scene)
    write = {"opv2v": write_opv2v, "v2xpnp_seq": write_scene, "v2v4real": write_v2v4real}[layout]
    write(tmp_path / "ours" / "validate", scene)
    wild: dict[str, Any] = {"wild_setting": {"async_overhead": late_ms}} if late_ms else {}
    with data_set(fake_host, tmp_path, tmp_path / "theirs", **wild) as host:
        expected = [host.retrieve_base_data(index) for index in range(len(host))]
    with data_set(fake_host, tmp_path, tmp_path / "ours", turbotrain=ours(), **wild) as made:
        assert issubclass(type(made), type(host))
        assert type(made).__name__ == type(host).__name__
        assert len(made) == len(expected) == 5
        for index, frame in enumerate(expected):
            assert_same_frame(made.retrieve_base_data(index), frame, exact=layout == "opv2v")
        late = 2 if late_ms else 0
        assert [made.retrieve_base_data(4)[a]["time_delay"] for a in ("1", "2")] == [0, late]


def test_samples_of_the_host_are_equal_and_its_files_stay(fake_host: Path, tmp_path: Path) -> None:
    scenes = [junction_scene(f"2021_08_16_22_26_5{n}", frames=3) for n in range(2)]
    for scene in scenes:
        write_opv2v(tmp_path / "validate", scene)
    before = tree_hash(fake_host)
    with data_set(fake_host, tmp_path, tmp_path) as host:
        expected = [host[index]["ego"] for index in range(len(host))]
        ends = host.len_record
    with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours()) as made:
        assert made.len_record == ends == [3, 6]
        for index, sample in enumerate(expected):
            found = made[index]["ego"]
            np.testing.assert_allclose(found["truth"], sample["truth"], rtol=0, atol=1e-9)
            assert len(found["clouds"]) == len(sample["clouds"]) == 4
            for cloud, true in zip(found["clouds"], sample["clouds"], strict=True):
                np.testing.assert_allclose(cloud, true, rtol=0, atol=1e-9)
        assert made.len_record == ends
        made.reinitialize()
        assert len(made) == 6
        assert made.len_record == ends
    assert tree_hash(fake_host) == before


# ---------------------------------------------------------------------------------- unequal frames


def test_an_agent_that_lacks_a_frame_is_not_in_it(fake_host: Path, tmp_path: Path) -> None:
    """The ego is the first by text, 10 before 2; where it lacks a frame the next vehicle leads."""
    write_scene(tmp_path / "validate", broken_scene())
    (tmp_path / "validate" / "notes.txt").write_text("stops the scan of the host")
    with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours()) as made:
        assert made.params["validate_dir"] == str(tmp_path / "validate")
        found = [agents_of(made.retrieve_base_data(index)) for index in range(len(made))]
    assert found == [
        (["10", "2", "-1", "-2"], ["10"]),
        (["10", "-1"], ["10"]),
        (["2", "-1"], ["2"]),
        (["2"], ["2"]),
        (["10", "2", "-1"], ["10"]),
        (["10", "2", "-1"], ["10"]),
    ]


def test_a_roadside_unit_leads_nowhere_but_among_its_own(fake_host: Path, tmp_path: Path) -> None:
    lost = frozenset({1})
    car, unit = MadeAgent(1, (0.0, 0.0, 2.0), without_cloud=lost), MadeAgent(-1, (5.0, 0.0, 4.0))
    write_scene(tmp_path / "validate", MadeScene("a", (car, unit), (), 3))
    write_scene(tmp_path / "validate", MadeScene("b", (unit,), (), 2))
    with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours()) as made:
        found = [agents_of(made.retrieve_base_data(index)) for index in range(len(made))]
    assert found == [(["1", "-1"], ["1"])] * 2 + [(["-1"], ["-1"])] * 2


def test_no_more_agents_than_max_cav(fake_host: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "validate", broken_scene())
    keys = {"batch_size": 1, "epoches": 1, "max_cav": 2}
    with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours(), train_params=keys) as made:
        found = [list(made.retrieve_base_data(index)) for index in range(len(made))]
    assert found == [["10", "2"], ["10", "-1"], ["2", "-1"], ["2"], ["10", "2"], ["10", "2"]]


def test_a_late_message_holds_the_newest_cloud_of_its_time(fake_host: Path, tmp_path: Path) -> None:
    """Labels are of now, pose and cloud of then; before an agent's first cloud it is that one."""
    scene = broken_scene()
    write_scene(tmp_path / "validate", scene)
    wild = {"async_overhead": 200}
    with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours(), wild_setting=wild) as made:
        frames = [made.retrieve_base_data(index) for index in (0, 4, 5)]
    for frame, expected in zip(
        frames, ({"2": 0, "-1": 0}, {"2": 2, "-1": 2}, {"2": 3, "-1": 2}), strict=True
    ):
        for name, then in expected.items():
            agent = next(a for a in scene.agents if a.agent_id == int(name))
            cloud = lidar_points(scene, agent, then) * np.array([1, -1, 1, 1], np.float32)
            assert np.array_equal(frame[name]["lidar_np"], cloud)
            position = world_SE3_lidar(agent, then)[:3, 3] * [1, -1, 1]
            np.testing.assert_allclose(frame[name]["params"]["lidar_pose"][:3], position)
    moving = frames[2]["2"]["params"]["vehicles"][11]["location"]
    np.testing.assert_allclose(moving, world_box(scene.objects[0], 5)[:3] * [1, -1, 1])


# --------------------------------------------------------------------------- what is read, and how


def host_frames(root: Path, *, left_handed: bool) -> tuple[HostFrames, SceneIndex]:
    reader = open_root([root])
    return HostFrames(reader, reader, left_handed), reader.scenes[0]


def test_v2x_real_gets_its_right_handed_frames_as_they_are(tmp_path: Path) -> None:
    made = junction_scene(REAL_NAME, frames=3)
    write_scene(tmp_path / "train", made)
    frames, scene = host_frames(tmp_path, left_handed=False)
    for agent in made.agents:
        file = FrameFile(frames, scene, agent.agent_id, 2)
        path = tmp_path / "train" / REAL_NAME / str(agent.agent_id) / "000002.yaml"
        written = yaml.safe_load(path.read_text())
        params = file.params()
        np.testing.assert_allclose(params["lidar_pose"], written["lidar_pose"], atol=1e-9)
        assert params["ego_speed"] == written["ego_speed"]
        assert list(params["vehicles"]) == list(written["vehicles"])
        for number, item in params["vehicles"].items():
            true = written["vehicles"][number]
            assert item["obj_type"] == true["obj_type"]
            for key in ("location", "angle", "extent", "center"):
                np.testing.assert_allclose(item[key], true[key], atol=1e-9)
        points = file.points()
        assert np.array_equal(points, lidar_points(made, agent, 2))
        assert np.array_equal(file.points(zero_intensity=True)[:, 3], np.zeros(len(points)))
        assert file.params() is not params
        assert not Path(file).exists()
        assert file.split("/")[-3] == REAL_NAME  # what V2X-Real takes for the scene


def test_speed_is_of_the_file_or_of_the_poses(tmp_path: Path) -> None:
    """Our own unit of a foreign layout is km/h, as the hosts divide by 30 km/h."""
    made = replace(broken_scene(), objects=())
    write_scene(tmp_path / "real" / "train", made)
    frames, scene = host_frames(tmp_path / "real", left_handed=True)
    assert [frames.speed_kmh(scene, 2, frame) for frame in (0, 2, 5)] == pytest.approx([18.0] * 3)
    assert frames.speed_kmh(scene, -1, 2) == 0.0
    native, scene = host_frames(tmp_path / "real", left_handed=False)
    assert native.speed_kmh(scene, 2, 2) == 5.0
    write_opv2v(tmp_path / "carla" / "train", replace(made, name=OPV2V_SCENE))
    frames, scene = host_frames(tmp_path / "carla", left_handed=True)
    third = scene.agents[2].cloud_frames[2]
    assert frames.speed_kmh(scene, 2, third) == 20.0
    file = scene.file(2, third, "yaml")
    file.write_text(file.read_text().replace("ego_speed: 20.0", "speed: 20.0"))
    assert frames.speed_kmh(scene, 2, third) == pytest.approx(18.0)


def test_one_frame_has_no_speed(tmp_path: Path) -> None:
    write_v2v4real(tmp_path / "train", junction_scene("a", frames=1))
    frames, scene = host_frames(tmp_path, left_handed=True)
    assert frames.speed_kmh(scene, 1, 0) == 0.0


def classes_of(made: Any) -> list[str]:  # noqa: ANN401 - the host's
    objects = made.retrieve_base_data(0)["1"]["params"]["vehicles"]
    return [item["obj_type"] for item in objects.values()]


def test_a_host_of_one_class_is_not_taught_people(fake_host: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "validate", junction_scene("a", frames=2))
    for classes, expected in (
        ({}, ["Car", "PoliceCar"]),
        ({"classes": []}, ["Car", "PoliceCar", "Pedestrian"]),
        ({"classes": ["Pedestrian"]}, ["Pedestrian"]),
    ):
        block = {"host": {"data": {"format": "v2xpnp_seq", **classes}}}
        with data_set(fake_host, tmp_path, tmp_path, turbotrain=block) as made:
            assert classes_of(made) == expected


def test_repairs_and_label_cache_are_ours(fake_host: Path, tmp_path: Path) -> None:
    """A car that drives backwards for the whole of its track is turned round."""
    backwards = MadeObject(7, (-8.0, 3.0, 0.8), velocity_mps=(6.0, 0.0), yaw_deg=180.0)
    agent = MadeAgent(1, (0.0, 0.0, 2.0))
    write_scene(tmp_path / "validate", MadeScene("a", (agent,), (backwards,), 30))
    for repair, yaw in ({}, 180.0), ({"heading_flips": True}, 0.0):
        block = ours(repair=repair, cache_dir=str(tmp_path / "cache"))
        with data_set(fake_host, tmp_path, tmp_path, turbotrain=block) as made:
            angle = made.retrieve_base_data(3)["1"]["params"]["vehicles"][7]["angle"]
            assert abs(angle[1]) == pytest.approx(yaw, abs=1e-9)
    assert list((tmp_path / "cache").iterdir())
    assert not (tmp_path / ".turbotrain_cache").exists()
