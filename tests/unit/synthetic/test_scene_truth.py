"""What the sensors report agrees with the scene and with one another."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.recordings import Recording, View, inside, rotation
from turbotrain_plugin.synthetic import PRESETS, generate

F64 = NDArray[np.float64]
VEHICLES = ("Car", "Van", "Truck", "Bus", "LongVehicle", "PoliceCar", "ConcreteTruck")


@pytest.fixture(scope="module")
def views(recording: Recording) -> list[View]:
    return recording.views(stride=10)


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Another scene, with the sensors of the tiny preset."""
    preset = replace(PRESETS["tiny"], scenes=(1, 0, 0), frames=11)
    root = generate(preset, tmp_path_factory.mktemp("tiny") / "root", seed=9, workers=1)
    return Recording(next((root / "train").iterdir()))


def wall_offsets(
    recording: Recording, views: list[View], *, flip: bool
) -> dict[tuple[int, int], dict[int, list[F64]]]:
    """(block, face) -> agent -> signed distances of its points to that wall, metres."""
    found: dict[tuple[int, int], dict[int, list[F64]]] = defaultdict(lambda: defaultdict(list))
    for view in views:
        points = view.world_points(flip=flip)
        near = points[view.ranges() < 60.0]
        for number, block in enumerate(recording.meta["blocks"]):
            if block["kind"] != "building":
                continue
            half = np.array(block["half_size"])
            own = (near - block["centre"]) @ rotation(0.0, block["yaw_deg"], 0.0)
            for axis in (0, 1):
                across = 1 - axis
                # Well inside the face, so that neither corners nor the ground are in it.
                on = (np.abs(own[:, across]) < half[across] - 0.5) & (own[:, 2] < half[2] - 0.5)
                on &= own[:, 2] > -half[2] + 3.5
                for side in (-1, 1):
                    offset = side * own[:, axis] - half[axis]
                    close = on & (np.abs(offset) < 1.5)
                    if close.sum() >= 5:
                        found[number, 2 * axis + (side > 0)][view.agent].append(offset[close])
    return found


def worst_disagreement(recording: Recording, views: list[View], *, flip: bool) -> tuple[float, int]:
    """Largest difference of two agents about one wall, and the number of walls compared."""
    differences = []
    for by_agent in wall_offsets(recording, views, flip=flip).values():
        medians = [float(np.median(np.concatenate(found))) for found in by_agent.values()]
        if len(medians) > 1:
            differences.append(max(medians) - min(medians))
    return max(differences, default=0.0), len(differences)


def test_agents_agree_on_walls(recording: Recording, views: list[View]) -> None:
    worst, walls = worst_disagreement(recording, views, flip=False)
    assert walls >= 4
    assert worst < 0.10


def test_wrong_sign_of_roll_and_pitch_is_seen(recording: Recording, views: list[View]) -> None:
    """The test above must fail for a pose convention with flipped tilt."""
    worst, _ = worst_disagreement(recording, views, flip=True)
    assert worst > 0.15


def test_agents_agree_on_the_ground(views: list[View]) -> None:
    """Ground seen by several agents has one height; flipped tilt bends it."""
    assert ground_spread(views, flip=False) < 0.10
    assert ground_spread(views, flip=True) > 0.25


