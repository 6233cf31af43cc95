"""Points to voxels, vectorised: one sort of integer keys, no Python over points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.geometry.grid import BevGrid

__all__ = ["VoxelCloud", "inside_range", "voxelize", "voxelize_cloud"]


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
    columns = _voxel_columns(points, grid)
    inside = np.flatnonzero(columns >= 0)
    if rng is not None:
        inside = rng.permutation(inside)
    keys = columns[inside]
    # Key and place in one integer: an unstable (fast) sort then keeps the order inside a voxel.
    shift = max(1, len(inside).bit_length())
    packed = np.sort((keys << shift) | np.arange(len(inside)))
    place, key = packed & ((1 << shift) - 1), packed >> shift
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    sizes = np.diff(starts, append=len(key))
    # Voxels in the order they were opened, cut at the limit.
    opener = np.full(len(key), -1)
    opener[place[starts]] = np.arange(len(starts))
    opened = opener[opener >= 0][:max_voxels]
    number = np.full(len(starts), -1)
    number[opened] = np.arange(len(opened))
    voxel = np.repeat(number, sizes)
    slot = np.arange(len(key)) - np.repeat(starts, sizes)
    taken = np.flatnonzero((voxel >= 0) & (slot < max_points))
    grouped = np.zeros((len(opened) * max_points, 4), np.float32)
    grouped[voxel[taken] * max_points + slot[taken]] = points.take(inside[place[taken]], axis=0)
    return VoxelCloud(
        points=grouped.reshape(len(opened), max_points, 4),
        coordinates=_unravel(key[starts[opened]], grid),
        counts=np.minimum(sizes[opened], max_points).astype(np.int32),
        in_range=len(inside),
        in_kept_voxels=int(sizes[opened].sum()),
    )


def inside_range(
    points: NDArray[np.floating], range_m: tuple[float, float, float, float, float, float]
) -> NDArray[np.bool_]:
    """Return (P,) whether the points (P, 3+) lie in the range, its upper ends excluded."""
    xyz = points[:, :3]
    return np.asarray(((xyz >= range_m[:3]) & (xyz < range_m[3:])).all(axis=1))


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
    nx, ny, _ = grid.voxel_counts
    return np.stack([key // (nx * ny), key // nx % ny, key % nx], axis=1).astype(np.int32)
