"""Samples built from hand-made scenes whose answers are known in closed form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.made_clips import OPTIONS
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
from turbotrain_plugin.data.formats import V2XPnPSeqReader, open_root
from turbotrain_plugin.data.windows import ClipOptions
from turbotrain_plugin.structures import INFRASTRUCTURE, VEHICLE, GroundTruth, Sample

FRAMES = 41


def sample_of(
    folder: Path,
    scene: MadeScene,
    frame: int,
    options: ClipOptions = OPTIONS,
    *,
    write: bool = True,
) -> Sample:
    if write:
        write_root(folder, {"train": [scene]})
    reader = open_root([folder])
    return build_sample(reader, reader.scenes[0], frame, options)


def truth_of(sample: Sample) -> GroundTruth:
    assert sample.truth is not None
    return sample.truth


def row(truth: GroundTruth, object_id: int) -> int:
    return int(np.flatnonzero(truth.object_ids == object_id)[0])


@pytest.fixture(scope="module")
def junction() -> MadeScene:
    return junction_scene("2023-01-01-00-00-00_1_0", frames=FRAMES)


@pytest.fixture(scope="module")
def junction_root(junction: MadeScene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("junction"), {"train": [junction]})


@pytest.fixture(scope="module")
def junction_sample(junction: MadeScene, junction_root: Path) -> Sample:
    return sample_of(junction_root, junction, 12, write=False)


def agent_of(scene: MadeScene, agent_id: int) -> MadeAgent:
    return next(agent for agent in scene.agents if agent.agent_id == agent_id)


# ------------------------------------------------------------------------------------ agents, poses


def test_agents_come_ego_first_then_nearest(junction_sample: Sample, junction: MadeScene) -> None:
    here = world_SE3_lidar(agent_of(junction, 1), 12)[:2, 3]
    distance = {
        agent.agent_id: float(np.hypot(*(world_SE3_lidar(agent, 12)[:2, 3] - here)))
        for agent in junction.agents
    }
    assert junction_sample.agent_ids == tuple(sorted(distance, key=lambda a: distance[a]))
    assert junction_sample.agent_ids[0] == 1
    types = [INFRASTRUCTURE if agent < 0 else VEHICLE for agent in junction_sample.agent_ids]
    assert junction_sample.agent_types.tolist() == types
    assert junction_sample.time_offset_s.tolist() == [0.0] * 4


def test_nearest_goes_before_smaller_number(tmp_path: Path) -> None:
    agents = tuple(
        MadeAgent(i, (x, 0.0, 1.9)) for i, x in ((1, 0.0), (2, 40.0), (3, 9.0), (4, 20.0))
    )
    scene = MadeScene("s_1_0", agents, (MadeObject(5, (10.0, 5.0, 0.8)),), frames=1)
    assert sample_of(tmp_path, scene, 0).agent_ids == (1, 3, 4, 2)
    three = replace(OPTIONS, max_agents=3)
    assert sample_of(tmp_path, scene, 0, three, write=False).agent_ids == (1, 3, 4)


def test_poses_and_points_are_in_the_ego_frame_of_now(
    junction_sample: Sample, junction: MadeScene
) -> None:
    world_SE3_ego = world_SE3_lidar(agent_of(junction, 1), 12)
    np.testing.assert_allclose(junction_sample.world_SE3_ego, world_SE3_ego, atol=1e-9)
    assert junction_sample.frame_valid.all()
    for a, agent_id in enumerate(junction_sample.agent_ids):
        for t, frame in enumerate((2, 7, 12)):
            agent = agent_of(junction, agent_id)
            own = lidar_points(junction, agent, frame).astype(np.float64)
            if agent_id > 0:
                hit = (own[:, 0] >= -1.95) & (own[:, 0] <= 2.95) & (np.abs(own[:, 1]) <= 1.1)
                own = own[~hit]
            matrix = np.linalg.inv(world_SE3_ego) @ world_SE3_lidar(agent, frame)
            expected = own[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
            cloud = junction_sample.points[a][t]
            assert cloud.dtype == np.float32
            np.testing.assert_allclose(cloud[:, :3], expected, atol=2e-5)
            np.testing.assert_allclose(junction_sample.ego_SE3_agent[a, t], matrix, atol=1e-5)


def test_intensity_is_zero_unless_asked_for(junction: MadeScene, junction_root: Path) -> None:
    zeroed = sample_of(junction_root, junction, 12, write=False)
    kept = sample_of(
        junction_root, junction, 12, replace(OPTIONS, zero_intensity=False), write=False
    )
    assert not zeroed.points[0][-1][:, 3].any()
    assert (kept.points[0][-1][:, 3] == 0.5).all()


def test_self_hits_are_removed_for_vehicles_only(tmp_path: Path, junction: MadeScene) -> None:
    write_root(tmp_path, {"train": [junction]})
    corners = [(-1.95, -1.1), (2.95, 1.1), (-1.96, 0.0), (2.96, 0.0), (0.0, 1.11), (0.0, 0.0)]
    cloud = np.array([(x, y, -1.0, 0.0) for x, y in corners], "<f4")
    for agent in (1, -1):
        path = tmp_path / "train" / junction.name / str(agent) / "000012.bin"
        path.write_bytes(cloud.tobytes())
    sample = sample_of(tmp_path, junction, 12, write=False)
    unit = sample.agent_ids.index(-1)
    np.testing.assert_array_equal(sample.points[0][-1][:, :2], cloud[2:5, :2])
    assert len(sample.points[unit][-1]) == 6


@pytest.mark.parametrize(
    ("x_m", "y_m", "kept"),
    [(50.0, 0.0, True), (50.001, 0.0, False), (30.0, 40.0, True), (30.0, 40.01, False)],
)
def test_range_is_planar_and_includes_its_limit(
    tmp_path: Path, x_m: float, y_m: float, kept: bool
) -> None:
    # 100.3 and 7.1 have no exact binary form, and the roadside unit stands 30 m higher.
    agents = (
        MadeAgent(1, (100.3, 7.1, 1.9)),
        MadeAgent(-1, (round(100.3 + x_m, 6), round(7.1 + y_m, 6), 31.9)),
    )
    scene = MadeScene("s_1_0", agents, (MadeObject(5, (120.0, 7.0, 0.8)),), frames=1)
    wide = replace(OPTIONS, range_m=(-102.4, -80.0, -8.0, 102.4, 80.0, 4.0))
    assert sample_of(tmp_path, scene, 0, wide).agent_ids == ((1, -1) if kept else (1,))


def test_range_is_decided_now_and_kept_for_the_past(tmp_path: Path) -> None:
    """A car that was 60 m away a second ago and is 45 m away now keeps its whole history."""
    agents = (MadeAgent(1, (0.0, 0.0, 1.9)), MadeAgent(2, (60.0, 0.0, 1.9), (-15.0, 0.0)))
    scene = MadeScene("s_1_0", agents, (MadeObject(5, (20.0, 5.0, 0.8)),), frames=11)
    sample = sample_of(tmp_path, scene, 10)
    assert sample.agent_ids == (1, 2)
    assert sample.frame_valid.all()
    assert sample_of(tmp_path, scene, 6, write=False).agent_ids == (1,)


def test_max_agents_cuts_the_farthest(junction: MadeScene, junction_root: Path) -> None:
    few = replace(OPTIONS, max_agents=2)
    full = sample_of(junction_root, junction, 12, write=False).agent_ids
    assert sample_of(junction_root, junction, 12, few, write=False).agent_ids == full[:2]


@pytest.mark.parametrize(
    ("mode", "ego", "team"),
    [
        ("vc", 1, {1, 2, -1, -2}),
        ("ic", -1, {1, 2, -1, -2}),
        ("v2v", 1, {1, 2}),
        ("i2i", -1, {-1, -2}),
    ],
)
def test_modes(
    junction: MadeScene, junction_root: Path, mode: str, ego: int, team: set[int]
) -> None:
    sample = sample_of(junction_root, junction, 12, replace(OPTIONS, mode=mode), write=False)
    assert sample.agent_ids[0] == ego
    assert set(sample.agent_ids) == team


def test_agent_that_sees_nothing_is_skipped_unless_ego(tmp_path: Path, junction: MadeScene) -> None:
    write_root(tmp_path, {"train": [junction]})
    folder = tmp_path / "train" / junction.name
    far = np.array([[500.0, 0.0, 0.0, 0.0]], "<f4").tobytes()
    nearest = sample_of(tmp_path, junction, 12, write=False).agent_ids[1]
    (folder / str(nearest) / "000012.bin").write_bytes(far)
    (folder / "1" / "000012.bin").write_bytes(b"")
    sample = sample_of(tmp_path, junction, 12, replace(OPTIONS, max_agents=3), write=False)
    assert sample.agent_ids[0] == 1
    assert nearest not in sample.agent_ids
    assert len(sample.agent_ids) == 3  # the next nearest moves up
    assert sample.points[0][-1].shape == (0, 4)


# ------------------------------------------------------------------------------------------ history


def holes(scene: MadeScene, agent_id: int, frames: set[int], *, labels: bool = False) -> MadeScene:
    """The scene with clouds (and labels) of one agent missing."""
    missing = frozenset(frames)
    agents = tuple(
        replace(agent, without_cloud=missing, without_labels=missing if labels else frozenset())
        if agent.agent_id == agent_id
        else agent
        for agent in scene.agents
    )
    return replace(scene, agents=agents)


def test_missing_history_is_masked(tmp_path: Path, junction: MadeScene) -> None:
    sample = sample_of(tmp_path, holes(junction, 2, {7}), 12)
    a = sample.agent_ids.index(2)
    assert sample.frame_valid[a].tolist() == [True, False, True]
    assert sample.points[a][1].shape == (0, 4)
    assert len(sample.points[a][0]) > 0
    assert sample.frame_valid[0].all()


def test_start_of_the_recording(junction: MadeScene, junction_root: Path) -> None:
    sample = sample_of(junction_root, junction, 5, write=False)
    assert sample.frame_valid.tolist() == [[False, True, True]] * 4
    assert all(len(clouds[0]) == 0 for clouds in sample.points)


def test_repeat_takes_the_next_newer_frame(tmp_path: Path, junction: MadeScene) -> None:
    sample = sample_of(tmp_path, holes(junction, 2, {7, 2}), 12, replace(OPTIONS, pad="repeat"))
    a = sample.agent_ids.index(2)
    assert sample.frame_valid[a].all()
    for t in (0, 1):
        np.testing.assert_array_equal(sample.points[a][t], sample.points[a][2])
        np.testing.assert_array_equal(sample.ego_SE3_agent[a, t], sample.ego_SE3_agent[a, 2])


def test_agent_without_the_current_frame_is_not_kept(tmp_path: Path, junction: MadeScene) -> None:
    assert 2 not in sample_of(tmp_path, holes(junction, 2, {12}), 12).agent_ids


def test_single_frame_window(junction: MadeScene, junction_root: Path) -> None:
    single = replace(OPTIONS, hist_frames=1)
    sample = sample_of(junction_root, junction, 12, single, write=False)
    assert sample.frame_valid.shape == (4, 1)
    assert sample.ego_SE3_agent.shape == (4, 1, 4, 4)
    assert truth_of(sample).past.shape[1] == 1


# ------------------------------------------------------------------------------------------- labels


def in_ego(scene: MadeScene, made: MadeObject, now: int, frame: int) -> NDArray[np.float64]:
    world_SE3_ego = world_SE3_lidar(agent_of(scene, 1), now)
    moved: NDArray[np.float64] = np.linalg.inv(world_SE3_ego) @ [*world_box(made, frame)[:3], 1.0]
    return moved[:3]


def test_boxes_are_the_union_in_the_ego_frame(junction_sample: Sample, junction: MadeScene) -> None:
    truth = truth_of(junction_sample)
    assert set(truth.object_ids.tolist()) == {11, 12, 14}  # 13 is a pedestrian, 14 seen by -1 only
    for made in junction.objects:
        if made.raw_type != "Pedestrian":
            box = truth.boxes[row(truth, made.object_id)]
            np.testing.assert_allclose(box[:3], in_ego(junction, made, 12, 12), atol=1e-5)
            np.testing.assert_allclose(box[3:6], made.size_m, atol=1e-5)
            assert box[6] == pytest.approx(np.deg2rad(made.yaw_deg), abs=1e-5)


def test_past_and_future_are_the_closed_form_track(
    junction_sample: Sample, junction: MadeScene
) -> None:
    truth = truth_of(junction_sample)
    assert truth.past_valid.all()
    assert truth.future_valid.all()
    for made in junction.objects:
        if made.raw_type != "Pedestrian":
            index = row(truth, made.object_id)
            for step, frame in enumerate((17, 22, 27, 32)):
                expected = in_ego(junction, made, 12, frame)[:2]
                np.testing.assert_allclose(truth.futures[index, step], expected, atol=1e-4)
            for step, frame in enumerate((2, 7, 12)):
                expected = in_ego(junction, made, 12, frame)[:2]
                np.testing.assert_allclose(truth.past[index, step], expected, atol=1e-4)
    np.testing.assert_allclose(truth.past[:, -1], truth.boxes[:, :2], atol=1e-6)


def test_classes_are_chosen_by_name(junction: MadeScene, junction_root: Path) -> None:
    people = replace(OPTIONS, classes=("Pedestrian",))
    sample = sample_of(junction_root, junction, 12, people, write=False)
    assert truth_of(sample).object_ids.tolist() == [13]
    none = replace(OPTIONS, classes=("Tram",))
    empty = truth_of(sample_of(junction_root, junction, 12, none, write=False))
    assert empty.boxes.shape == (0, 7)
    assert empty.futures.shape == (0, 4, 2)


def test_labels_of_agents_that_are_not_kept_are_no_objects(
    junction: MadeScene, junction_root: Path
) -> None:
    cars = replace(OPTIONS, mode="v2v")
    sample = sample_of(junction_root, junction, 12, cars, write=False)
    assert set(truth_of(sample).object_ids.tolist()) == {11, 12}


def test_future_is_looked_up_in_all_agents(tmp_path: Path) -> None:
    """A car that both cars lose is followed by a roadside unit out of range and out of mode."""
    agents = (MadeAgent(1, (0.0, 0.0, 1.9)), MadeAgent(-1, (200.0, 0.0, 4.0)))
    seen = MadeObject(7, (10.0, 5.0, 0.8), (8.0, 0.0), last_frame=12, labelled_by=(1,))
    followed = replace(seen, first_frame=13, last_frame=99, labelled_by=(-1,))
    scene = MadeScene("s_1_0", agents, (seen, followed), frames=FRAMES)
    truth = truth_of(sample_of(tmp_path, scene, 12, replace(OPTIONS, mode="v2v")))
    assert truth.future_valid.all()
    np.testing.assert_allclose(
        truth.futures[0, :, 0], [10 + 0.8 * f for f in (17, 22, 27, 32)], rtol=1e-5
    )


def test_labels_without_a_cloud_still_give_futures(tmp_path: Path, junction: MadeScene) -> None:
    only_one = replace(junction, agents=(agent_of(junction, 1),), objects=junction.objects[:1])
    no_clouds = replace(only_one.agents[0], without_cloud=frozenset(range(13, FRAMES)))
    sample = sample_of(tmp_path, replace(only_one, agents=(no_clouds,)), 12)
    assert truth_of(sample).future_valid.all()


def test_the_first_agents_box_wins(tmp_path: Path) -> None:
    agents = (MadeAgent(1, (0.0, 0.0, 1.9)), MadeAgent(2, (5.0, 5.0, 1.9)))
    mine = MadeObject(7, (20.0, 5.0, 0.8), labelled_by=(1,))
    other = replace(mine, start_xyz_m=(21.0, 5.0, 0.8), labelled_by=(2,))
    scene = MadeScene("s_1_0", agents, (mine, other), frames=1)
    truth = truth_of(sample_of(tmp_path, scene, 0))
    assert truth.boxes[:, 0].tolist() == [20.0]


def test_box_around_the_ego_is_dropped(tmp_path: Path) -> None:
    agents = (MadeAgent(1, (50.0, 10.0, 1.9), yaw_deg=30.0), MadeAgent(2, (60.0, 20.0, 1.9)))
    itself = MadeObject(1, (50.3, 10.1, 0.8), yaw_deg=30.0, labelled_by=(2,))
    beside = MadeObject(3, (50.0, 13.0, 0.8))
    scene = MadeScene("s_1_0", agents, (itself, beside), frames=1)
    assert truth_of(sample_of(tmp_path, scene, 0)).object_ids.tolist() == [3]


def test_unlabelled_log_has_no_truth(tmp_path: Path, junction: MadeScene) -> None:
    bare = replace(junction, objects=())
    assert sample_of(tmp_path, bare, 12).truth is None
    assert sample_of(tmp_path, bare, 12, replace(OPTIONS, with_labels=False)).truth is None


# --------------------------------------------------------------------------------------------- gaps


def gap_scene(missing: set[int], *, frames: int = FRAMES) -> MadeScene:
    """One car going 10 m/s along x; its label is missing in some frames."""
    agent = MadeAgent(1, (0.0, 0.0, 1.9))
    whole = MadeObject(7, (10.0, 5.0, 0.8), (10.0, 0.0))
    present = [frame for frame in range(frames) if frame not in missing]
    parts = tuple(replace(whole, first_frame=f, last_frame=f) for f in present)
    return MadeScene("s_1_0", (agent,), parts, frames)


@pytest.mark.parametrize(
    ("fill", "missing", "future", "past"),
    [
        ("none", {22, 7}, "1011", "101"),
        ("interpolate", {22, 7}, "1111", "111"),
        ("interpolate", {17}, "1111", "111"),  # now counts as a known end
        ("interpolate", {17, 22}, "0011", "111"),  # 1.0 s is too long
        ("interpolate", {27, 32}, "1100", "111"),  # no later end
        ("interpolate", {2, 7}, "1111", "001"),
        ("interpolate_and_hold", {17, 22}, "1111", "111"),
        ("interpolate_and_hold", {27, 32, 2}, "1111", "011"),
    ],
)
def test_gaps(tmp_path: Path, fill: str, missing: set[int], future: str, past: str) -> None:
    truth = truth_of(
        sample_of(tmp_path, gap_scene(missing), 12, replace(OPTIONS, future_fill=fill))
    )
    assert truth.future_valid[0].tolist() == [flag == "1" for flag in future]
    assert truth.past_valid[0].tolist() == [flag == "1" for flag in past]
    known = np.array([27.0, 32.0, 37.0, 42.0])
    if fill == "interpolate_and_hold" and 27 in missing:
        known[2:] = known[1]
    expected = np.where(truth.future_valid[0], known, 0.0)
    np.testing.assert_allclose(truth.futures[0, :, 0], expected, atol=1e-4)


def test_nothing_is_held_beyond_the_recording(tmp_path: Path) -> None:
    hold = replace(OPTIONS, future_fill="interpolate_and_hold")
    truth = truth_of(sample_of(tmp_path, gap_scene({22}, frames=25), 12, hold))
    assert truth.future_valid[0].tolist() == [True, True, False, False]
    assert not truth.futures[0, 2:].any()


def test_gap_limit_is_half_a_second_whatever_the_step(tmp_path: Path) -> None:
    fine = replace(OPTIONS, step_frames=1, future_steps=8, hist_frames=1)
    five = truth_of(sample_of(tmp_path / "a", gap_scene({13, 14, 15, 16, 17}), 12, fine))
    assert five.future_valid.all()
    six = truth_of(sample_of(tmp_path / "b", gap_scene({13, 14, 15, 16, 17, 18}), 12, fine))
    assert six.future_valid[0].tolist() == [False] * 6 + [True] * 2


# ----------------------------------------------------------------------------------- select and map


def test_select_keeps_centres_in_range(junction_sample: Sample) -> None:
    truth = truth_of(junction_sample)
    limit = float(truth.boxes[row(truth, 11), 0])
    just_outside = (-102.4, -40.0, -8.0, limit, 40.0, 4.0)
    kept = select_objects(junction_sample, replace(OPTIONS, range_m=just_outside))
    assert 11 not in truth_of(kept).object_ids
    just_inside = (-102.4, -40.0, -8.0, limit + 1e-3, 40.0, 4.0)
    kept = select_objects(junction_sample, replace(OPTIONS, range_m=just_inside))
    assert 11 in truth_of(kept).object_ids
    assert len(truth_of(junction_sample).object_ids) == 3  # the input is left alone


def test_select_counts_points_of_all_kept_agents(junction_sample: Sample) -> None:
    truth = truth_of(select_objects(junction_sample, OPTIONS))
    # Every agent that labels an object puts 27 points in its box; ground points lie below boxes.
    counts = dict(zip(truth.object_ids.tolist(), truth.point_counts.tolist(), strict=True))
    assert 27 <= counts[14] < 54
    assert counts[11] >= 4 * 27
    just = truth_of(select_objects(junction_sample, replace(OPTIONS, min_points=counts[14])))
    assert 14 in just.object_ids
    strict = truth_of(select_objects(junction_sample, replace(OPTIONS, min_points=counts[14] + 1)))
    assert set(strict.object_ids.tolist()) == {11, 12}


def test_select_without_labels(junction_sample: Sample) -> None:
    bare = replace(junction_sample, truth=None)
    assert select_objects(bare, OPTIONS) is bare


def test_map_is_in_the_ego_frame(junction_sample: Sample) -> None:
    segments = junction_sample.map
    assert segments is not None
    # Lanes lie along world x at y = 0, 3.5, ...; the ego looks along x from (6, 0).
    first = segments.points[0, :, :2]
    np.testing.assert_allclose(first[:, 0], np.arange(10.0) - 20.0 - 6.0, atol=1e-4)
    np.testing.assert_allclose(first[:, 1], 0.0, atol=1e-4)


def test_map_can_be_left_out(junction: MadeScene, junction_root: Path) -> None:
    without = replace(OPTIONS, with_map=False)
    assert sample_of(junction_root, junction, 12, without, write=False).map is None


def test_root_without_a_map(tmp_path: Path, junction: MadeScene) -> None:
    write_root(tmp_path, {"train": [junction]}, with_map=False)
    reader = V2XPnPSeqReader([tmp_path])
    assert build_sample(reader, reader.scenes[0], 12, OPTIONS).map is None
