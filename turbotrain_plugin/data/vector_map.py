"""Lanes cut into segments of 10 points, moved into the ego frame, the nearest found per cell.

The cut is that of the V2XPnP host (its map encoder's input); the points where we had to choose are
said at ``segments``. Unlike the host's helper it works with any number of segments, none included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.map_files import DRIVING, Lane, VectorMap, read_map, write_map
from turbotrain_plugin.structures import MapSegments

__all__ = [
    "BOUNDARY",
    "SEGMENT_POINTS",
    "Lane",
    "VectorMap",
    "WorldSegments",
    "nearest_segments",
    "read_map",
    "segments",
    "segments_in_ego",
    "write_map",
]

BOUNDARY: Final = 5
"""Type of a segment that is the edge of a driving lane, beside the lane types 0 to 4."""
SEGMENT_POINTS: Final = 10
"""Points of a full segment."""
_MIN_POINTS: Final = 5
"""Shortest tail that is kept; a whole line must be longer than this."""
_JUMP_MEDIANS: Final = 3.0
_JUMP_M: Final = 3.0
"""A step of a boundary above both (in median steps, in metres) leads to another edge."""


@dataclass(frozen=True, slots=True)
class WorldSegments(MapSegments):
    """Segments in the world, with what is needed to move them exactly.

    Attributes:
        xyz: (S, 10, 3) float64, world positions; zero where padded.
        has_height: Whether the map says heights (real ones do; a map at z = 0 everywhere does not).
    """

    xyz: NDArray[np.float64]
    has_height: bool


def segments(vector_map: VectorMap) -> WorldSegments:
    """Cut the lines of a map into segments of 10 points, world frame.

    Lines are the centre line of every lane and the edge of driving lanes (type 5). Lines of 5
    points or fewer are left out; a last piece of 5 to 9 points is kept, padded with zeros.
    Maps list the left and the right edge of a lane in one ``boundary``; it is taken apart where a
    step is longer than 3 m and than 3 median steps, so that no segment leads across the lane from
    the end of one edge to the start of the other (our choice; the host's helper cuts through).
    Direction and previous point are taken inside a segment, so that each stands for itself: its
    first point is its own predecessor and has the direction of the second (our choice where the
    host's text leaves it open; the same holds for repeated points, whose direction is zero).

    Returns:
        Segments, in the order of the lanes; S may be 0.
    """
    pieces: list[NDArray[np.float64]] = []
    types: list[int] = []
    for lane in vector_map.lanes:
        lines = [(lane.polyline, lane.type)]
        if lane.type == DRIVING:
            lines += [(edge, BOUNDARY) for edge in _edges(lane.boundary)]
        for line, kind in lines:
            cut = _cut(line)
            pieces += cut
            types += [kind] * len(cut)
    xyz = np.zeros((len(pieces), SEGMENT_POINTS, 3))
    valid = np.zeros((len(pieces), SEGMENT_POINTS), dtype=np.bool_)
    for row, piece in enumerate(pieces):
        xyz[row, : len(piece)] = piece
        valid[row, : len(piece)] = True
    heights = xyz[valid][:, 2]
    points = _attributes(xyz[..., :2], valid, np.array(types, dtype=np.float64))
    return WorldSegments(
        points=points, valid=valid, xyz=xyz, has_height=bool(heights.size and np.ptp(heights) > 0)
    )


def segments_in_ego(world: WorldSegments, ego_SE3_world: NDArray[np.float64]) -> MapSegments:
    """Return the segments in the ego LiDAR frame.

    Points are moved in 3D before their height is dropped: a sensor tilted by a few degrees on a
    hill would otherwise shift the map by metres. A map without heights is taken to lie at the
    height of the sensor.

    Args:
        world: Result of ``segments``.
        ego_SE3_world: (4, 4), world to the ego LiDAR frame.

    Returns:
        Positions, previous points and unit directions in the ego frame; types unchanged.
    """
    ego_SE3_world = np.asarray(ego_SE3_world, dtype=np.float64)
    R, t = ego_SE3_world[:3, :3], ego_SE3_world[:3, 3]
    xyz = world.xyz
    if not world.has_height:
        sensor_z = -(R.T @ t)[2]
        xyz = np.concatenate([xyz[..., :2], np.full((*xyz.shape[:2], 1), sensor_z)], axis=-1)
    moved = xyz @ R.T + t
    # Every segment has a valid first point; padding is zeroed once more by _attributes.
    points = _attributes(moved[..., :2], world.valid, world.points[:, 0, 4].astype(np.float64))
    return MapSegments(points=points, valid=world.valid)


def nearest_segments(
    cell_centres: NDArray[np.floating], segments: MapSegments, count: int
) -> NDArray[np.int64]:
    """Find the segments nearest to every cell by the mean of their valid points.

    Args:
        cell_centres: (Hm, Wm, 2), x, y in the frame of the segments.
        segments: S segments, as ``segments_in_ego`` returns them.
        count: Segments wanted per cell.

    Returns:
        (Hm, Wm, count) int64 rows of ``segments``, nearest first; -1 where fewer exist.
    """
    nearest = np.full((*cell_centres.shape[:2], count), -1, dtype=np.int64)
    available = min(count, len(segments.points))
    if available == 0:
        return nearest
    weight = segments.valid[..., None].astype(np.float64)
    mean = (segments.points[..., :2] * weight).sum(axis=1) / weight.sum(axis=1)
    # A list of ranks keeps the last axis even when one neighbour is asked for.
    _, rows = cKDTree(mean).query(cell_centres, k=list(range(1, available + 1)))
    nearest[..., :available] = rows
    return nearest


def _edges(boundary: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the lines of a boundary, apart where it jumps."""
    if len(boundary) < 2:
        return [boundary]
    step = np.linalg.norm(np.diff(boundary, axis=0), axis=1)
    jump = (step > _JUMP_M) & (step > _JUMP_MEDIANS * np.median(step))
    return np.split(boundary, np.flatnonzero(jump) + 1)


def _cut(line: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    if len(line) <= _MIN_POINTS:
        return []
    cut = [line[start : start + SEGMENT_POINTS] for start in range(0, len(line), SEGMENT_POINTS)]
    return cut if len(cut[-1]) >= _MIN_POINTS else cut[:-1]


def _attributes(
    xy: NDArray[np.float64], valid: NDArray[np.bool_], types: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return (S, 10, 7): x, y, dx, dy, type, x_pre, y_pre; zero where padded."""
    previous = np.concatenate([xy[:, :1], xy[:, :-1]], axis=1)
    step = xy - previous
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    direction = np.divide(step, length, out=np.zeros_like(step), where=length > 0)
    direction[:, 0] = direction[:, 1]
    kind = np.broadcast_to(types[:, None, None], (*xy.shape[:2], 1))
    points = np.concatenate([xy, direction, kind, previous], axis=-1)
    return np.where(valid[..., None], points, 0.0).astype(np.float32)
