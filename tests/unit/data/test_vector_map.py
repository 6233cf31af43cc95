"""Map files that hosts can read and we can read safely; segments against a plain-loop version."""

from __future__ import annotations

import pickle
import pickletools
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.made_scenes import MadeAgent, straight_map, world_SE3_lidar
from turbotrain_plugin.data.vector_map import (
    Lane,
    VectorMap,
    nearest_segments,
    read_map,
    segments,
    segments_in_ego,
    write_map,
)
from turbotrain_plugin.structures import MapSegments, UserError

MODULE = "opencood.data_utils.datasets.map.map_types"


def lane(count: int, kind: int = 1, boundary: int = 0, seed: int = 0) -> Lane:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).cumsum(axis=0)
    edge = rng.normal(size=(boundary, 3)).cumsum(axis=0)
    return Lane(seed, -1, kind, points, edge, ("1_2", "3_-4"), (f"5_{seed}",))


def globals_in(raw: bytes) -> list[str]:
    named = ("GLOBAL", "STACK_GLOBAL", "INST")
    return [str(arg) for opcode, arg, _ in pickletools.genops(raw) if opcode.name in named]


# ------------------------------------------------------------------------------------------- files


def test_a_boundary_is_taken_apart_where_it_jumps() -> None:
    """Left and right edge in one list: no segment leads from one to the other."""
    x = np.arange(26.0)
    left = np.stack([x, np.full(26, 1.75), x * 0.01], axis=-1)
    right = left - [0.0, 3.5, 0.0]
    middle = (left + right) / 2
    both = VectorMap((Lane(1, 1, 1, middle, np.concatenate([left, right])),))
    found = segments(both)
    assert found.valid.sum(axis=1).tolist() == [10, 10, 6] * 3
    assert found.points[:, 0, 4].tolist() == [1.0] * 3 + [5.0] * 6
    edges = found.xyz[3:]
    for row, edge in enumerate((left, left, left, right, right, right)):
        start = 10 * (row % 3)
        expected = edge[start : start + 10]
        np.testing.assert_array_equal(edges[row, : len(expected)], expected)
    # In reverse order the jump is only as wide as the lane.
    back = VectorMap((Lane(1, 1, 1, middle, np.concatenate([left, right[::-1]])),))
    assert segments(back).valid.sum(axis=1).tolist() == [10, 10, 6] * 3


@pytest.mark.parametrize(
    ("x", "pieces"),
    [
        ([0, 1, 2, 3, 4, 5, 8.5, 9.5, 10.5, 11.5, 12.5, 13.5], [6, 6]),  # 3.5 m after 1 m steps
        ([0, 1, 2, 3, 4, 5, 7.9, 8.9, 9.9, 10.9, 11.9, 12.9], [10]),  # under 3 m
        ([0, 2, 4, 6, 8, 10, 15.9, 17.9, 19.9, 21.9, 23.9, 25.9], [10]),  # under 3 median steps
        ([0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9], [6, 6]),  # repeated points: median 0
        ([0, 9, 10, 11, 12, 13, 14, 15], [7]),  # what is left of a stray point is too short
    ],
)
def test_what_counts_as_a_jump(x: list[float], pieces: list[int]) -> None:
    line = np.stack([np.array(x), np.zeros(len(x)), np.zeros(len(x))], axis=-1)
    driving = segments(VectorMap((Lane(1, 1, 1, np.zeros((0, 3)), line),)))
    assert driving.valid.sum(axis=1).tolist() == pieces
    # A centre line is one line whatever its spacing.
    centre = segments(VectorMap((Lane(1, 1, 1, line, np.zeros((0, 3))),)))
    assert centre.valid.sum(axis=1).tolist() == [min(len(x), 10)]


def test_round_trip(tmp_path: Path) -> None:
    written = VectorMap((lane(12, 1, 24, seed=3), lane(0, 2), lane(1, 4, 0, seed=9)))
    write_map(tmp_path / "m.pkl", written)
    read = read_map(tmp_path / "m.pkl")
    assert len(read.lanes) == 3
    for a, b in zip(written.lanes, read.lanes, strict=True):
        assert (a.road_id, a.lane_id, a.type, a.entry, a.exit) == (
            *(b.road_id, b.lane_id, b.type),
            *(b.entry, b.exit),
        )
        np.testing.assert_array_equal(a.polyline, b.polyline)
        np.testing.assert_array_equal(a.boundary, b.boundary)
    assert read.lanes[1].polyline.shape == (0, 3)
    assert read.lanes[0].name == "3_-1"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pkl"]


