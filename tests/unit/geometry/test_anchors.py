"""Anchors: where they stand, residuals there and back, the rules of assignment."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from turbotrain_plugin.geometry.anchors import (
    assign_anchors,
    decode_boxes,
    encode_boxes,
    make_anchors,
)
from turbotrain_plugin.geometry.grid import BevGrid

GRID = BevGrid((-8.0, -4.0, -3.0, 8.0, 4.0, 1.0), (0.4, 0.4, 4.0), 2)


def _anchors() -> NDArray[np.float32]:
    return make_anchors(
        GRID, length=3.9, width=1.6, height=1.56, z=-1.0, yaws_rad=(0.0, math.pi / 2)
    )


def _assign(
    boxes: list[list[float]],
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.int64]]:
    array = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    return assign_anchors(_anchors(), array, pos_threshold=0.6, neg_threshold=0.45)


def test_anchors_stand_in_cell_centres() -> None:
    anchors = _anchors()
    assert anchors.shape == (10, 20, 2, 7)
    assert anchors.dtype == np.float32
    np.testing.assert_allclose(anchors[0, 0, 0], [-7.6, -3.6, -1, 3.9, 1.6, 1.56, 0])
    np.testing.assert_allclose(anchors[9, 19, 1, :2], [7.6, 3.6], atol=1e-6)
    np.testing.assert_allclose(anchors[..., 1, 6], math.pi / 2)
    # Rows run along y, columns along x.
    np.testing.assert_allclose(np.diff(anchors[0, :, 0, 0]), 0.8, atol=1e-6)
    np.testing.assert_allclose(np.diff(anchors[:, 0, 0, 1]), 0.8, atol=1e-6)


def test_residuals_in_opencoods_order() -> None:
    anchor = np.array([[1.0, 2.0, -1.0, 4.0, 3.0, 2.0, 0.5]])  # diagonal 5
    box = np.array([[2.0, 1.0, 0.0, 4 * math.e, 3 * math.e**2, 2 * math.e**3, 1.0]])
    np.testing.assert_allclose(encode_boxes(box, anchor), [[0.2, -0.2, 0.5, 3, 2, 1, 0.5]])


def test_the_anchor_itself_has_zero_residual() -> None:
    anchors = _anchors().reshape(-1, 7)
    np.testing.assert_array_equal(encode_boxes(anchors, anchors), np.zeros_like(anchors))


def test_decode_inverts_encode() -> None:
    rng = np.random.default_rng(0)
    anchors = _anchors().reshape(-1, 7)[rng.integers(0, 400, 50)].astype(np.float64)
    boxes = anchors + rng.normal(size=(50, 7))
    boxes[:, 3:6] = rng.uniform(0.5, 9, (50, 3))
    codes = torch.from_numpy(encode_boxes(boxes, anchors))
    decoded = decode_boxes(codes, torch.from_numpy(anchors))
    np.testing.assert_allclose(decoded.numpy(), boxes, atol=1e-9)


def test_decode_broadcasts_over_a_batch_and_carries_gradients() -> None:
    anchors = torch.from_numpy(_anchors())
    codes = torch.zeros(3, 10, 20, 2, 7, requires_grad=True)
    decoded = decode_boxes(codes, anchors)
    torch.testing.assert_close(decoded[1], anchors)
    decoded.sum().backward()
    assert codes.grad is not None
    assert (codes.grad != 0).all()


def test_encode_keeps_float32() -> None:
    anchors = _anchors().reshape(-1, 7)
    assert encode_boxes(anchors, anchors).dtype == np.float32


def test_a_box_on_an_anchor() -> None:
    anchor = _anchors()[4, 7, 1]
    labels, positive, matched = _assign([anchor.tolist()])
    assert [4, 7, 1] in positive.tolist()
    assert labels[4, 7, 1] == 1
    assert (matched == 0).all()
    assert labels[4, 7, 0] == 0  # crosswise: hull IoU 0.26
    assert labels[0, 0, 0] == 0
    # One cell along the box: (3.9 - 0.8) / (3.9 + 0.8) = 0.66, positive.
    assert labels[3, 7, 1] == labels[5, 7, 1] == 1
    # One cell across it: (1.6 - 0.8) / (1.6 + 0.8) = 0.33, negative.
    assert labels[4, 6, 1] == 0


def test_between_the_thresholds() -> None:
    # 1.6 m along the box: IoU (3.9 - 1.6) / (3.9 + 1.6) = 0.418; with 0.4 as the lower threshold
    # the anchor is neither.
    anchor = _anchors()[4, 10, 0].astype(np.float64)[None]
    labels, _, _ = assign_anchors(_anchors(), anchor, pos_threshold=0.6, neg_threshold=0.4)
    assert labels[4, 8, 0] == labels[4, 12, 0] == -1
    assert labels[4, 7, 0] == 0


def test_without_boxes_everything_is_negative() -> None:
    labels, positive, matched = _assign([])
    assert (labels == 0).all()
    assert positive.shape == (0, 3)
    assert matched.shape == (0,)


def test_the_best_anchor_of_a_small_box_is_positive() -> None:
    labels, positive, matched = _assign([[0.45, 0.35, -1, 0.5, 0.5, 1.5, 0.0]])
    assert len(positive) == 1
    assert labels[tuple(positive[0])] == 1
    assert matched.tolist() == [0]


def test_a_box_outside_the_grid_is_lost() -> None:
    _, positive, _ = _assign([[40.0, 0, -1, 4, 2, 1.5, 0], [0, -30.0, -1, 4, 2, 1.5, 0]])
    assert len(positive) == 0


def test_a_forced_anchor_stays_with_its_box() -> None:
    # The small box has its best anchor where the large one has IoU above the threshold too; taking
    # that anchor away would leave the small box without any.
    anchor = _anchors()[4, 10, 0].tolist()
    small = [anchor[0], anchor[1], -1.0, 1.0, 0.5, 1.0, 0.0]
    _, positive, matched = _assign([anchor, small])
    assert set(matched.tolist()) == {0, 1}
    assert len(positive) == 3  # two neighbours along the large box, and the small one's


def test_two_claims_on_one_anchor_go_to_the_larger_overlap() -> None:
    anchor = _anchors()[4, 10, 0].tolist()
    near = [*anchor[:3], 3.5, 1.5, 1.5, 0.0]
    far = [*anchor[:3], 1.0, 0.5, 1.0, 0.0]
    for boxes, winner in (([near, far], 0), ([far, near], 1)):
        _, positive, matched = _assign(boxes)
        at = positive.tolist().index([4, 10, 0])
        assert matched[at] == winner


def test_of_equal_boxes_the_first_has_the_anchors() -> None:
    box = [*_anchors()[4, 10, 0].tolist()[:3], 3.5, 1.5, 1.5, 0.0]
    _, positive, matched = _assign([box, box])
    assert len(positive) == 3
    assert matched.tolist() == [0, 0, 0]


def test_positives_are_listed_in_order() -> None:
    rng = np.random.default_rng(1)
    boxes = [[*rng.uniform((-7, -3), (7, 3)), -1, 4, 1.7, 1.5, 0.0] for _ in range(8)]
    labels, positive, _ = _assign(boxes)
    np.testing.assert_array_equal(positive, np.argwhere(labels == 1))


def test_refuses_wrong_input() -> None:
    anchors = _anchors().reshape(-1, 7)
    with pytest.raises(ValueError, match=r"must have the same shape \(N, 7\)"):
        encode_boxes(anchors[:3], anchors[:2])
    with pytest.raises(ValueError, match="`boxes` must have positive sizes"):
        encode_boxes(np.zeros((1, 7)), anchors[:1])
    with pytest.raises(ValueError, match=r"`codes` and `anchors` must have shape \(\.\.\., 7\)"):
        decode_boxes(torch.zeros(2, 6), torch.zeros(2, 7))
    with pytest.raises(ValueError, match=r"`anchors` must have shape \(H, W, anchors, 7\)"):
        assign_anchors(anchors, np.zeros((0, 7)), pos_threshold=0.6, neg_threshold=0.45)
