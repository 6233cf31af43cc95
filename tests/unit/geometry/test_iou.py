"""Rotated overlap and suppression: closed forms, symmetries, degenerate boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from turbotrain_plugin.geometry.iou import hull_iou, nms_bev, paired_iou_bev, rotated_iou_bev


def _box(
    x: float = 0.0, y: float = 0.0, length: float = 4.0, width: float = 2.0, yaw: float = 0.0
) -> Tensor:
    return torch.tensor([[x, y, 0.0, length, width, 1.5, yaw]], dtype=torch.float64)


def _random(count: int, seed: int, spread: float = 8.0) -> Tensor:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(
        [-spread, -spread, -1, 0.3, 0.3, 1, -7], [spread, spread, 1, 9, 3, 2, 7], size=(count, 7)
    )
    return torch.from_numpy(boxes)


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (_box(), 1.0),
        (_box(x=2.0), 4 / 12),
        (_box(y=1.0), 4 / 12),
        (_box(x=4.0), 0.0),  # edges touch
        (_box(x=4.0, y=2.0), 0.0),  # corners touch
        (_box(length=2.0, width=1.0), 2 / 8),  # one inside the other
        (_box(yaw=math.pi), 1.0),
        (_box(yaw=math.pi / 2), 4 / 12),
        (_box(length=2.0, width=4.0, yaw=math.pi / 2), 1.0),  # the same box, named otherwise
        # A square turned by 45 degrees, its corners (+-1.5, 0) and (0, +-1.5), loses the two
        # triangles beyond |y| = 1, each of height 0.5: 4.5 - 2 * 0.25.
        (_box(length=1.5 * math.sqrt(2), width=1.5 * math.sqrt(2), yaw=math.pi / 4), 4 / 8.5),
        (_box(x=50.0), 0.0),
    ],
)
def test_closed_forms(b: Tensor, expected: float) -> None:
    assert rotated_iou_bev(_box(), b).item() == pytest.approx(expected, abs=1e-12)
    assert rotated_iou_bev(b, _box()).item() == pytest.approx(expected, abs=1e-12)
    assert paired_iou_bev(_box(), b).item() == pytest.approx(expected, abs=1e-12)


def test_turned_squares_make_an_octagon() -> None:
    a = _box(length=2.0, width=2.0)
    b = _box(length=2.0, width=2.0, yaw=math.pi / 4)
    octagon = 8 * (math.sqrt(2) - 1)
    assert paired_iou_bev(a, b).item() == pytest.approx(octagon / (8 - octagon), abs=1e-12)


def test_symmetric_and_one_with_itself() -> None:
    a, b = _random(40, 0), _random(30, 1)
    torch.testing.assert_close(rotated_iou_bev(a, b), rotated_iou_bev(b, a).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(paired_iou_bev(a, a), torch.ones(40, dtype=torch.float64))


def test_moving_both_boxes_changes_nothing() -> None:
    a, b = _random(40, 2), _random(40, 3)
    before = rotated_iou_bev(a, b)
    angle = 1.234
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    for boxes in (a, b):
        boxes[:, :2] = boxes[:, :2] @ turn.T + torch.tensor([30.0, -70.0])
        boxes[:, 6] += angle
    torch.testing.assert_close(rotated_iou_bev(a, b), before, rtol=0, atol=1e-10)


def test_paired_is_the_diagonal() -> None:
    a, b = _random(50, 4, spread=3.0), _random(50, 5, spread=3.0)
    expected = rotated_iou_bev(a, b).diagonal()
    assert (expected > 0).sum() > 20
    torch.testing.assert_close(paired_iou_bev(a, b), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_almost_parallel_edges(angle: float) -> None:
    # The overlap changes by at most about angle * perimeter; no vertex may get lost.
    iou = paired_iou_bev(_box(), _box(yaw=angle)).item()
    assert 1 - 4 * angle - 1e-12 <= iou <= 1.0


@pytest.mark.parametrize("gap", [-1e-9, -1e-15, 0.0, 1e-15, 1e-9])
def test_almost_touching_edges(gap: float) -> None:
    assert paired_iou_bev(_box(), _box(x=4.0 + gap)).item() == pytest.approx(0.0, abs=1e-8)


def test_boxes_without_area_overlap_nothing() -> None:
    flat, point = _box(width=0.0), _box(length=0.0, width=0.0)
    degenerate = torch.cat([flat, point, _box(length=0.0)])
    everything = torch.cat([degenerate, _box()])
    iou = rotated_iou_bev(degenerate, everything)
    assert torch.isfinite(iou).all()
    torch.testing.assert_close(iou, torch.zeros_like(iou), rtol=0, atol=1e-12)


def test_no_boxes() -> None:
    none = torch.zeros(0, 7)
    assert rotated_iou_bev(none, _box().float()).shape == (0, 1)
    assert rotated_iou_bev(_box(), none.double()).shape == (1, 0)
    assert paired_iou_bev(none, none).shape == (0,)
    assert nms_bev(none, torch.zeros(0), 0.5).tolist() == []
    assert hull_iou(np.zeros((0, 7)), np.zeros((2, 7))).shape == (0, 2)


def test_float32_boxes_are_computed_in_float64() -> None:
    a, b = _random(20, 6), _random(20, 7)
    single = rotated_iou_bev(a.float(), b.float())
    assert single.dtype == torch.float64
    expected = rotated_iou_bev(a.float().double(), b.float().double())
    torch.testing.assert_close(single, expected, rtol=0, atol=0)


def test_many_pairs_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _random(30, 8), _random(30, 9)
    whole = rotated_iou_bev(a, b)
    monkeypatch.setattr("turbotrain_plugin.geometry.iou._CHUNK", 7)
    torch.testing.assert_close(rotated_iou_bev(a, b), whole, rtol=0, atol=0)


def test_nms_keeps_by_falling_score() -> None:
    boxes = torch.cat([_box(), _box(x=0.5), _box(x=20.0), _box(x=20.2)])
    kept = nms_bev(boxes, torch.tensor([0.5, 0.9, 0.6, 0.3]), 0.15)
    assert kept.tolist() == [1, 2]


def test_nms_a_suppressed_box_suppresses_nothing() -> None:
    # A chain, each overlapping only the next: the second goes, so the third stays, and so on.
    boxes = torch.cat([_box(x=3.0 * index) for index in range(9)])
    scores = torch.linspace(0.9, 0.1, 9)
    assert nms_bev(boxes, scores, 0.1).tolist() == [0, 2, 4, 6, 8]
    assert nms_bev(boxes, scores.flip(0), 0.1).tolist() == [8, 6, 4, 2, 0]


def test_nms_equal_scores_keep_their_order() -> None:
    boxes = torch.cat([_box(x=30.0), _box(), _box(x=0.1), _box(x=60.0)])
    assert nms_bev(boxes, torch.full((4,), 0.5), 0.15).tolist() == [0, 1, 3]


def test_nms_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes = torch.cat([_box(), _box(length=2.0, width=1.0)])  # IoU exactly 0.25
    assert paired_iou_bev(boxes[:1], boxes[1:]).item() == 0.25
    assert nms_bev(boxes, torch.tensor([0.9, 0.8]), 0.25).tolist() == [0, 1]
    assert nms_bev(boxes, torch.tensor([0.9, 0.8]), 0.2499).tolist() == [0]


def test_nms_looks_at_the_best_candidates_only() -> None:
    boxes = torch.cat([_box(x=10.0 * index) for index in range(6)])
    scores = torch.tensor([0.1, 0.6, 0.3, 0.5, 0.2, 0.4])
    assert nms_bev(boxes, scores, 0.15, max_candidates=3).tolist() == [1, 3, 5]


def test_nms_turned_boxes_whose_hulls_overlap_both_stay() -> None:
    boxes = torch.cat([_box(length=8.0, yaw=0.785), _box(x=4.0, length=8.0, yaw=0.785)])
    assert hull_iou(boxes.numpy(), boxes.numpy())[0, 1] > 0.15
    assert nms_bev(boxes, torch.tensor([0.9, 0.8]), 0.15).tolist() == [0, 1]


def test_hull_iou_of_turned_boxes() -> None:
    turned = _box(length=2.0, width=2.0, yaw=math.pi / 4).numpy()  # hull 2 sqrt 2 a side: 8
    level = _box(length=2.0, width=2.0).numpy()
    assert hull_iou(turned, level)[0, 0] == pytest.approx(4 / 8)
    assert hull_iou(np.zeros((1, 7)), np.zeros((1, 7)))[0, 0] == 0


def test_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"`b` must have shape \(N, 7\).* Found \(2, 5\)"):
        rotated_iou_bev(_box(), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"must pair up. Found 2 and 3 boxes"):
        paired_iou_bev(torch.zeros(2, 7), torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"`scores` must have shape \(2,\).* Found \(3,\)"):
        nms_bev(torch.zeros(2, 7), torch.zeros(3), 0.5)