def test_empty_map(tmp_path: Path) -> None:
    write_map(tmp_path / "m.pkl", VectorMap(()))
    assert read_map(tmp_path / "m.pkl").lanes == ()


def test_written_pickle_names_three_globals_of_protocol_2(tmp_path: Path) -> None:
    write_map(tmp_path / "m.pkl", straight_map(0.0))
    raw = (tmp_path / "m.pkl").read_bytes()
    assert raw[:2] == b"\x80\x02"
    assert globals_in(raw) == [f"{MODULE} Map", f"{MODULE} Lane", f"{MODULE} MapPoint"]
    assert max(opcode.proto for opcode, _, _ in pickletools.genops(raw)) == 2
    assert "opencood" not in sys.modules


# What the host declares, for the tests that act as the host.
@dataclass
class MapPoint:
    x: float
    y: float
    z: float


@dataclass
class HostLane:
    road_id: int
    lane_id: int
    type: int
    polyline: list[MapPoint]
    entry_lanes: list[str]
    exit_lanes: list[str]
    boundary: list[MapPoint]


@dataclass
class Crosswalk:
    polygon: list[MapPoint]
    id: int


@dataclass
class Map:
    map_features: Any
    dynamic_states: object = None


class LaneType(IntEnum):
    DRIVING = 1


@pytest.fixture
def host() -> Iterator[None]:
    """The host's module, for as long as a test needs it."""
    parts = MODULE.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    modules = {name: types.ModuleType(name) for name in names}
    for name, cls in {
        "MapPoint": MapPoint,
        "Lane": HostLane,
        "Crosswalk": Crosswalk,
        "Map": Map,
        "LaneType": LaneType,
    }.items():
        setattr(modules[MODULE], name, cls)
        cls.__module__, cls.__qualname__, cls.__name__ = MODULE, name, name
    sys.modules.update(modules)
    yield
    for name in names:
        del sys.modules[name]


@pytest.mark.usefixtures("host")
def test_hosts_read_what_we_write(tmp_path: Path) -> None:
    written = straight_map(2.5)
    write_map(tmp_path / "m.pkl", written)
    read = pickle.loads((tmp_path / "m.pkl").read_bytes())
    assert type(read) is Map
    assert read.dynamic_states is None
    for ours, theirs in zip(written.lanes, read.map_features, strict=True):
        assert type(theirs) is HostLane
        assert type(theirs.type) is int
        assert (theirs.road_id, theirs.lane_id, theirs.type) == (
            *(ours.road_id, ours.lane_id),
            ours.type,
        )
        assert theirs.polyline == [MapPoint(*xyz) for xyz in ours.polyline.tolist()]
        assert theirs.boundary == [MapPoint(*xyz) for xyz in ours.boundary.tolist()]


def host_map(features: object) -> Map:
    return Map(features)


def host_lane(**changed: Any) -> HostLane:  # noqa: ANN401
    line = [MapPoint(float(i), 2.0 * i, 0.5) for i in range(3)]
    values: dict[str, Any] = {"road_id": 4, "lane_id": -2, "type": 1, "polyline": line}
    values |= {"entry_lanes": ["4_1"], "exit_lanes": [], "boundary": line[:1], **changed}
    return HostLane(**values)


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", [list, tuple, lambda lanes: dict(enumerate(lanes))])
def test_we_read_what_hosts_write(tmp_path: Path, protocol: int, container: Any) -> None:  # noqa: ANN401
    features = [Crosswalk([MapPoint(0, 0, 0)], 1), host_lane(type=LaneType.DRIVING), host_lane()]
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(host_map(container(features)), protocol))
    read = read_map(tmp_path / "m.pkl")
    assert len(read.lanes) == 2
    for one in read.lanes:
        assert (one.road_id, one.lane_id, one.type) == (4, -2, 1)
        assert type(one.type) is int
        assert one.entry == ("4_1",)
        np.testing.assert_array_equal(one.polyline, [[0, 0, 0.5], [1, 2, 0.5], [2, 4, 0.5]])
        np.testing.assert_array_equal(one.boundary, [[0, 0, 0.5]])


