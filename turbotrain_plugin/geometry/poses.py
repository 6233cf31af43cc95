"""Rigid transforms of right-handed frames, float64; ``dst_SE3_src`` maps src points to dst.

A pose on disk is (x, y, z [m], roll, yaw, pitch [deg]), with the yaw at index 4, and
R = Rz(yaw) Ry(-pitch) Rx(-roll): OpenCOOD's convention, from which all its data sets are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GIMBAL: Final = 1e-9
"""cos(pitch) below which roll and yaw turn about the same axis."""


def pose_to_matrix(pose: Sequence[float] | NDArray[Any]) -> NDArray[np.float64]:
    """Return the (4, 4) matrix of a pose.

    Args:
        pose: (6,) x, y, z in metres, roll, yaw, pitch in degrees.

    Raises:
        ValueError: When the pose is not six numbers.
    """
    values = np.asarray(pose, dtype=np.float64)
    if values.shape != (6,):
        raise ValueError(
            "`pose` must hold x, y, z, roll, yaw, pitch, shape (6,). "
            f"Found shape {tuple(values.shape)}."
        )
    roll, yaw, pitch = (math.radians(angle) for angle in values[3:])
    cr, sr = math.cos(roll), math.sin(roll)
    cy, sy = math.cos(yaw), math.sin(yaw)
    cp, sp = math.cos(pitch), math.sin(pitch)
    matrix = np.eye(4)
    # The product Rz(yaw) Ry(-pitch) Rx(-roll), written out.
    matrix[:3, :3] = [
        [cy * cp, cy * sp * sr - sy * cr, -cy * sp * cr - sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, -sy * sp * cr + cy * sr],
        [sp, -cp * sr, cp * cr],
    ]
    matrix[:3, 3] = values[:3]
    return matrix


def matrix_to_pose(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """Return the (6,) pose of a (4, 4) matrix; the inverse of `pose_to_matrix`.

    Pitch lies in [-90, 90] degrees. Looking straight up or down, where roll and yaw cannot be told
    apart, roll is 0.
    """
    m = _checked(matrix)
    cos_pitch = math.hypot(m[0, 0], m[1, 0])
    pitch = math.atan2(m[2, 0], cos_pitch)
    if cos_pitch > _GIMBAL:
        roll = math.atan2(-m[2, 1], m[2, 2])
        yaw = math.atan2(m[1, 0], m[0, 0])
    else:
        roll = 0.0
        yaw = math.atan2(-m[0, 1], m[1, 1])
    return np.array([*m[:3, 3], *(math.degrees(angle) for angle in (roll, yaw, pitch))])


def invert_rigid(matrix: NDArray[Any]) -> NDArray[np.float64]:
    """Return the inverses (..., 4, 4) of rigid transforms (..., 4, 4), by transposition."""
    m = _checked(matrix, batched=True)
    inverse = np.zeros_like(m)
    rotation = np.swapaxes(m[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ m[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def transform_points(dst_SE3_src: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Return points moved to the dst frame, with the shape and dtype they came with.

    Computed in float64, because world coordinates are large.

    Args:
        dst_SE3_src: (4, 4) transform.
        points: (P, 3+) floating; columns after x, y, z are kept.

    Raises:
        ValueError: On wrong shapes or whole-number points.
    """
    m = _checked(dst_SE3_src)
    if points.ndim != 2 or points.shape[1] < 3 or not np.issubdtype(points.dtype, np.floating):
        raise ValueError(
            "`points` must be floating with shape (P, 3+). "
            f"Found {points.dtype} of shape {tuple(points.shape)}."
        )
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ m[:3, :3].T + m[:3, 3]
    return moved


def transform_xy(
    dst_SE3_src: NDArray[Any], xy: NDArray[Any], z: ArrayLike = 0.0
) -> NDArray[np.float64]:
    """Return (..., 2) x, y of points moved to the dst frame.

    Args:
        dst_SE3_src: (4, 4) transform.
        xy: (..., 2) in the src frame.
        z: Heights in the src frame, broadcast to (...); they matter when frames are tilted.
    """
    m = _checked(dst_SE3_src)
    if xy.shape[-1:] != (2,):
        raise ValueError(f"`xy` must have shape (..., 2). Found {tuple(xy.shape)}.")
    heights = np.asarray(z, dtype=np.float64)[..., None]
    moved: NDArray[np.float64] = xy @ m[:2, :2].T + heights * m[:2, 2] + m[:2, 3]
    return moved


def yaw_of(matrix: NDArray[Any]) -> float:
    """Return the direction of the x axis of a (4, 4) transform seen from above, rad."""
    m = _checked(matrix)
    return math.atan2(m[1, 0], m[0, 0])


def is_rigid(matrix: NDArray[Any], tolerance: float = 1e-4) -> bool:
    """Return whether a matrix is a (4, 4) right-handed rotation and translation, all finite."""
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (4, 4) or not np.isfinite(m).all():
        return False
    rotation = m[:3, :3]
    return (
        np.allclose(rotation @ rotation.T, np.eye(3), rtol=0.0, atol=tolerance)
        and bool(np.linalg.det(rotation) > 0)
        and np.allclose(m[3], (0.0, 0.0, 0.0, 1.0), rtol=0.0, atol=tolerance)
    )


def _checked(matrix: NDArray[Any], *, batched: bool = False) -> NDArray[np.float64]:
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape[-2:] != (4, 4) or (m.ndim != 2 and not batched):
        expected = "(..., 4, 4)" if batched else "(4, 4)"
        raise ValueError(f"`matrix` must have shape {expected}. Found {tuple(m.shape)}.")
    return m
