"""The vectorised voxeliser against a point-by-point one, written as the textbook has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data.voxelize import voxelize, voxelize_cloud
from turbotrain_plugin.geometry.grid import BevGrid

COARSE = BevGrid(range_m=(-4.0, -2.0, -1.0, 4.0, 2.0, 1.0), voxel_m=(0.5, 0.5, 0.25), stride=2)
FINE = BevGrid(range_m=(-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), voxel_m=(0.1, 0.1, 0.2), stride=8)
PILLARS = BevGrid(range_m=(-4.0, -2.0, -1.0, 4.0, 2.0, 1.0), voxel_m=(0.4, 0.4, 2.0), stride=2)


def sequential(
    points: NDArray[np.float32], grid: BevGrid, max_points: int, max_voxels: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], float]:
    """Take points in order; the first of a voxel opens it, the limits drop the rest."""
    voxels: dict[tuple[int, int, int], list[NDArray[np.float32]]] = {}
    seen = lost = 0
    for point in points:
        index = []
        for axis in range(3):
            if math.isnan(point[axis]):
                break
            scaled = (float(point[axis]) - grid.range_m[axis]) / grid.voxel_m[axis]
            if not 0 <= scaled < grid.voxel_counts[axis]:
                break
            index.append(math.floor(scaled))
        if len(index) < 3:
            continue
        seen += 1
        where = (index[2], index[1], index[0])
        if where not in voxels:
            if len(voxels) == max_voxels:
                lost += 1
                continue
            voxels[where] = []
        if len(voxels[where]) < max_points:
            voxels[where].append(point)
    grouped = np.zeros((len(voxels), max_points, 4), np.float32)
    for row, inside in enumerate(voxels.values()):
        grouped[row, : len(inside)] = inside
    coordinates = np.array(list(voxels), np.int32).reshape(-1, 3)
    counts = np.array([len(inside) for inside in voxels.values()], np.int32)
    return grouped, coordinates, counts, lost / seen if seen else 0.0


def cloud(count: int, seed: int, spread: float) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 4)) * (spread, spread, spread / 4, 1.0)
    points[:: max(1, count // 7)] = points[:1]  # many points in one voxel
    return points.astype(np.float32)


@pytest.mark.parametrize("grid", [COARSE, FINE, PILLARS], ids=["coarse", "fine", "pillars"])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 3000])
@pytest.mark.parametrize(("max_points", "max_voxels"), [(5, 10**6), (1, 40), (3, 1), (32, 0)])
def test_equals_the_sequential_voxeliser(
    grid: BevGrid, count: int, max_points: int, max_voxels: int
) -> None:
    points = cloud(count, seed=count, spread=3.0)
    expected = sequential(points, grid, max_points, max_voxels)
    found = voxelize_cloud(points, grid, max_points, max_voxels)
    np.testing.assert_array_equal(found.coordinates, expected[1])
    np.testing.assert_array_equal(found.counts, expected[2])
    np.testing.assert_array_equal(found.points, expected[0])
    assert found.truncated_share == pytest.approx(expected[3])


@pytest.mark.parametrize("seed", range(4))
def test_shuffle_is_a_permutation_of_the_points_in_range(seed: int) -> None:
    points = cloud(800, seed, spread=2.0)
    scaled = (points[:, :3] - COARSE.range_m[:3]) / COARSE.voxel_m
    inside = points[((scaled >= 0) & (scaled < COARSE.voxel_counts)).all(axis=1)]
    shuffled = inside[np.random.default_rng(seed).permutation(len(inside))]
    expected = sequential(shuffled, COARSE, 2, 50)
    found = voxelize(points, COARSE, 2, 50, np.random.default_rng(seed))
    for a, b in zip(found, expected[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_borders_and_bad_rows() -> None:
    low, high = COARSE.range_m[:3], COARSE.range_m[3:]
    below_high = np.nextafter(np.float32(high[0]), np.float32(0))
    rows = [
        (*low, 1.0),  # the lower corner is inside
        (*high, 2.0),  # the upper one is not
        (below_high, 0.0, 0.0, 3.0),
        (np.nextafter(np.float32(low[0]), np.float32(-9)), 0.0, 0.0, 4.0),
        (np.nan, 0.0, 0.0, 5.0),
        (0.0, np.inf, 0.0, 6.0),
        (0.0, 0.0, -np.inf, 7.0),
    ]
    points = np.array(rows, np.float32)
    grouped, coordinates, counts = voxelize(points, COARSE, 5, 10)
    assert grouped[:, 0, 3].tolist() == [1.0, 3.0]
    assert coordinates.tolist() == [[0, 0, 0], [4, 4, 15]]
    assert counts.tolist() == [1, 1]
    expected = sequential(points[:5], COARSE, 5, 10)
    np.testing.assert_array_equal(grouped, expected[0])
