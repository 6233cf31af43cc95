"""Anchor assignment against brute force: every anchor with every box, rules read word for word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.geometry.anchors import assign_anchors, make_anchors
from turbotrain_plugin.geometry.grid import BevGrid

GRID = BevGrid((-12.0, -8.0, -3.0, 12.0, 8.0, 1.0), (0.4, 0.4, 4.0), 2)
FORWARD = BevGrid((0.0, -6.0, -3.0, 16.0, 10.0, 1.0), (0.5, 0.25, 4.0), 4)


def _hull(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x, y, _, length, width, _, yaw = (float(value) for value in box)
    cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
    half_x, half_y = (length * cos + width * sin) / 2, (length * sin + width * cos) / 2
    return x - half_x, y - half_y, x + half_x, y + half_y


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    along = min(a[3], b[3]) - max(a[1], b[1])
    if across <= 0 or along <= 0:
        return 0.0
    shared = across * along
    areas = [(hull[2] - hull[0]) * (hull[3] - hull[1]) for hull in (a, b)]
    return shared / (sum(areas) - shared)


def _brute_force(
    anchors: NDArray[np.float32], boxes: NDArray[np.float64], pos: float, neg: float
) -> tuple[NDArray[np.int8], dict[tuple[int, ...], int]]:
    flat = [_hull(anchor) for anchor in anchors.reshape(-1, 7).astype(np.float64)]
    iou = np.array([[_iou(anchor, _hull(box)) for box in boxes] for anchor in flat])
    iou = iou.reshape(len(flat), len(boxes))
    labels = np.full(len(flat), -1, dtype=np.int8)
    owner: dict[int, int] = {}
    for anchor, row in enumerate(iou):
        if all(value < neg for value in row):
            labels[anchor] = 0
        if any(value > pos for value in row):
            labels[anchor] = 1
            owner[anchor] = int(np.argmax(row))
    claims: dict[int, list[int]] = {}
    for box in range(len(boxes)):
        best = int(np.argmax(iou[:, box]))
        if iou[best, box] > 0:
            claims.setdefault(best, []).append(box)
    for anchor, claimants in claims.items():
        labels[anchor] = 1
        owner[anchor] = max(claimants, key=lambda box: (iou[anchor, box], -box))
    shape = anchors.shape[:3]
    places = {tuple(map(int, np.unravel_index(a, shape))): box for a, box in owner.items()}
    return labels.reshape(shape), places


@pytest.mark.parametrize("grid", [GRID, FORWARD])
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_brute_force(grid: BevGrid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    yaws = (0.0, math.pi / 2) if seed % 2 else (0.0, math.pi / 4, 2.0)
    anchors = make_anchors(grid, length=3.9, width=1.6, height=1.56, z=-1.0, yaws_rad=yaws)
    low, high = grid.range_m[:2], grid.range_m[3:5]
    boxes = np.column_stack(
        [
            # Some of them across the border or outside.
            rng.uniform(np.array(low) - 3, np.array(high) + 3, size=(14, 2)),
            rng.uniform(-2, 0, 14),
            rng.uniform([0.4, 0.4, 1], [9, 3, 3], size=(14, 3)),
            rng.uniform(-4, 4, 14),
        ]
    )
    boxes[:6, 3:6] = rng.normal([3.9, 1.6, 1.5], 0.2, size=(6, 3))
    boxes[:6, 6] = rng.normal(scale=0.1, size=6)
    boxes[1] = boxes[0] + rng.normal(scale=0.2, size=7)  # two boxes that want the same anchors
    labels, positive, matched = assign_anchors(
        anchors, boxes, pos_threshold=0.5, neg_threshold=0.35
    )
    expected_labels, expected = _brute_force(anchors, boxes, 0.5, 0.35)
    np.testing.assert_array_equal(labels, expected_labels)
    found = {
        tuple(place): box for place, box in zip(positive.tolist(), matched.tolist(), strict=True)
    }
    assert found == expected
    assert (labels == 1).sum() > 8
    assert (labels == -1).any()
