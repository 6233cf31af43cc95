"""Boxes: corners seen by eye, moves, membership of points, ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.geometry.boxes import (
    bev_corners,
    bev_hulls,
    contains_origin,
    corners_3d,
    count_points,
    inside_range,
    points_in_boxes,
    transform_boxes,
    wrap_angle,
)
from turbotrain_plugin.geometry.poses import invert_rigid, pose_to_matrix, transform_points

CAR = np.array([[10.0, 5.0, -1.0, 4.0, 2.0, 1.5, 0.0]])


def _ahead(metres: float) -> NDArray[np.float64]:
    return np.asarray(np.add(CAR, [metres, 0, 0, 0, 0, 0, 0]))


def _boxes(count: int, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    low = [-40, -40, -2, 0.5, 0.5, 0.5, -7]
    return rng.uniform(low, [40, 40, 2, 12, 3, 4, 7], size=(count, 7))


def test_wrap_angle_reaches_minus_pi_but_not_pi() -> None:
    angles = np.array([0.0, math.pi, -math.pi, 3 * math.pi, 7.0, -7.0])
    wrapped = wrap_angle(angles)
    expected = [0, -math.pi, -math.pi, -math.pi, 7 - 2 * math.pi, 2 * math.pi - 7]
    np.testing.assert_allclose(wrapped, expected, atol=1e-12)
    assert ((wrapped >= -math.pi) & (wrapped < math.pi)).all()


def test_corners_of_a_level_box() -> None:
    np.testing.assert_allclose(bev_corners(CAR)[0], [[12, 6], [8, 6], [8, 4], [12, 4]])


def test_corners_turn_with_the_box() -> None:
    turned = CAR.copy()
    turned[0, 6] = math.pi / 2  # front along +y, left along -x
    expected = [[9, 7], [9, 3], [11, 3], [11, 7]]
    np.testing.assert_allclose(bev_corners(turned)[0], expected, atol=1e-12)


def test_corners_run_counterclockwise() -> None:
    corners = bev_corners(_boxes(50))
    edge, following = np.roll(corners, -1, 1) - corners, np.roll(corners, -2, 1) - corners
    cross = edge[..., 0] * following[..., 1] - edge[..., 1] * following[..., 0]
    assert (cross > 0).all()


def test_corners_3d_bottom_then_top() -> None:
    boxes = _boxes(20)
    corners = corners_3d(boxes)
    np.testing.assert_array_equal(corners[:, :4, :2], bev_corners(boxes))
    np.testing.assert_array_equal(corners[:, 4:, :2], bev_corners(boxes))
    np.testing.assert_allclose(corners[:, 4:, 2] - corners[:, :4, 2], boxes[:, 5, None] + [[0] * 4])
    np.testing.assert_allclose(corners.mean(axis=1), boxes[:, :3], atol=1e-12)


def test_hulls_are_the_extent_of_the_corners() -> None:
    boxes = _boxes(50)
    corners = bev_corners(boxes)
    expected = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    np.testing.assert_allclose(bev_hulls(boxes), expected, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_keep_the_dtype(dtype: type[np.float32] | type[np.float64]) -> None:
    boxes = _boxes(3).astype(dtype)
    assert bev_corners(boxes).dtype == dtype
    assert corners_3d(boxes).dtype == dtype
    assert transform_boxes(np.eye(4), boxes).dtype == dtype


def test_transform_moves_corners_with_the_box() -> None:
    boxes = _boxes(30)
    matrix = pose_to_matrix([3, -8, 1, 0, 130, 0])
    moved = corners_3d(transform_boxes(matrix, boxes))
    expected = transform_points(matrix, corners_3d(boxes).reshape(-1, 3)).reshape(-1, 8, 3)
    np.testing.assert_allclose(moved, expected, atol=1e-9)


def test_transform_there_and_back() -> None:
    boxes = _boxes(30)
    boxes[:, 6] = wrap_angle(boxes[:, 6])
    matrix = pose_to_matrix([3, -8, 1, 0, 130, 0])
    back = transform_boxes(invert_rigid(matrix), transform_boxes(matrix, boxes))
    np.testing.assert_allclose(back, boxes, atol=1e-9)


def test_transform_of_a_tilted_frame_lays_the_heading_flat() -> None:
    # A sensor pitched by 60 degrees sees a car ahead, yawed 45 degrees: its heading (1, 1, 0)
    # becomes (cos 60, 1, sin 60) in the world; from above that is atan2(1, 0.5).
    box = np.array([[10.0, 0, 0, 4, 2, 1.5, math.pi / 4]])
    moved = transform_boxes(pose_to_matrix([0, 0, 0, 0, 0, 60]), box)
    assert moved[0, 6] == pytest.approx(math.atan2(1.0, 0.5))
    np.testing.assert_allclose(moved[0, :3], [5, 0, 10 * math.sin(math.radians(60))])
    np.testing.assert_array_equal(moved[0, 3:6], box[0, 3:6])


def test_exactly_opposite_headings_come_out_as_pi() -> None:
    # OpenCOOD's mean of four arctangents gives 0 for some of these.
    for degrees in range(0, 360, 5):
        moved = transform_boxes(
            invert_rigid(pose_to_matrix([0, 0, 0, 0, degrees, 0])),
            np.array([[0, 0, 0, 4.0, 2, 1.5, math.radians(degrees) + math.pi]]),
        )
        assert abs(moved[0, 6]) == pytest.approx(math.pi)


def test_points_on_the_surface_are_inside() -> None:
    points = np.array([[12.0, 6, -0.25], [12.001, 5, -1], [10, 5, -1.76], [8, 4, -1.75]])
    np.testing.assert_array_equal(points_in_boxes(points, CAR), [0, -1, -1, 0])


def test_margin_moves_the_faces() -> None:
    points = np.array([[12.1, 5, -1], [10, 6.3, -1], [11.9, 5, -1], [10, 5, -1]])
    np.testing.assert_array_equal(points_in_boxes(points, CAR, margin_m=0.2), [0, -1, 0, 0])
    np.testing.assert_array_equal(points_in_boxes(points, CAR, margin_m=-0.2), [-1, -1, -1, 0])


def test_first_of_overlapping_boxes_has_the_point_and_both_count_it() -> None:
    shifted = CAR.copy()
    shifted[0, 0] += 1
    boxes = np.concatenate([CAR, shifted, _ahead(100)])
    points = np.array([[10.0, 5, -1], [12.5, 5, -1], [0, 0, 0]])
    np.testing.assert_array_equal(points_in_boxes(points, boxes), [0, 1, -1])
    np.testing.assert_array_equal(count_points(points, boxes), [1, 2, 0])


def test_no_points_or_no_boxes() -> None:
    none = np.zeros((0, 7))
    np.testing.assert_array_equal(points_in_boxes(np.zeros((3, 4)), none), [-1, -1, -1])
    assert points_in_boxes(np.zeros((0, 4), np.float32), CAR).shape == (0,)
    np.testing.assert_array_equal(count_points(np.zeros((0, 4)), CAR), [0])
    assert count_points(np.zeros((3, 4)), none).shape == (0,)
    for function in (bev_corners, corners_3d, bev_hulls, contains_origin):
        assert len(function(none)) == 0
    assert inside_range(none, (-1, -1, -1, 1, 1, 1)).shape == (0,)


def test_nan_points_lie_nowhere() -> None:
    points = np.array([[np.nan, 5, -1], [10, np.nan, -1], [10, 5, np.nan], [10, 5, -1]])
    np.testing.assert_array_equal(points_in_boxes(points, CAR), [-1, -1, -1, 0])


def test_boxes_kilometres_apart() -> None:
    # More strips than 16-bit numbers count.
    boxes = np.concatenate([CAR, _ahead(50_000)])
    points = np.concatenate([boxes[::-1, :3], [[25_000.0, 5, -1]]])
    np.testing.assert_array_equal(points_in_boxes(points, boxes), [1, 0, -1])


def test_inside_range_asks_all_corners_and_ignores_height() -> None:
    boxes = np.concatenate([CAR] * 4)
    boxes[1, 0] = 18.5  # front corners outside
    boxes[2, 2] = 99.0
    boxes[3, 0] = 18.0  # touches the border
    range_m = (-20, -20, -3, 20, 20, 1)
    np.testing.assert_array_equal(inside_range(boxes, range_m), [True, False, True, True])
    assert inside_range(boxes, range_m, corners=2).all()
    np.testing.assert_array_equal(
        inside_range(boxes, range_m, corners=3), [True, False, True, True]
    )


def test_contains_origin_from_above() -> None:
    boxes = np.array(
        [
            [1.0, 0, -2, 4, 2, 1.5, 0],  # below the sensor
            [2.1, 0, 0, 4, 2, 1.5, 0],  # behind it
            [2.0, 0, 0, 4, 2, 1.5, 0],  # touches
            [1.5, 0, 0, 4, 2, 1.5, math.pi / 2],  # across
        ]
    )
    np.testing.assert_array_equal(contains_origin(boxes), [True, False, True, False])


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"`boxes` must have shape \(M, 7\).* Found \(2, 6\)"):
        bev_corners(np.zeros((2, 6)))
    with pytest.raises(ValueError, match=r"`boxes` must have shape \(M, 7\).* Found \(7,\)"):
        contains_origin(np.zeros(7))
    with pytest.raises(ValueError, match=r"`points` must have shape \(P, 3\+\)"):
        points_in_boxes(np.zeros((2, 2)), CAR)
    with pytest.raises(ValueError, match=r"`range_m` must hold 6 values. Found 4"):
        inside_range(CAR, (0, 0, 1, 1))
