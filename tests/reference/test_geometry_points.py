"""Points in boxes against six half-spaces per box; poses against scipy's rotations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from turbotrain_plugin.geometry.boxes import corners_3d, count_points, points_in_boxes
from turbotrain_plugin.geometry.poses import pose_to_matrix


def _membership(points: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (P, M): a point is inside when it is behind all six faces, taken from the corners."""
    inside = np.ones((len(points), len(boxes)), dtype=bool)
    for column, corners in enumerate(corners_3d(boxes)):
        middle = corners.mean(axis=0)
        for a, b, c in ((0, 1, 2), (4, 5, 6), (0, 1, 5), (1, 2, 6), (2, 3, 7), (3, 0, 4)):
            normal = np.cross(corners[b] - corners[a], corners[c] - corners[a])
            if normal @ (middle - corners[a]) > 0:
                normal = -normal
            inside[:, column] &= (points[:, :3] - corners[a]) @ normal <= 1e-9
    return inside


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spread_m", [5.0, 60.0])
def test_random_points_and_boxes(seed: int, spread_m: float) -> None:
    rng = np.random.default_rng(seed)
    low = [-spread_m, -spread_m, -2, 0.1, 0.1, 0.1, -7]
    boxes = rng.uniform(low, [spread_m, spread_m, 2, 12, 3, 4, 7], size=(40, 7))
    around = boxes[rng.integers(0, 40, 2000)]
    points = around[:, :4] + rng.normal(scale=2.0, size=(2000, 4))
    inside = _membership(points, boxes)
    assert inside.sum() > 50
    np.testing.assert_array_equal(count_points(points, boxes), inside.sum(axis=0))
    first = np.where(inside.any(axis=1), inside.argmax(axis=1), -1)
    np.testing.assert_array_equal(points_in_boxes(points, boxes), first)


def test_margin_is_a_larger_box() -> None:
    rng = np.random.default_rng(11)
    boxes = rng.uniform([-9, -9, -2, 1, 1, 1, -7], [9, 9, 2, 5, 3, 3, 7], size=(20, 7))
    points = rng.uniform(-12, 12, size=(4000, 3)) * [1, 1, 0.25]
    for margin_m in (0.3, -0.2):
        grown = boxes.copy()
        grown[:, 3:6] += 2 * margin_m
        expected = _membership(points, grown).sum(axis=0)
        np.testing.assert_array_equal(count_points(points, boxes, margin_m), expected)


def test_rotation_is_the_product_of_three_elementary_ones() -> None:
    rng = np.random.default_rng(12)
    for _ in range(100):
        roll, yaw, pitch = rng.uniform(-180, 180, 3)
        product = (
            Rotation.from_euler("z", yaw, degrees=True)
            * Rotation.from_euler("y", -pitch, degrees=True)
            * Rotation.from_euler("x", -roll, degrees=True)
        )
        matrix = pose_to_matrix([7, 8, 9, roll, yaw, pitch])
        np.testing.assert_allclose(matrix[:3, :3], product.as_matrix(), atol=1e-14)
        np.testing.assert_array_equal(matrix[:, 3], [7, 8, 9, 1])