@pytest.mark.usefixtures("host")
def test_missing_links_and_edges(tmp_path: Path) -> None:
    bare = host_lane(entry_lanes=None, exit_lanes=None, boundary=None)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(host_map([bare]), 2))
    read = read_map(tmp_path / "m.pkl").lanes[0]
    assert (read.entry, read.exit, read.boundary.shape) == ((), (), (0, 3))


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    "features",
    [
        lambda: [host_lane(polyline=3)],
        lambda: [host_lane(polyline=[1.0])],
        lambda: [host_lane(road_id="x")],
        lambda: [host_lane(polyline=[MapPoint(0, float("nan"), 0)])],
        lambda: [host_lane(boundary=[MapPoint(0, 0, float("inf"))])],
    ],
)
def test_damaged_lanes(tmp_path: Path, features: Any) -> None:  # noqa: ANN401
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(host_map(features()), 2))
    with pytest.raises(UserError, match=r"m\.pkl: a lane of the map is damaged"):
        read_map(tmp_path / "m.pkl")


@pytest.mark.parametrize("content", [[1], {"map_features": []}, None])
def test_pickle_without_a_map(tmp_path: Path, content: object) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match="holds no vector map"):
        read_map(tmp_path / "m.pkl")


# ---------------------------------------------------------------------------------------- segments


def plain_segments(vector_map: VectorMap) -> list[list[list[float]]]:
    """Segments by loops over single points, as the facts state them."""
    found = []
    for one in vector_map.lanes:
        lines = [(one.polyline, one.type)] + ([(one.boundary, 5)] if one.type == 1 else [])
        for line, kind in lines:
            if len(line) <= 5:
                continue
            for start in range(0, len(line), 10):
                piece = line[start : start + 10]
                if len(piece) < 5:
                    continue
                rows: list[list[float]] = []
                for i, (x, y, _) in enumerate(piece):
                    px, py = piece[max(i - 1, 0), :2]
                    ax, ay = piece[max(i, 1), :2] - piece[max(i, 1) - 1, :2]
                    norm = float(np.hypot(ax, ay))
                    rows.append([x, y, ax / norm, ay / norm, kind, px, py])
                found.append(rows)
    return found


def check_against_plain(vector_map: VectorMap) -> None:
    made, plain = segments(vector_map), plain_segments(vector_map)
    assert made.points.shape == (len(plain), 10, 7)
    assert made.points.dtype == np.float32
    for points, valid, rows in zip(made.points, made.valid, plain, strict=True):
        assert valid.tolist() == [True] * len(rows) + [False] * (10 - len(rows))
        np.testing.assert_allclose(points[: len(rows)], rows, atol=1e-5)
        assert not points[len(rows) :].any()


@pytest.mark.parametrize(
    ("count", "lengths"),
    [
        (0, []),
        (4, []),
        (5, []),
        (6, [6]),
        (9, [9]),
        (10, [10]),
        (11, [10]),
        (14, [10]),
        (15, [10, 5]),
        (19, [10, 9]),
        (20, [10, 10]),
        (25, [10, 10, 5]),
    ],
)
def test_cut(count: int, lengths: list[int]) -> None:
    made = segments(VectorMap((lane(count, kind=2),)))
    assert made.valid.sum(axis=1).tolist() == lengths
    check_against_plain(VectorMap((lane(count, kind=2),)))


def test_attributes_of_a_mixed_map() -> None:
    lanes = [lane(n, kind, edge, n) for n, kind, edge in [(23, 1, 37), (8, 4, 30), (5, 1, 12)]]
    check_against_plain(VectorMap(tuple(lanes)))
    kinds = segments(VectorMap(tuple(lanes))).points[:, 0, 4].tolist()
    # Edges only of driving lanes; the third lane is too short, its edge is not.
    assert kinds == [1, 1, 5, 5, 5, 5, 4, 5]


def test_repeated_points_have_no_direction() -> None:
    line = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 2, 0], [1, 4, 0]], float)
    points = segments(VectorMap((Lane(0, 0, 2, line, np.zeros((0, 3))),))).points[0]
    expected = [[0, 0], [0, 0], [1, 0], [0, 0], [0, 1], [0, 1]]
    np.testing.assert_array_equal(points[:6, 2:4], expected)


