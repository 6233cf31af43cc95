"""Boxes (M, 7): x, y, z of the centre, full length, width, height in metres, yaw in rad, ccw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.geometry.poses import transform_points

_CORNER_SIGNS: Final = np.array([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
"""Front-left, rear-left, rear-right, front-right: counterclockwise, in lengths and widths."""

_STRIP_M: Final = 0.5
"""Width along x of the strips that points are sorted into before boxes look at them."""


def wrap_angle(rad: NDArray[Any]) -> NDArray[Any]:
    """Return angles (...) brought to [-pi, pi)."""
    return np.asarray(np.mod(np.asarray(rad) + math.pi, 2 * math.pi) - math.pi)


def transform_boxes(dst_SE3_src: NDArray[Any], boxes: NDArray[Any]) -> NDArray[Any]:
    """Return boxes (M, 7) moved to the dst frame, in the dtype they came with.

    The centre is moved in 3D. The heading is turned in 3D and then laid flat; roll and pitch of
    the result are dropped and the sizes kept.
    """
    _check(boxes)
    m = np.asarray(dst_SE3_src, dtype=np.float64)
    moved = transform_points(m, boxes)
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=-1) @ m[:2, :2].T
    moved[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return moved


def bev_corners(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return (M, 4, 2) corners from above: front-left, then counterclockwise."""
    _check(boxes)
    local = _CORNER_SIGNS.astype(boxes.dtype) * boxes[:, None, 3:5]
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.asarray(np.stack([x, y], axis=-1) + boxes[:, None, :2])


def corners_3d(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return (M, 8, 3) corners: the four of `bev_corners` at the bottom, then at the top."""
    flat = bev_corners(boxes)
    half = boxes[:, 5] / 2
    corners = np.empty((len(boxes), 8, 3), dtype=flat.dtype)
    corners[:, :4, :2] = corners[:, 4:, :2] = flat
    corners[:, :4, 2] = (boxes[:, 2] - half)[:, None]
    corners[:, 4:, 2] = (boxes[:, 2] + half)[:, None]
    return corners


def bev_hulls(boxes: NDArray[Any]) -> NDArray[np.float64]:
    """Return (M, 4) x_min, y_min, x_max, y_max of the axis-aligned hulls seen from above."""
    _check(boxes)
    values = boxes.astype(np.float64)
    cos, sin = np.abs(np.cos(values[:, 6])), np.abs(np.sin(values[:, 6]))
    length, width = values[:, 3], values[:, 4]
    half = np.stack([length * cos + width * sin, length * sin + width * cos], axis=-1) / 2
    return np.concatenate([values[:, :2] - half, values[:, :2] + half], axis=1)


def points_in_boxes(
    points: NDArray[Any], boxes: NDArray[Any], margin_m: float = 0.0
) -> NDArray[np.int64]:
    """Return (P,) index of the box each point lies in, -1 outside all.

    The surface counts as inside. Where boxes overlap the first one has the point. NaN points lie
    nowhere.

    Args:
        points: (P, 3+) in the frame of the boxes.
        boxes: (M, 7).
        margin_m: Distance by which every face is moved outwards (inwards when negative).
    """
    owner = np.full(len(points), -1, dtype=np.int64)
    members = list(_members(points, boxes, margin_m))
    for box, inside in reversed(members):
        owner[inside] = box
    return owner


def count_points(
    points: NDArray[Any], boxes: NDArray[Any], margin_m: float = 0.0
) -> NDArray[np.int64]:
    """Return (M,) number of points in each box; where boxes overlap a point counts in each."""
    counts = np.zeros(len(boxes), dtype=np.int64)
    for box, inside in _members(points, boxes, margin_m):
        counts[box] = len(inside)
    return counts


def inside_range(
    boxes: NDArray[Any], range_m: Sequence[float], corners: int = 4
) -> NDArray[np.bool_]:
    """Return (M,) whether boxes lie inside a range; the border is inside and z is not tested.

    Args:
        boxes: (M, 7).
        range_m: x, y, z min, then x, y, z max.
        corners: How many of the four corners seen from above must lie inside.
    """
    if len(range_m) != 6:
        raise ValueError(f"`range_m` must hold 6 values. Found {len(range_m)}.")
    points = bev_corners(boxes)
    low, high = np.asarray(range_m[:2]), np.asarray(range_m[3:5])
    inside = ((points >= low) & (points <= high)).all(axis=-1)
    return np.asarray(inside.sum(axis=1) >= corners, dtype=np.bool_)


def contains_origin(boxes: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (M,) whether x = y = 0 lies inside a box seen from above (a sensor on a roof does)."""
    _check(boxes)
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    along = np.abs(boxes[:, 0] * cos + boxes[:, 1] * sin)
    across = np.abs(boxes[:, 1] * cos - boxes[:, 0] * sin)
    return np.asarray((along <= boxes[:, 3] / 2) & (across <= boxes[:, 4] / 2), dtype=np.bool_)


def _members(
    points: NDArray[Any], boxes: NDArray[Any], margin_m: float
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (box, indices of the points in it) for each box that has a point near it.

    Points are sorted into strips along x once, so that a box looks only at the strips it touches.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"`points` must have shape (P, 3+). Found {tuple(points.shape)}.")
    hulls = bev_hulls(boxes) + np.array([-1.0, -1.0, 1.0, 1.0]) * abs(margin_m)
    if not len(points) or not len(boxes):
        return
    order, strip_of, first_x = _sort_into_strips(points, hulls)
    starts = np.searchsorted(strip_of, np.floor((hulls[:, 0] - first_x) / _STRIP_M), side="left")
    ends = np.searchsorted(strip_of, np.floor((hulls[:, 2] - first_x) / _STRIP_M), side="right")
    for box in range(len(boxes)):
        near = order[starts[box] : ends[box]]
        y = points[near, 1]
        near = near[(y >= hulls[box, 1]) & (y <= hulls[box, 3])]
        if len(near):
            yield box, near[_inside(points[near, :3], boxes[box], margin_m)]


def _sort_into_strips(
    points: NDArray[Any], hulls: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Return point indices by rising strip, their strips, and the x where strip 0 begins."""
    low, high = hulls.min(axis=0), hulls.max(axis=0)
    x, y = points[:, 0], points[:, 1]
    near = np.flatnonzero((x >= low[0]) & (x <= high[2]) & (y >= low[1]) & (y <= high[3]))
    strips = np.floor((x[near].astype(np.float64) - low[0]) / _STRIP_M).astype(np.int64)
    if len(strips) and strips.max() < np.iinfo(np.int16).max:
        # numpy sorts 16-bit numbers by radix, several times faster than by comparison.
        order = np.argsort(strips.astype(np.int16), kind="stable")
    else:
        order = np.argsort(strips, kind="stable")
    return near[order], strips[order], float(low[0])


def _inside(xyz: NDArray[Any], box: NDArray[Any], margin_m: float) -> NDArray[np.bool_]:
    offset = xyz.astype(np.float64) - box[:3]
    cos, sin = math.cos(box[6]), math.sin(box[6])
    along = offset[:, 0] * cos + offset[:, 1] * sin
    across = offset[:, 1] * cos - offset[:, 0] * sin
    half = np.asarray(box[3:6], dtype=np.float64) / 2 + margin_m
    local = np.abs(np.stack([along, across, offset[:, 2]]))
    return np.asarray((local <= half[:, None]).all(axis=0), dtype=np.bool_)


def _check(boxes: NDArray[Any]) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            "`boxes` must have shape (M, 7): x, y, z, length, width, height, yaw. "
            f"Found {tuple(boxes.shape)}."
        )
