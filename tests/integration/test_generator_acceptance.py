"""What made-up scenes must fulfil to do science on, at a junction and in a corridor.

Two scenes with the sensors of the tiny preset, made once and read without our readers wherever
that is possible.
"""

from __future__ import annotations

import hashlib
import pickletools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.helpers.recordings import Recording, View, inside, rotation
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.data.inspect import verify_root
from turbotrain_plugin.data.map_files import DRIVING, VectorMap, read_map
from turbotrain_plugin.synthetic import PRESETS, generate
from turbotrain_plugin.synthetic.tracks import COLUMNS

F64 = NDArray[np.float64]
VEHICLES = ("Car", "Van", "Truck", "Bus", "LongVehicle", "PoliceCar", "ConcreteTruck")
SUPER_CLASSES = {
    "vehicle": {"LongVehicle", "Car", "PoliceCar"},
    "pedestrian": {
        "Child", "RoadWorker", "Pedestrian", "Scooter", "ScooterRider", "Motorcycle",
        "MotorcyleRider", "BicycleRider",
    },
    "truck": {"Truck", "Van", "TrashCan", "ConcreteTruck", "Bus"},
}  # fmt: skip
LAYOUTS = ("junction", "corridor")
MAPS = {
    "junction": "v2x_intersection_vector_map.pkl",
    "corridor": "v2v_corridors_vector_map.pkl",
}
VEHICLE_INTENSITY, OTHER_INTENSITY = 0.55, 0.4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    preset = replace(PRESETS["tiny"], scenes=(2, 0, 0), layouts=LAYOUTS)
    return generate(preset, tmp_path_factory.mktemp("acceptance") / "root", seed=0, workers=1)


@pytest.fixture(scope="module")
def recordings(root: Path) -> dict[str, Recording]:
    found = [Recording(folder) for folder in sorted((root / "train").iterdir())]
    return {recording.meta["layout"]: recording for recording in found}


@pytest.fixture(scope="module")
def views(recordings: dict[str, Recording]) -> dict[str, list[View]]:
    return {name: recording.views(stride=5) for name, recording in recordings.items()}


@pytest.fixture(scope="module")
def maps(root: Path) -> dict[str, VectorMap]:
    return {name: read_map(root / "map" / file) for name, file in MAPS.items()}


# -------------------------------------------------------------------------------------------- files


