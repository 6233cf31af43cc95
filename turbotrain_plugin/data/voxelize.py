"""Points to voxels, vectorised: one sort of integer keys, no Python over points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.geometry.grid import BevGrid

__all__ = [
    "VoxelCloud",
    "VoxelPlan",
    "inside_range",
    "plan_voxels",
    "voxelize",
    "voxelize_cloud",
]


@dataclass(frozen=True, slots=True)
class VoxelCloud:
    """Voxels of one cloud and how much of it they hold.

    Attributes:
        points: (V, P, 4) float32, zero padded.
        coordinates: (V, 3) int32: z, y, x.
        counts: (V,) int32, filled slots.
        in_range: Points of the cloud inside the range.
        in_kept_voxels: Of these, points in a voxel that was kept, beyond P or not.
    """

    points: NDArray[np.float32]
    coordinates: NDArray[np.int32]
    counts: NDArray[np.int32]
    in_range: int
    in_kept_voxels: int

    @property
    def truncated_share(self) -> float:
        """Share of the points in range that fell to the voxel limit."""
        return 1.0 - self.in_kept_voxels / self.in_range if self.in_range else 0.0


def voxelize(
    points: NDArray[np.float32],
    grid: BevGrid,
    max_points: int,
    max_voxels: int,
    rng: np.random.Generator | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Group points by voxel as the usual sequential voxel generator does.

    Points are taken in order (shuffled first when ``rng`` is given, so that what truncation loses
    is random): the first point of a voxel opens it while fewer than ``max_voxels`` are open, each
    open voxel keeps its first ``max_points`` points, the rest is dropped. Voxels come in the order
    in which they were opened.

    Args:
        points: (P, 4) x, y, z in the grid's frame, intensity. Rows outside the range or NaN are
            dropped; the upper ends of the range are outside.
        grid: Range and voxel size.
        max_points: Points kept per voxel.
        max_voxels: Voxels kept.
        rng: Source of the shuffle; None keeps the order.

    Returns:
        Points (V, max_points, 4), coordinates z, y, x (V, 3) and filled slots (V,).
    """
    cloud = voxelize_cloud(points, grid, max_points, max_voxels, rng)
    return cloud.points, cloud.coordinates, cloud.counts


def voxelize_cloud(
    points: NDArray[np.float32],
    grid: BevGrid,
    max_points: int,
    max_voxels: int,
    rng: np.random.Generator | None = None,
) -> VoxelCloud:
    """Return what ``voxelize`` returns together with the loss by truncation."""
    plan = plan_voxels(points, grid, max_voxels, rng)
    grouped = np.zeros((len(plan.first), max_points, 4), np.float32)
    plan.fill(points, grouped)
    return VoxelCloud(
        points=grouped,
        coordinates=plan.coordinates,
        counts=np.minimum(plan.sizes, max_points).astype(np.int32),
        in_range=len(plan.order),
        in_kept_voxels=int(plan.sizes.sum()),
    )


@dataclass(frozen=True, slots=True)
class VoxelPlan:
    """Which points of a cloud go into which voxel; what to fill once the memory is there.

    Attributes:
        coordinates: (V, 3) int32: z, y, x.
        order: (Q,) rows of the points in range, voxel by voxel, in the order they were taken.
        first: (V,) where each voxel begins in ``order``.
        sizes: (V,) points of each voxel, those beyond the limit included.
    """

    coordinates: NDArray[np.int32]
    order: NDArray[np.int64]
    first: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def fill(self, points: NDArray[np.float32], grouped: NDArray[np.float32]) -> None:
        """Write the points (P, 4) into ``grouped`` (V, max_points, 4), which must hold zeros."""
        voxels: NDArray[np.int64] | slice = slice(None)
        for slot in range(grouped.shape[1]):
            if slot:
                voxels = np.flatnonzero(self.sizes > slot)
            rows = self.order[self.first[voxels] + slot]
            if not len(rows):
                break
            grouped[voxels, slot] = points.take(rows, axis=0)


def plan_voxels(
    points: NDArray[np.float32],
    grid: BevGrid,
    max_voxels: int,
    rng: np.random.Generator | None = None,
) -> VoxelPlan:
    """Return the voxels of a cloud in the order they were opened; arguments as ``voxelize``."""
    columns = _voxel_columns(points, grid)
    inside = np.flatnonzero(columns >= 0)
    if rng is not None:
        inside = rng.permutation(inside)
    keys = columns[inside]
    place = _stable_order(keys)
    keys = keys[place]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    sizes = np.diff(starts, append=len(keys))
    # Voxels in the order they were opened, cut at the limit.
    opener = np.full(len(keys), -1)
    opener[place[starts]] = np.arange(len(starts))
    opened = opener[opener >= 0][:max_voxels]
    first = starts[opened]
    return VoxelPlan(_unravel(keys[first], grid), inside[place], first, sizes[opened])


def _stable_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the order that sorts keys (Q,), which are not negative, equal ones as they came.

    numpy sorts 16-bit numbers by radix: two or three passes of that, the low digits first, are
    several times faster than sorting by comparison.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    keys = keys >> 16
    while keys.any():
        order = order[np.argsort(keys.astype(np.uint16)[order], kind="stable")]
        keys = keys >> 16
    return order


def inside_range(
    points: NDArray[np.floating], range_m: tuple[float, float, float, float, float, float]
) -> NDArray[np.bool_]:
    """Return (P,) whether the points (P, 3+) lie in the range, its upper ends excluded."""
    inside = np.ones(len(points), dtype=np.bool_)
    for axis in range(3):  # whole columns are several times faster than rows of three
        column = points[:, axis]
        low, high = np.float64(range_m[axis]), np.float64(range_m[axis + 3])
        inside &= (column >= low) & (column < high)
    return inside


def _voxel_columns(points: NDArray[np.float32], grid: BevGrid) -> NDArray[np.int64]:
    """Return (P,) the linear voxel index (z slowest, x fastest), -1 outside the range or NaN."""
    nx, ny, nz = grid.voxel_counts
    inside = np.ones(len(points), dtype=bool)
    columns = np.zeros(len(points), np.int64)
    # Axis by axis: whole-column arithmetic is several times faster than that on (P, 3) rows.
    for axis, count, step in ((2, nz, ny * nx), (1, ny, nx), (0, nx, 1)):
        scaled = (points[:, axis] - np.float64(grid.range_m[axis])) / grid.voxel_m[axis]
        within = (scaled >= 0) & (scaled < count)  # False for NaN
        scaled[~within] = 0.0
        columns += scaled.astype(np.int64) * step
        inside &= within
    columns[~inside] = -1
    return columns


def _unravel(key: NDArray[np.int64], grid: BevGrid) -> NDArray[np.int32]:
    """Return (V, 3) z, y, x of linear voxel indices (V,)."""
    nx, ny, _ = grid.voxel_counts
    zyx = np.empty((len(key), 3), np.int32)
    zyx[:, 0] = key // (nx * ny)
    rest = key - zyx[:, 0] * np.int64(nx * ny)
    zyx[:, 1] = rest // nx
    zyx[:, 2] = rest - zyx[:, 1] * np.int64(nx)
    return zyx
