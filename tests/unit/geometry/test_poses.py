"""Rigid transforms: cases whose answer is seen by eye, inverses, and refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.geometry.poses import (
    invert_rigid,
    is_rigid,
    matrix_to_pose,
    pose_to_matrix,
    transform_points,
    transform_xy,
    yaw_of,
)


def _poses(count: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    low = [-2000, -2000, -50, -179, -179, -89]
    return rng.uniform(low, [-value for value in low], size=(count, 6))


@pytest.mark.parametrize(
    ("pose", "point", "expected"),
    [
        ([1, 2, 3, 0, 0, 0], [0, 0, 0], [1, 2, 3]),
        ([0, 0, 0, 0, 90, 0], [1, 0, 0], [0, 1, 0]),  # yaw turns x to y: counterclockwise
        ([0, 0, 0, 0, 0, 90], [1, 0, 0], [0, 0, 1]),  # positive pitch looks up
        ([0, 0, 0, 90, 0, 0], [0, 1, 0], [0, 0, -1]),  # positive roll puts the left side down
        ([5, 0, 0, 0, 180, 0], [1, 1, 1], [4, -1, 1]),
        ([0, 0, 0, 90, 90, 0], [0, 1, 0], [0, 0, -1]),  # roll acts before yaw
        ([0, 0, 0, 90, 0, 90], [0, 1, 0], [1, 0, 0]),  # roll acts before pitch
    ],
)
def test_points_seen_by_eye(pose: list[float], point: list[float], expected: list[float]) -> None:
    moved = transform_points(pose_to_matrix(pose), np.array([point], dtype=np.float64))
    np.testing.assert_allclose(moved, [expected], atol=1e-12)


def test_yaw_is_at_index_four() -> None:
    assert yaw_of(pose_to_matrix([0, 0, 0, 10, 30, 20])) == pytest.approx(math.radians(30))


def test_matrix_to_pose_inverts() -> None:
    for pose in _poses(200):
        np.testing.assert_allclose(matrix_to_pose(pose_to_matrix(pose)), pose, atol=1e-9)


@pytest.mark.parametrize("pitch", [90.0, -90.0])
def test_matrix_to_pose_straight_up_keeps_the_rotation(pitch: float) -> None:
    matrix = pose_to_matrix([1, 2, 3, 25, 40, pitch])
    pose = matrix_to_pose(matrix)
    assert pose[3] == 0
    np.testing.assert_allclose(pose_to_matrix(pose), matrix, atol=1e-7)


def test_inverse_of_many_at_once() -> None:
    matrices = np.stack([pose_to_matrix(pose) for pose in _poses(12)]).reshape(3, 4, 4, 4)
    product = invert_rigid(matrices) @ matrices
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(4), product.shape), atol=1e-10)


def test_transforms_compose() -> None:
    b_SE3_a, c_SE3_b = (pose_to_matrix(pose) for pose in _poses(2))
    points = np.random.default_rng(1).normal(size=(50, 3)) * 40
    twice = transform_points(c_SE3_b, transform_points(b_SE3_a, points))
    np.testing.assert_allclose(transform_points(c_SE3_b @ b_SE3_a, points), twice, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_keep_dtype_and_further_columns(dtype: type[np.floating[Any]]) -> None:
    points = np.arange(20, dtype=dtype).reshape(4, 5)
    before = points.copy()
    moved = transform_points(pose_to_matrix([1, 1, 1, 0, 0, 0]), points)
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved[:, 3:], points[:, 3:])
    np.testing.assert_allclose(moved[:, :3], points[:, :3] + 1)
    np.testing.assert_array_equal(points, before)  # the input is left alone


def test_float32_points_near_a_far_origin_stay_exact() -> None:
    # World coordinates of 10 km: in float32 arithmetic the way there and back loses centimetres.
    world_SE3_a = pose_to_matrix([10_000, -10_000, 0, 0, 33, 0])
    world_SE3_b = pose_to_matrix([10_020, -10_010, 0, 0, -50, 0])
    a = np.random.default_rng(2).uniform(-50, 50, (100, 3)).astype(np.float32)
    b = transform_points(invert_rigid(world_SE3_b) @ world_SE3_a, a)
    back = transform_points(invert_rigid(world_SE3_a) @ world_SE3_b, b)
    np.testing.assert_allclose(back, a, atol=2e-5)


def test_empty_points() -> None:
    assert transform_points(np.eye(4), np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_xy_agrees_with_points_when_tilted() -> None:
    matrix = pose_to_matrix([3, -4, 5, 8, 70, -12])
    points = np.random.default_rng(3).normal(size=(6, 5, 3))
    expected = transform_points(matrix, points.reshape(-1, 3)).reshape(6, 5, 3)[..., :2]
    moved = transform_xy(matrix, points[..., :2], points[..., 2])
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    level = transform_xy(matrix, points[..., :2])
    assert not np.allclose(level, expected, atol=1e-2)  # the height does matter


def test_xy_heights_broadcast() -> None:
    matrix = pose_to_matrix([3, -4, 5, 8, 70, -12])
    xy = np.random.default_rng(4).normal(size=(6, 5, 2))
    heights = np.arange(6.0)[:, None]
    np.testing.assert_allclose(
        transform_xy(matrix, xy, heights), transform_xy(matrix, xy, np.repeat(heights, 5, axis=1))
    )


def test_is_rigid() -> None:
    good = pose_to_matrix([1, 2, 3, 4, 5, 6])
    assert is_rigid(good)
    mirrored = good.copy()
    mirrored[:, 0] *= -1
    scaled = good.copy()
    scaled[:3, :3] *= 1.01
    infinite = good.copy()
    infinite[0, 3] = np.nan
    projective = good.copy()
    projective[3, 0] = 0.1
    for bad in (mirrored, scaled, infinite, projective, np.eye(3)):
        assert not is_rigid(bad)


@pytest.mark.parametrize("shape", [(3,), (7,), (1, 6)])
def test_refuses_poses_of_other_lengths(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"`pose` must hold .* Found shape"):
        pose_to_matrix(np.zeros(shape))


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"`matrix` must have shape \(4, 4\)"):
        transform_points(np.eye(3), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`matrix` must have shape \(4, 4\)"):
        yaw_of(np.stack([np.eye(4)] * 2))
    with pytest.raises(ValueError, match=r"`matrix` must have shape \(\.\.\., 4, 4\)"):
        invert_rigid(np.eye(3))
    with pytest.raises(ValueError, match=r"`points` must be floating with shape"):
        transform_points(np.eye(4), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"`points` must be floating.* Found int64"):
        transform_points(np.eye(4), np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(ValueError, match=r"`xy` must have shape"):
        transform_xy(np.eye(4), np.zeros((2, 3)))