def test_both_layouts_are_there(recordings: dict[str, Recording]) -> None:
    assert recordings["junction"].agents == [-2, -1, 1, 2]
    assert recordings["corridor"].agents == [1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_parse_with_the_plain_safe_loader(
    recordings: dict[str, Recording], layout: str
) -> None:
    files = sorted(recordings[layout].folder.rglob("*.yaml"))
    for path in files[::7]:
        content = yaml.load(path.read_text(), Loader=yaml.SafeLoader)
        assert set(content) == {"lidar_pose", "true_ego_pose", "ego_speed", "infra", "vehicles"}
        assert content["infra"] is path.parent.name.startswith("-")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lost_frame_leaves_neither_labels_nor_cloud(
    recordings: dict[str, Recording], layout: str
) -> None:
    for agent in recordings[layout].agents:
        folder = recordings[layout].folder / str(agent)
        stems = {suffix: {p.stem for p in folder.glob(f"*.{suffix}")} for suffix in ("yaml", "bin")}
        assert stems["yaml"] == stems["bin"]
        assert {p.suffix for p in folder.iterdir()} == {".yaml", ".bin"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_map_has_three_globals(root: Path, layout: str) -> None:
    raw = (root / "map" / MAPS[layout]).read_bytes()
    found = {arg for op, arg, _ in pickletools.genops(raw) if op.name in ("GLOBAL", "STACK_GLOBAL")}
    module = "opencood.data_utils.datasets.map.map_types"
    assert found == {f"{module} {name}" for name in ("Map", "Lane", "MapPoint")}
    assert raw[:2] in (b"\x80\x02", b"\x80\x03")


def test_no_other_maps_are_written(root: Path) -> None:
    assert {path.name for path in (root / "map").iterdir()} == set(MAPS.values())


def lane_distance(vector_map: VectorMap, points: F64) -> F64:
    """(P,) distance in plan to the nearest centre line of a driving lane."""
    lines = np.concatenate([lane.polyline for lane in vector_map.lanes if lane.type == DRIVING])
    away = np.linalg.norm(points[:, None, :2] - lines[None, :, :2], axis=-1)
    return np.asarray(away.min(axis=1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_readers_choose_the_map_that_the_scene_lies_on(
    root: Path, maps: dict[str, VectorMap], recordings: dict[str, Recording], layout: str
) -> None:
    """Both layouts share one world frame; the other map is hundreds of metres away."""
    reader = open_root([root], split="train")
    (scene,) = [s for s in reader.scenes if s.name == recordings[layout].folder.name]
    chosen = reader.read_map(scene)
    assert chosen is not None
    assert len(chosen.lanes) == len(maps[layout].lanes)
    recording = recordings[layout]
    for agent in (1, 2):
        where = np.array([recording.label(agent, f)["lidar_pose"][:3] for f in (0, 40)])
        assert lane_distance(chosen, where).max() < 1.0
        other = maps["corridor" if layout == "junction" else "junction"]
        assert lane_distance(other, where).min() > 300.0


def test_verify_finds_nothing_but_lost_frames(root: Path) -> None:
    report = verify_root([root])
    assert report.ok
    assert report.findings is not None
    others = [finding for finding in report.findings if "frames" not in finding.message]
    assert others == []


# ----------------------------------------------------------------------------------------- geometry


def own_way(view: View) -> F64:
    return view.world_points()


def flipped_tilt(view: View) -> F64:
    """Roll and pitch with the wrong sign."""
    return view.world_points(flip=True)


def left_handed(view: View) -> F64:
    """Points of a left-handed sensor frame taken for right-handed ones."""
    x, y, z, *angles = view.label["lidar_pose"]
    mirrored = view.points[:, :3] * [1.0, -1.0, 1.0]
    return np.asarray(mirrored @ rotation(*angles).T + [x, y, z])


def wall_hits(
    recording: Recording, views: list[View], to_world: Callable[[View], F64]
) -> Iterator[tuple[tuple[int, int], int, F64]]:
    """Yield (block, face), agent and signed distances (P,) of its points to that wall."""
    walls = [
        (number, np.array(block["centre"]), rotation(0.0, block["yaw_deg"], 0.0), block)
        for number, block in enumerate(recording.meta["blocks"])
        if block["kind"] == "building"
    ]
    for view in views:
        near = to_world(view)[view.ranges() < 60.0]
        for number, centre, R, block in walls:
            half, own = np.array(block["half_size"]), (near - centre) @ R
            for axis in (0, 1):
                # Well inside the face, so that neither corners nor the ground are in it.
                on = np.abs(own[:, 1 - axis]) < half[1 - axis] - 0.5
                on &= (own[:, 2] < half[2] - 0.5) & (own[:, 2] > 3.5 - half[2])
                for side in (-1, 1):
                    offset = side * own[:, axis] - half[axis]
                    close = on & (np.abs(offset) < 1.5)
                    if close.sum() >= 5:
                        yield (number, 2 * axis + (side > 0)), view.agent, offset[close]


def disagreements(
    recording: Recording, views: list[View], to_world: Callable[[View], F64]
) -> list[float]:
    """Difference in metres of two agents about each wall that both have seen."""
    found: dict[tuple[int, int], dict[int, list[F64]]] = defaultdict(lambda: defaultdict(list))
    for wall, agent, offsets in wall_hits(recording, views, to_world):
        found[wall][agent].append(offsets)
    middles = [
        [float(np.median(np.concatenate(parts))) for parts in by_agent.values()]
        for by_agent in found.values()
    ]
    return [max(each) - min(each) for each in middles if len(each) > 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agents_agree_on_walls(
    recordings: dict[str, Recording], views: dict[str, list[View]], layout: str
) -> None:
    apart = disagreements(recordings[layout], views[layout], own_way)
    assert len(apart) >= 4
    assert max(apart) < 0.10


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrong", [flipped_tilt, left_handed])
def test_wrong_signs_fail_the_test_above(
    recordings: dict[str, Recording],
    views: dict[str, list[View]],
    layout: str,
    wrong: Callable[[View], F64],
) -> None:
    apart = disagreements(recordings[layout], views[layout], wrong)
    assert len(apart) < 4 or max(apart) > 0.10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_of_objects_lie_in_their_boxes(views: dict[str, list[View]], layout: str) -> None:
    total = held = 0
    for view in views[layout]:
        points = view.world_points()
        mine = np.abs(view.points[:, 3, None] - [VEHICLE_INTENSITY, OTHER_INTENSITY]) < 1e-3
        points = points[mine.any(axis=1)]
        in_any = np.zeros(len(points), np.bool_)
        for box in view.boxes().values():
            in_any |= inside(points, box, 0.10)
        total += len(points)
        held += int(in_any.sum())
    assert total > 2000
    assert held >= 0.95 * total


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_per_car_fall_with_range(views: dict[str, list[View]], layout: str) -> None:
    edges = np.array([5.0, 15.0, 30.0, 60.0])
    counts: list[list[int]] = [[] for _ in edges[1:]]
    for view in views[layout]:
        points, origin = view.world_points(), np.array(view.label["lidar_pose"][:3])
        for number, box in view.boxes().items():
            far = int(np.searchsorted(edges, np.linalg.norm(box[0] - origin))) - 1
            if view.label["vehicles"][number]["obj_type"] == "Car" and 0 <= far < len(counts):
                counts[far].append(int(inside(points, box, 0.1).sum()))
    assert min(len(part) for part in counts) >= 10
    near, middle, far_away = (float(np.mean(part)) for part in counts)
    assert near > 2.0 * middle > 4.0 * far_away


# --------------------------------------------------------------------------------------- visibility


@pytest.mark.parametrize("layout", LAYOUTS)
def test_together_agents_see_more_than_any_of_them(
    recordings: dict[str, Recording], layout: str
) -> None:
    recording = recordings[layout]
    alone: dict[int, list[float]] = defaultdict(list)
    together: list[float] = []
    for frame in range(0, recording.meta["frames"], 10):
        present = {
            int(number)
            for number, entry in recording.meta["objects"].items()
            if entry["type"] in VEHICLES and recording.state(int(number), frame) is not None
        }
        seen = {
            agent: set(recording.label(agent, frame)["vehicles"]) & present
            for agent in recording.agents
            if frame in recording.frames(agent)
        }
        for agent, objects in seen.items():
            alone[agent].append(len(objects) / len(present))
        together.append(len(set.union(*seen.values())) / len(present))
    best = max(float(np.mean(shares)) for shares in alone.values())
    assert np.mean(together) >= best + 0.15


def behind_a_truck() -> list[str]:
    """Rows of two witnesses, a truck broadside, and a car (77) that it hides from the first."""
    placed = (
        (10, "Car", (0.0, 0.0, 0.78), 0.0, (4.6, 1.9, 1.56)),
        (11, "Car", (22.0, -25.0, 0.78), 90.0, (4.6, 1.9, 1.56)),
        (50, "Truck", (12.0, 0.0, 1.6), 90.0, (8.0, 2.5, 3.2)),
        (77, "Car", (18.0, 0.0, 0.78), 0.0, (4.6, 1.9, 1.56)),
    )
    return [
        ",".join(map(str, ("hidden", 0.5 * step, number, kind, *xyz, yaw, *size)))
        for step in range(5)
        for number, kind, xyz, yaw, size in placed
    ]


def test_a_car_behind_a_truck_has_no_points(tmp_path: Path) -> None:
    table = tmp_path / "tracks.csv"
    table.write_text("\n".join([",".join(COLUMNS), *behind_a_truck()]) + "\n")
    scene = generate(PRESETS["tiny"], tmp_path / "root", seed=0, workers=1, tracks=table)
    recording = Recording(next((scene / "train").iterdir()))
    assert recording.meta["agents"]["1"] == 10
    assert recording.meta["agents"]["2"] == 11
    hidden = np.array([18.0, 0.0, 0.78]), np.eye(3), np.array([2.3, 0.95, 0.78])
    for view in recording.views(stride=5):
        points = inside(view.world_points(), hidden, 0.10).sum()
        assert (77 in view.label["vehicles"]) == (view.agent != 1)
        assert (points == 0) == (view.agent == 1)


# ------------------------------------------------------------------------------------------- motion


def tracks(recording: Recording) -> Iterator[tuple[str, F64, dict[str, list[list[int]]]]]:
    """Yield type, states (T, 7) with NaN where absent, and the side file's entry."""
    for entry in recording.meta["objects"].values():
        states = np.full((recording.meta["frames"], 7), np.nan)
        there = [f for a, b in entry["present"] for f in range(a, b + 1)]
        states[there] = entry["states"]
        yield entry["type"], states, entry


def gets_nowhere(states: F64) -> bool:
    return bool(np.ptp(states[~np.isnan(states[:, 0]), :2], axis=0).max() < 2.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_of_the_vehicles_are_parked(recordings: dict[str, Recording], layout: str) -> None:
    parked = [gets_nowhere(s) for kind, s, _ in tracks(recordings[layout]) if kind in VEHICLES]
    assert len(parked) >= 20
    assert 0.40 <= np.mean(parked) <= 0.60


@pytest.mark.parametrize("layout", LAYOUTS)
def test_speeds_and_accelerations(recordings: dict[str, Recording], layout: str) -> None:
    fastest = 0.0
    for kind, states, _ in tracks(recordings[layout]):
        velocity = np.diff(states[::5, :2], axis=0) / 0.5
        speed = np.linalg.norm(velocity, axis=1)
        acceleration = np.diff(speed) / 0.5
        if kind in VEHICLES:
            assert np.nanmax(np.abs(acceleration), initial=0.0) <= 4.0
        assert np.nanmax(speed, initial=0.0) <= 14.0
        fastest = max(fastest, float(np.nanmax(speed, initial=0.0)))
    assert fastest > 6.0


def test_tracks_start_late_and_end_early(recordings: dict[str, Recording]) -> None:
    """Of the moving vehicles, as the labels of all agents show them."""
    late, early = [], []
    for recording in recordings.values():
        last = recording.meta["frames"] - 1
        for kind, states, entry in tracks(recording):
            if kind in VEHICLES and entry["labelled"] and not gets_nowhere(states):
                late.append(entry["labelled"][0][0] > 0)
                early.append(entry["labelled"][-1][1] < last)
    assert len(late) >= 20
    assert np.mean(late) >= 0.20
    assert np.mean(early) >= 0.20


def test_every_class_is_there(recordings: dict[str, Recording]) -> None:
    seen = {
        entry["obj_type"]
        for recording in recordings.values()
        for view in recording.views(stride=20)
        for entry in view.label["vehicles"].values()
    }
    for members in SUPER_CLASSES.values():
        assert seen & members


# -------------------------------------------------------------------------------------- determinism


def digest(root: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            content.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return content.hexdigest()


def test_one_seed_one_hash(tmp_path: Path) -> None:
    preset = replace(PRESETS["tiny"], scenes=(2, 0, 0), layouts=LAYOUTS, frames=6)
    first = generate(preset, tmp_path / "a", seed=3, workers=1)
    assert digest(generate(preset, tmp_path / "b", seed=3, workers=2)) == digest(first)
    assert digest(generate(preset, tmp_path / "c", seed=4, workers=1)) != digest(first)