def ground_spread(views: list[View], *, flip: bool) -> float:
    """90th percentile over 4 m cells of the height range that two agents report, metres."""
    cells: dict[tuple[int, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for view in views:
        points = view.world_points(flip=flip)
        free = (view.ranges() < 50) & (np.abs(view.points[:, 3] - 0.15) < 0.01)
        for x, y, z in points[free]:
            cells[int(x // 4), int(y // 4)][view.agent].append(z)
    spread = []
    for by_agent in cells.values():
        means = [np.mean(heights) for heights in by_agent.values() if len(heights) > 20]
        if len(means) > 1:
            spread.append(max(means) - min(means))
    assert len(spread) > 20
    return float(np.quantile(spread, 0.9))


def test_object_points_lie_in_their_boxes(views: list[View]) -> None:
    """Points with the intensity of vehicles are in labelled boxes; every label has a point."""
    total = held = 0
    for view in views:
        points = view.world_points()
        of_vehicle = np.abs(view.points[:, 3] - 0.55) < 1e-3
        in_any = np.zeros(len(points), np.bool_)
        boxes = view.boxes()
        for number, box in boxes.items():
            mine = inside(points, box, 0.10)
            assert inside(points, box, 0.6).any(), (view.agent, view.frame, number)
            in_any |= mine
        total += int(of_vehicle.sum())
        held += int((of_vehicle & in_any).sum())
    assert total > 2000
    assert held / total >= 0.95


def test_no_point_is_inside_the_own_vehicle(recording: Recording, views: list[View]) -> None:
    for view in views:
        if view.agent > 0:
            own = recording.meta["objects"][str(recording.meta["agents"][str(view.agent)])]
            half = np.array(own["half_size"]) - 0.1
            near = np.abs(view.points[:, :2]) < half[:2]
            height = view.points[:, 2] > -1.9 + 0.1
            assert not (near.all(axis=1) & height).any()


def test_points_per_box_drop_with_range(views: list[View]) -> None:
    near: list[int] = []
    far: list[int] = []
    for view in views:
        points, origin = view.world_points(), np.array(view.label["lidar_pose"][:3])
        for number, box in view.boxes().items():
            if view.label["vehicles"][number]["obj_type"] not in VEHICLES:
                continue
            distance = np.linalg.norm(box[0] - origin)
            (near if distance < 20 else far if distance > 40 else []).append(
                int(inside(points, box, 0.1).sum())
            )
    assert np.mean(near) > 5 * np.mean(far)


def test_points_are_not_behind_walls(recording: Recording, views: list[View]) -> None:
    """No ray goes on behind a building: none ends inside one or beyond one it passes through."""
    for view in views:
        origin = np.array(view.label["lidar_pose"][:3])
        points = view.world_points()
        for block in recording.meta["blocks"]:
            if block["kind"] != "building":
                continue
            R = rotation(0.0, block["yaw_deg"], 0.0)
            half = np.array(block["half_size"]) - 0.5
            start, end = (origin - block["centre"]) @ R, (points - block["centre"]) @ R
            with np.errstate(divide="ignore"):
                a, b = (-half - start) / (end - start), (half - start) / (end - start)
            enter, leave = np.minimum(a, b).max(axis=1), np.maximum(a, b).min(axis=1)
            assert not ((enter < leave) & (enter < 1.0) & (leave > 0)).any()


def visible_shares(recording: Recording, frame: int) -> tuple[float, float]:
    """Share of vehicles within 60 m of the junction seen by the best agent and by all together."""
    present = {
        int(number)
        for number, entry in recording.meta["objects"].items()
        if entry["type"] in VEHICLES and recording.state(int(number), frame) is not None
    }
    seen = [
        set(recording.label(agent, frame)["vehicles"]) & present
        for agent in recording.agents
        if (recording.folder / str(agent) / f"{frame:06d}.yaml").is_file()
    ]
    return max(len(part) for part in seen) / len(present), len(set.union(*seen)) / len(present)


def test_together_agents_see_more_than_the_best_of_them(tilted: Recording) -> None:
    singles, unions = zip(*(visible_shares(tilted, frame) for frame in (0, 5, 10)), strict=True)
    assert np.mean(unions) - np.mean(singles) >= 0.15
    assert np.mean(unions) > 0.75


def test_ground_is_not_flat(recording: Recording) -> None:
    states = [entry["states"][0] for entry in recording.meta["objects"].values()]
    angles = np.abs(np.array([state[3:6:2] for state in states if state[3] or state[5]]))
    assert angles.max() > 0.5
    assert angles.max() < 8.0
    heights = np.array([state[2] for state in states])
    assert np.ptp(heights) > 2.0


def test_classes_of_a_scene(recording: Recording) -> None:
    kinds: dict[str, Any] = {entry["type"]: 1 for entry in recording.meta["objects"].values()}
    assert {"Car", "Pedestrian"} <= set(kinds)
