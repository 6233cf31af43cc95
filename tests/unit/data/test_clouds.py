"""Batches straight from clouds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data import cloud_batch
from turbotrain_plugin.geometry.grid import BevGrid

GRID = BevGrid((-4.0, -4.0, -2.0, 4.0, 4.0, 2.0), (0.5, 0.5, 0.5), 2)


def _cloud(seed: int, count: int = 50, columns: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-4.5, 4.5, (count, columns))


def _inside(cloud: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray((np.abs(cloud[:, :3]) < (4, 4, 2)).all(axis=1))


def test_two_samples_of_three_frames() -> None:
    clouds = [[_cloud(3 * s + t) for t in range(3)] for s in range(2)]
    batch = cloud_batch(clouds, GRID)
    assert batch.record_len.tolist() == [1, 1]
    assert batch.frame_valid.shape == (2, 3)
    assert batch.frame_valid.all()
    assert batch.voxels.map_count == 6
    assert batch.targets is None
    assert batch.map is None
    points = batch.reconstruction
    assert points is not None
    for sample in range(2):
        for age in range(3):
            cloud = clouds[sample][2 - age]
            mine = (points.sample == sample) & (points.age == age)
            expected = cloud[_inside(cloud)].astype(np.float32)
            np.testing.assert_array_equal(points.xyz[mine].numpy(), expected)
            held = batch.voxels.coordinates[:, 0] == 3 * sample + 2 - age
            cells = np.unique(np.floor((expected + np.array([4, 4, 2])) / 0.5).astype(int), axis=0)
            assert int(held.sum()) == len(cells)


def test_further_columns_are_left_out_and_intensity_is_zero() -> None:
    batch = cloud_batch([[_cloud(0, columns=5)]], GRID)
    assert batch.voxels.points.shape[2] == 4
    assert not batch.voxels.points[..., 3].any()


def test_limits_hold() -> None:
    cloud = np.zeros((30, 3))
    batch = cloud_batch([[np.concatenate([cloud, _cloud(1)])]], GRID, max_points=4, max_voxels=7)
    assert batch.voxels.points.shape == (7, 4, 4)
    assert int(batch.voxels.point_counts.max()) == 4


@pytest.mark.parametrize("clouds", [[], [[]], [[_cloud(0)], [_cloud(0), _cloud(1)]]])
def test_uneven_samples_are_refused(clouds: list[list[NDArray[np.float64]]]) -> None:
    with pytest.raises(ValueError, match="the same number of clouds, at least one"):
        cloud_batch(clouds, GRID)


@pytest.mark.parametrize("shape", [(3,), (5, 2)])
def test_clouds_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(P, 3\+\)"):
        cloud_batch([[np.zeros(shape)]], GRID)