@pytest.mark.parametrize("lanes", range(6))
def test_maps_of_few_segments(lanes: int) -> None:
    """The host's helper fails at five segments or fewer."""
    pieces = VectorMap(tuple(lane(10, kind=2, seed=seed) for seed in range(lanes)))
    moved = segments_in_ego(segments(pieces), np.eye(4))
    cells = np.random.default_rng(0).normal(size=(3, 4, 2))
    nearest = nearest_segments(cells, moved, 5)
    assert nearest.shape == (3, 4, 5)
    assert nearest.dtype == np.int64
    for cell in nearest.reshape(-1, 5):
        assert sorted(cell[: min(lanes, 5)].tolist()) == list(range(lanes))
        assert (cell[lanes:] == -1).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nearest_by_mean_of_valid_points(count: int) -> None:
    pieces = VectorMap(tuple(lane(6 + seed % 5, kind=2, seed=seed) for seed in range(30)))
    made = segments(pieces)
    cells = np.random.default_rng(1).normal(scale=5, size=(7, 9, 2))
    nearest = nearest_segments(cells, made, count)
    # The mean of a padded segment must not be drawn to the origin by its zeros.
    means = np.array([one.polyline[:10, :2].mean(axis=0) for one in pieces.lanes])
    for cell, rows in zip(cells.reshape(-1, 2), nearest.reshape(-1, count), strict=True):
        expected = np.argsort(np.linalg.norm(means - cell, axis=1))[:count]
        assert rows.tolist() == expected.tolist()


def ego_pose(**tilt: float) -> NDArray[np.float64]:
    return world_SE3_lidar(MadeAgent(1, (300.0, -120.0, 62.0), **tilt), 0)  # type: ignore[arg-type]


def inverse(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(pose), dtype=np.float64)


def test_segments_in_ego_follow_every_point() -> None:
    """With height, a tilted ego on a hill sees each point where the 3D transform puts it."""
    base = lane(26, kind=1, boundary=17, seed=4)
    shift = np.array([310.0, -110.0, 60.0])
    moved = Lane(1, 1, 1, base.polyline + shift, base.boundary + shift)
    pose = ego_pose(yaw_deg=40.0, pitch_deg=4.0, roll_deg=-3.0)
    ego = segments_in_ego(segments(VectorMap((moved,))), inverse(pose))
    own = [(line - pose[:3, 3]) @ pose[:3, :3] for line in (moved.polyline, moved.boundary)]
    expected = segments(VectorMap((Lane(1, 1, 1, own[0], own[1]),)))
    np.testing.assert_array_equal(ego.valid, expected.valid)
    np.testing.assert_allclose(ego.points, expected.points, atol=1e-5)
    assert not isinstance(ego, type(expected))
    assert isinstance(ego, MapSegments)


def test_map_without_heights_lies_at_the_sensor() -> None:
    """A map at z = 0 seen from z = 62 with 4 degrees pitch would be moved by 4 m if believed."""
    line = np.stack([300.0 + np.arange(10.0), np.full(10, -120.0), np.zeros(10)], axis=-1)
    flat = VectorMap((Lane(1, 1, 2, line, np.zeros((0, 3))),))
    made = segments(flat)
    assert not made.has_height
    ego = segments_in_ego(made, inverse(ego_pose(pitch_deg=4.0)))
    np.testing.assert_allclose(ego.points[0, :, 0], np.arange(10.0), atol=0.03)
    np.testing.assert_allclose(ego.points[0, :, 1], 0.0, atol=1e-6)


def test_far_world_keeps_centimetres() -> None:
    """World coordinates of a projected map: float32 alone would be off by half a metre."""
    line = np.stack([4e6 + np.arange(10.0), np.full(10, 5e5), np.full(10, 3.0)], axis=-1)
    line[0, 2] = 3.1
    pose = world_SE3_lidar(MadeAgent(1, (4e6, 5e5, 3.0), yaw_deg=30.0), 0)
    made = segments(VectorMap((Lane(1, 1, 2, line, np.zeros((0, 3))),)))
    ego = segments_in_ego(made, inverse(pose))
    expected = np.arange(10.0)[:, None] * [np.cos(np.pi / 6), -np.sin(np.pi / 6)]
    np.testing.assert_allclose(ego.points[0, :, :2], expected, atol=1e-3)


def test_types_and_padding_survive_the_move() -> None:
    made = segments(straight_map(0.0))
    ego = segments_in_ego(made, inverse(ego_pose(yaw_deg=10.0)))
    np.testing.assert_array_equal(ego.points[..., 4], made.points[..., 4])
    np.testing.assert_array_equal(ego.valid, made.valid)
    short = segments(VectorMap((lane(6, kind=2),)))
    assert not segments_in_ego(short, inverse(ego_pose())).points[0, 6:].any()
