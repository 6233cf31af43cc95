from __future__ import annotations

import time

import numpy as np
import pytest

from turbotrain_plugin.data.voxelize import (
    _stable_order,
    inside_range,
    voxelize,
    voxelize_cloud,
)
from turbotrain_plugin.geometry.grid import BevGrid

GRID = BevGrid(range_m=(-8.0, -4.0, -2.0, 8.0, 4.0, 2.0), voxel_m=(0.5, 0.5, 0.5), stride=4)


def test_dtypes_and_shapes() -> None:
    points = np.zeros((3, 4), np.float32)
    grouped, coordinates, counts = voxelize(points, GRID, 5, 10)
    assert grouped.shape == (1, 5, 4)
    assert grouped.dtype == np.float32
    assert coordinates.dtype == np.int32
    assert counts.dtype == np.int32
    assert coordinates.tolist() == [[4, 8, 16]]  # z, y, x
    assert counts.tolist() == [3]


def test_empty_cloud() -> None:
    cloud = voxelize_cloud(np.zeros((0, 4), np.float32), GRID, 5, 10)
    assert cloud.points.shape == (0, 5, 4)
    assert cloud.coordinates.shape == (0, 3)
    assert cloud.truncated_share == 0.0


def test_points_of_a_voxel_lie_in_it() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-9, 9, size=(2000, 4)).astype(np.float32)
    grouped, coordinates, counts = voxelize(points, GRID, 3, 10**6, rng)
    low = coordinates[:, ::-1] * 0.5 + np.array([-8.0, -4.0, -2.0])
    for slot in range(3):
        filled = counts > slot
        inside = grouped[filled, slot, :3] - low[filled]
        assert (inside >= 0).all()
        assert (inside <= 0.5 + 1e-6).all()
        assert (grouped[~filled, slot] == 0).all()
    assert len(np.unique(coordinates, axis=0)) == len(coordinates)


def test_order_without_shuffle_is_that_of_first_appearance() -> None:
    x = np.array([3.1, -2.9, 3.2, 0.1, -2.8], np.float32)
    points = np.stack([x, 0 * x, 0 * x, np.arange(5, dtype=np.float32)], axis=1)
    grouped, coordinates, counts = voxelize(points, GRID, 5, 10)
    assert coordinates[:, 2].tolist() == [22, 10, 16]
    assert counts.tolist() == [2, 2, 1]
    assert grouped[0, :2, 3].tolist() == [0.0, 2.0]


def test_shuffle_makes_the_loss_random_and_repeatable() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(-1.9, 1.9, size=(5000, 4)).astype(np.float32)

    def kept(seed: int | None) -> set[tuple[int, ...]]:
        source = None if seed is None else np.random.default_rng(seed)
        return set(map(tuple, voxelize(points, GRID, 1, 20, source)[1].tolist()))

    assert kept(3) == kept(3)
    assert len({frozenset(kept(seed)) for seed in (3, 4, 5)}) == 3
    assert kept(None) == kept(None)


def test_truncated_share_counts_points_of_lost_voxels() -> None:
    x = np.array([0.1] * 6 + [1.1] * 3 + [2.1], np.float32)
    points = np.stack([x, 0 * x, 0 * x, 0 * x], axis=1)
    cloud = voxelize_cloud(points, GRID, 2, 2)
    assert cloud.in_range == 10
    assert cloud.truncated_share == pytest.approx(0.1)  # the third voxel's only point


def test_inside_range_excludes_the_upper_ends() -> None:
    points = np.array([[-8, -4, -2], [8, 0, 0], [0, 4, 0], [0, 0, 2], [0, 0, np.nan]], np.float32)
    assert inside_range(points, GRID.range_m).tolist() == [True, False, False, False, False]


def test_cost_is_linear() -> None:
    grid = BevGrid((-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), (0.1, 0.1, 0.2), 8)
    rng = np.random.default_rng(2)

    def seconds(count: int) -> float:
        points = (rng.normal(size=(count, 4)) * (30, 15, 1, 1)).astype(np.float32)
        best = np.inf
        for _ in range(5):
            start = time.process_time()
            voxelize(points, grid, 5, 70_000, rng)
            best = min(best, time.process_time() - start)
        return float(best)

    seconds(1000)
    # Ten times the points: a quadratic method would need a hundred times as long.
    assert seconds(100_000) < 40 * seconds(10_000)


@pytest.mark.parametrize("bits", [1, 15, 16, 17, 31, 33, 48])
def test_order_of_keys_is_stable_whatever_their_size(bits: int) -> None:
    """Sixteen bits are sorted at a time: keys of one to three digits, many of them equal."""
    rng = np.random.default_rng(bits)
    keys = rng.integers(0, 2**bits, 3000)
    keys[::3] = keys[0]
    np.testing.assert_array_equal(_stable_order(keys), np.argsort(keys, kind="stable"))
    assert _stable_order(keys[:0]).shape == (0,)


def test_range_is_compared_in_double_precision() -> None:
    """-102.4 has no exact float32: the nearest one lies outside, by a millionth."""
    points = np.array([[-102.4, 0.0, 0.0, 0.0], [-102.39, 0.0, 0.0, 0.0]], np.float32)
    assert inside_range(points, (-102.4, -40.0, -5.0, 102.4, 40.0, 3.0)).tolist() == [False, True]
