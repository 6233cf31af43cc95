"""The measures behind the checks, on cases whose answer is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.made_scenes import MadeAgent, MadeObject, MadeScene, junction_scene, write_root
from turbotrain_plugin.data.checks.agreement import Agreement, View, seen_through
from turbotrain_plugin.data.checks.findings import KINDS, SEVERITIES, Finding, Notes, runs
from turbotrain_plugin.data.checks.overlap import check_overlaps
from turbotrain_plugin.data.formats import SceneIndex
from turbotrain_plugin.data.inspect import root_stats, verify_root
from turbotrain_plugin.geometry.poses import invert_rigid, pose_to_matrix, transform_points

F64 = NDArray[np.float64]
NO_BOXES = np.zeros((0, 7))


# -------------------------------------------------------------------------------------- agreement


def walls() -> F64:
    """(N, 6) boxes x, y, z min and max: four walls around a yard, and a hut that is not centred."""
    return np.array(
        [
            [-25.0, -20.0, 0, 25.0, -19.5, 8],
            [-25.0, 22.0, 0, 25.0, 22.5, 8],
            [-25.0, -20.0, 0, -24.5, 22.0, 8],
            [24.5, -20.0, 0, 25.0, 22.0, 8],
            [-9.0, 6.0, 0, -5.0, 9.0, 8],
        ]
    )


def scan(pose: F64) -> F64:
    """(P, 3) own frame: nearest hits of 30 x 360 rays on the walls and the ground, by hand."""
    azimuth, elevation = np.meshgrid(
        np.deg2rad(np.arange(-180, 180)), np.deg2rad(np.linspace(-20, 15, 30))
    )
    own = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ],
        axis=-1,
    ).reshape(-1, 3)
    rays, origin = own @ pose[:3, :3].T, pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        for wall in walls():
            first = (wall[:3] - origin) / rays
            second = (wall[3:] - origin) / rays
            enter = np.minimum(first, second).max(axis=1)
            leave = np.maximum(first, second).min(axis=1)
            hit = (enter > 0) & (enter <= leave)
            nearest = np.where(hit, np.minimum(nearest, enter), nearest)
    seen = nearest < 60
    return own[seen] * nearest[seen, None]


def view(agent_id: int, pose6: list[float], wrong: list[float] | None = None) -> View:
    """What an agent sees from a pose, filed under the same or another pose."""
    cloud = scan(pose_to_matrix(pose6))
    return View(agent_id, pose_to_matrix(wrong or pose6), cloud, NO_BOXES)


ONE = [0.0, 0.0, 2.0, 0.0, 10.0, 0.0]
TWO = [12.0, -8.0, 2.5, 1.0, 100.0, 2.0]
THREE = [-15.0, -10.0, 4.0, -2.0, -40.0, 1.0]


def test_right_poses_agree() -> None:
    share = seen_through(view(1, ONE), view(2, TWO), NO_BOXES)
    assert share is not None
    assert share < 0.1


@pytest.mark.parametrize(
    ("change", "least"),
    [([0, 0, 0, 0, -200, 0], 0.8), ([0, 0, 0, 0, 20, 0], 0.4), ([4, 4, 0, 0, 0, 0], 0.4)],
)
def test_wrong_poses_do_not(change: list[float], least: float) -> None:
    wrong = np.add(TWO, change).tolist()
    share = seen_through(view(1, ONE), view(2, TWO, wrong), NO_BOXES)
    assert share is not None
    assert share > least


def test_what_one_agent_cannot_see_is_no_disagreement() -> None:
    """Each in a closed room of its own: rays end before what the other sees."""
    here, there = view(1, ONE), view(2, TWO)
    small, other = (one._replace(xyz=one.xyz * 0.1) for one in (here, there))
    assert seen_through(small, other, NO_BOXES) is None
    assert seen_through(here, there._replace(xyz=there.xyz[:0]), NO_BOXES) is None


def test_labelled_objects_are_left_out() -> None:
    """A bus that drove on between two scans is no sign of a wrong pose."""
    bus = np.array([[6.0, 14.0, 2.0, 12.0, 2.6, 4.0, 0.0]])
    here, there = view(1, ONE), view(2, TWO)
    x, z = np.meshgrid(np.arange(0.5, 12, 0.1), np.arange(1.0, 4, 0.1))
    side = np.stack([x.ravel(), np.full(x.size, 13.0), z.ravel()], axis=1)
    pose = here.world_SE3_lidar
    loaded = here._replace(
        xyz=np.concatenate([here.xyz, transform_points(invert_rigid(pose), side)])
    )
    with_bus = seen_through(loaded, there, NO_BOXES)
    without = seen_through(loaded, there, bus)
    assert with_bus is not None
    assert without is not None
    assert without < 0.15 < with_bus


def judged(*views: View) -> list[Finding]:
    agreement, findings = Agreement(), list[Finding]()
    agreement.add(views)
    agreement.report(Notes("s", findings))
    return findings


def test_the_agent_at_fault_is_named_with_its_mistake() -> None:
    wrong = [*TWO[:4], -TWO[4], TWO[5]]
    (one,) = judged(view(1, ONE), view(2, TWO, wrong), view(3, THREE))
    assert (one.kind, one.agent) == ("pose-convention", 2)
    assert "the sign of yaw is turned round" in one.message


def test_a_mistake_of_all_agents_is_one_finding() -> None:
    tilted = [[*pose[:3], -10.0, pose[4], 8.0] for pose in (ONE, TWO, THREE)]
    wrong = [[*pose[:3], 10.0, pose[4], -8.0] for pose in tilted]
    views = [view(i, *pair) for i, pair in enumerate(zip(tilted, wrong, strict=True))]
    (one,) = judged(*views)
    assert (one.kind, one.agent) == ("pose-convention", None)
    assert "of all agents, the signs of roll and pitch" in one.message


def test_a_fault_without_a_known_mistake() -> None:
    wrong = np.add(TWO, [5.0, 6.0, 0, 0, 25.0, 0]).tolist()
    (one,) = judged(view(1, ONE), view(2, TWO, wrong), view(3, THREE))
    assert (one.kind, one.agent) == ("poses-disagree", 2)
    lifted = [*TWO[:2], TWO[2] + 1.0, *TWO[3:]]
    (one,) = judged(view(1, ONE), view(2, TWO, lifted), view(3, THREE))
    assert (one.kind, one.agent) == ("ground-gap", 2)
    assert judged(view(1, ONE), view(2, TWO), view(3, THREE)) == []


# ------------------------------------------------------------------------------------ small helpers


def test_runs_split_where_the_rhythm_breaks() -> None:
    assert runs({1, 2, 3, 7, 8, 20}, 1) == [[1, 2, 3], [7, 8], [20]]
    assert runs([10, 5, 25], 5) == [[5, 10], [25]]
    assert runs([], 1) == []


def test_kinds_have_a_severity_and_a_meaning() -> None:
    for kind, (severity, meaning) in KINDS.items():
        assert severity in SEVERITIES
        assert kind == kind.lower().replace(" ", "-")
        assert meaning[0].islower()
        assert not meaning.endswith(".")


def index(name: str, split: str) -> SceneIndex:
    return SceneIndex(name, split, Path("root", split, name), Path("root"), {})


def test_shared_content_needs_more_than_chance() -> None:
    scenes = [index("a", "train"), index("b", "test"), index("c", "train")]
    few = {0: frozenset({1, 2, 9}), 1: frozenset({1, 2, 8}), 2: frozenset({7})}
    assert check_overlaps(scenes, few) == []
    many = {0: frozenset({1, 2, 3}), 1: frozenset({1, 2, 3}), 2: frozenset({3, 2, 1})}
    found = check_overlaps(scenes, many)
    assert [(one.kind, one.scene) for one in found] == [
        ("split-overlap", "a"),
        ("repeated-content", "a"),
        ("split-overlap", "b"),
    ]


# ------------------------------------------------------------------------- limits of single checks


def kinds(tmp_path: Path, scene: MadeScene) -> set[str]:
    report = verify_root([write_root(tmp_path, {"train": [scene]}, with_map=False)])
    return {finding.kind for finding in report.findings} - {"map-missing"}


@pytest.mark.parametrize(
    ("lost", "kind"), [(1, "frame-missing"), (2, "frame-missing"), (3, "frame-gap")]
)
def test_three_frames_in_a_row_are_a_gap(tmp_path: Path, lost: int, kind: str) -> None:
    made = junction_scene("s", frames=12)
    gap = frozenset(range(5, 5 + lost))
    first = dataclasses.replace(made.agents[0], without_cloud=gap, without_labels=gap)
    scene = dataclasses.replace(made, agents=(first, *made.agents[1:]))
    assert kinds(tmp_path, scene) == {kind, "frames-differ"}


def test_a_lane_beside_is_not_a_second_id(tmp_path: Path) -> None:
    """A car 3.5 m beside a bus is near enough for the distance rule alone."""
    made = junction_scene("s", frames=6)
    bus = MadeObject(50, (40.0, 30.0, 1.6), size_m=(12.0, 2.6, 3.2), raw_type="Bus")
    car = MadeObject(51, (40.5, 33.4, 0.8))
    inside = MadeObject(52, (40.5, 31.0, 0.8))
    beside = dataclasses.replace(made, objects=(*made.objects, bus, car))
    assert kinds(tmp_path / "beside", beside) == set()
    within = dataclasses.replace(made, objects=(*made.objects, bus, inside))
    assert kinds(tmp_path / "within", within) == {"duplicate-id"}


@pytest.mark.parametrize(("speed_mps", "found"), [(-3.0, True), (-0.5, False), (3.0, False)])
def test_backing_up_for_long_is_a_reversed_heading(
    tmp_path: Path, speed_mps: float, found: bool
) -> None:
    made = junction_scene("s", frames=16)
    car = MadeObject(50, (-30.0, 30.0, 0.8), velocity_mps=(speed_mps, 0.0))
    scene = dataclasses.replace(made, objects=(*made.objects, car))
    assert kinds(tmp_path, scene) == ({"heading-reversed"} if found else set())


def test_people_may_walk_backwards(tmp_path: Path) -> None:
    made = junction_scene("s", frames=16)
    size = (0.6, 0.6, 1.7)
    walker = MadeObject(50, (-30.0, 30.0, 0.9), (-3.0, 0.0), size, 0.0, "Pedestrian")
    scene = dataclasses.replace(made, objects=(*made.objects, walker))
    assert kinds(tmp_path, scene) == set()


# -------------------------------------------------------------------------------------- statistics


def test_points_by_distance_by_hand(tmp_path: Path) -> None:
    agent = MadeAgent(1, (0.0, 0.0, 2.0))
    objects = (
        MadeObject(1, (5.0, 0.0, 0.9)),
        MadeObject(2, (9.99, 0.0, 0.9)),
        MadeObject(3, (0.0, 10.01, 0.9)),
        MadeObject(4, (0.0, -45.0, 0.9)),
    )
    root = write_root(tmp_path, {"train": [MadeScene("s", (agent,), objects, 10)]}, with_map=False)
    stats = root_stats([root], cloud_stride=5)
    assert [(r.low_m, r.high_m, r.boxes) for r in stats.ranges] == [
        (0, 10, 4), (10, 20, 2), (20, 30, 0), (30, 40, 0), (40, 50, 2),
    ]  # fmt: skip
    assert [r.points_per_box[1] for r in stats.ranges] == [27, 27, 0, 0, 27]
    (car,) = stats.classes
    assert car.range_m[0] == pytest.approx(10.0, abs=0.02)
    assert "40 - 50 m" in stats.table()
    samples = stats.samples
    assert sorted(samples.range_m["vehicle"].tolist())[-1] == pytest.approx(45.0)
    assert samples.points["vehicle"].shape == (8, 2)
    assert samples.size_m["Car"].tolist() == [pytest.approx([4.6, 1.9])] * 4
    assert "samples" not in stats.to_json()


def test_distances_between_agents(tmp_path: Path) -> None:
    agents = (MadeAgent(1, (0, 0, 2)), MadeAgent(2, (30, 40, 2)), MadeAgent(-1, (0, 40, 4)))
    root = write_root(tmp_path, {"train": [MadeScene("s", agents, (), 2)]}, with_map=False)
    distances = root_stats([root]).samples.agent_distance_m
    np.testing.assert_allclose(np.sort(distances), [30, 30, 40, 40, 50, 50], rtol=1e-6)
