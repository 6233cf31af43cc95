"""Rotated overlap and suppression against shapely polygons in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from shapely.geometry import Polygon

from turbotrain_plugin.geometry.iou import hull_iou, nms_bev, paired_iou_bev, rotated_iou_bev

Boxes = NDArray[np.float64]


def _polygon(box: NDArray[np.float64]) -> Polygon:
    x, y, _, length, width, _, yaw = (float(value) for value in box)
    corners = []
    for sign_l, sign_w in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        along, across = sign_l * length / 2, sign_w * width / 2
        corners.append(
            (
                x + along * math.cos(yaw) - across * math.sin(yaw),
                y + along * math.sin(yaw) + across * math.cos(yaw),
            )
        )
    return Polygon(corners)


def _slow_iou(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    iou = np.zeros((len(a), len(b)))
    others = [_polygon(box) for box in b]
    for row, box in enumerate(a):
        polygon = _polygon(box)
        for column, other in enumerate(others):
            if polygon.intersects(other):
                shared = polygon.intersection(other).area
                iou[row, column] = shared / (polygon.area + other.area - shared)
    return iou


def _slow_nms(boxes: Boxes, scores: NDArray[np.float64], threshold: float) -> list[int]:
    polygons = [_polygon(box) for box in boxes]
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        overlaps = (
            polygons[index].intersection(polygons[k]).area / polygons[index].union(polygons[k]).area
            for k in kept
            if polygons[index].intersects(polygons[k])
        )
        if all(overlap <= threshold for overlap in overlaps):
            kept.append(index)
    return kept


def _random(rng: np.random.Generator, count: int, spread_m: float) -> Boxes:
    low = [-spread_m, -spread_m, -2, 0.3, 0.2, 1, -7]
    high = [spread_m, spread_m, 2, 15, 4, 4, 7]
    return rng.uniform(low, high, size=(count, 7))


def _crafted(rng: np.random.Generator) -> Boxes:
    """Boxes that share edges, corners and centres with one another, at right and odd angles."""
    boxes = []
    for angle in (0.0, 0.3, math.pi / 4, math.pi / 2, -math.pi, 2.0):
        axis = np.array([math.cos(angle), math.sin(angle)])
        side = np.array([-axis[1], axis[0]])
        for along, across in (
            (0, 0),
            (4, 0),
            (2, 0),
            (0, 2),
            (4, 2),
            (1, 1),
            (0, 1e-9),
            (4 - 1e-12, 0),
        ):
            centre = along * axis + across * side
            for length, width in ((4.0, 2.0), (2.0, 1.0)):
                boxes.append([*centre, 0.0, length, width, 1.5, angle])
    array = np.array(boxes)
    array = np.concatenate([array, array])
    array[len(boxes) :, 6] += rng.choice([1e-12, -1e-9, 1e-6, math.pi], size=len(boxes))
    return array


@pytest.mark.parametrize("spread_m", [2.0, 10.0, 40.0])
def test_random_boxes(spread_m: float) -> None:
    rng = np.random.default_rng(int(spread_m))
    a, b = _random(rng, 120, spread_m), _random(rng, 110, spread_m)
    ours = rotated_iou_bev(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    expected = _slow_iou(a, b)
    assert (expected > 0).sum() > 100
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_boxes_that_share_edges_corners_and_centres() -> None:
    boxes = _crafted(np.random.default_rng(0))
    ours = rotated_iou_bev(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    np.testing.assert_allclose(ours, _slow_iou(boxes, boxes), atol=1e-6)


def test_pairs() -> None:
    rng = np.random.default_rng(5)
    a = _random(rng, 400, 30.0)
    b = a + rng.normal(scale=0.5, size=a.shape) * [1, 1, 0, 0, 0, 0, 1]
    ours = paired_iou_bev(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    expected = [_slow_iou(a[i : i + 1], b[i : i + 1])[0, 0] for i in range(len(a))]
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_slivers_far_from_the_origin() -> None:
    rng = np.random.default_rng(6)
    a, b = _random(rng, 100, 3.0), _random(rng, 100, 3.0)
    a[:, 4] = b[:, 4] = 0.01
    for boxes in (a, b):
        boxes[:, :2] += 1000.0
    ours = rotated_iou_bev(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(ours, _slow_iou(a, b), atol=1e-7)


def test_hulls() -> None:
    rng = np.random.default_rng(7)
    a, b = _random(rng, 60, 8.0), _random(rng, 50, 8.0)
    expected = np.zeros((60, 50))
    for row, box in enumerate(a):
        first = _polygon(box).envelope
        for column, other in enumerate(b):
            second = _polygon(other).envelope
            shared = first.intersection(second).area
            expected[row, column] = shared / (first.area + second.area - shared)
    np.testing.assert_allclose(hull_iou(a, b), expected, atol=1e-12)


@pytest.mark.parametrize(("seed", "spread_m", "threshold"), [
    (0, 40.0, 0.15), (1, 15.0, 0.15), (2, 5.0, 0.3), (3, 5.0, 0.01), (4, 2.0, 0.5),
])  # fmt: skip
def test_suppression(seed: int, spread_m: float, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    boxes = _random(rng, 200, spread_m)
    scores = rng.integers(0, 40, 200) / 40  # many equal scores
    kept = nms_bev(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    expected = _slow_nms(boxes, scores, threshold)
    assert 5 < len(expected) < 195
    assert kept.tolist() == expected


def test_suppression_of_heaps_as_a_network_makes_them() -> None:
    rng = np.random.default_rng(9)
    objects = _random(rng, 25, 40.0)
    boxes = np.repeat(objects, 12, axis=0)
    boxes += rng.normal(scale=0.3, size=boxes.shape) * [1, 1, 1, 0, 0, 0, 0.3]
    scores = rng.uniform(size=len(boxes))
    kept = nms_bev(torch.from_numpy(boxes), torch.from_numpy(scores), 0.15)
    assert kept.tolist() == _slow_nms(boxes, scores, 0.15)
