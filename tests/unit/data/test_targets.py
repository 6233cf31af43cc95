from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from turbotrain_plugin.config import AnchorArgs, Postprocess, Preprocess, RunConfig
from turbotrain_plugin.data.targets import anchors_from_config, grid_from_config, make_targets
from turbotrain_plugin.geometry.anchors import decode_boxes
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import GroundTruth

CONFIG = RunConfig(
    preprocess=Preprocess(cav_lidar_range=(-25.6, -12.8, -5.0, 25.6, 12.8, 3.0)),
)
GRID = grid_from_config(CONFIG)
ANCHORS = anchors_from_config(CONFIG, GRID)


def truth_of(boxes: Sequence[tuple[float, ...]]) -> GroundTruth:
    count = len(boxes)
    values = np.array(boxes, np.float32).reshape(-1, 7)
    futures = np.zeros((count, 3, 2), np.float32)
    for step in range(3):
        futures[:, step] = values[:, :2] + (step + 1) * np.array([2.0, -1.0], np.float32)
    valid = np.ones((count, 3), bool)
    valid[:, 2] = False
    futures[:, 2] = 777.0  # what stands in an invalid step must not reach the loss
    return GroundTruth(
        boxes=values,
        object_ids=np.arange(count),
        futures=futures,
        future_valid=valid,
        past=np.zeros((count, 2, 2), np.float32),
        past_valid=np.ones((count, 2), bool),
        point_counts=np.ones(count, np.int64),
    )


CARS = [
    (10.1, 3.2, -0.9, 4.2, 1.8, 1.5, 0.1),
    (-7.7, -5.0, -1.1, 3.9, 1.7, 1.6, 1.6),
    (0.4, 0.4, -1.0, 3.9, 1.6, 1.56, 0.0),
]


def test_grid_and_anchors_follow_the_keys() -> None:
    assert BevGrid((-25.6, -12.8, -5.0, 25.6, 12.8, 3.0), (0.1, 0.1, 0.2), 8) == GRID
    assert ANCHORS.shape == (32, 64, 2, 7)
    np.testing.assert_allclose(
        ANCHORS[0, 0, 0], [-25.2, -12.4, -1.0, 3.9, 1.6, 1.56, 0.0], rtol=1e-6
    )
    assert ANCHORS[0, 0, 1, 6] == pytest.approx(math.pi / 2)


def test_anchor_keys_are_used() -> None:
    args = AnchorArgs(l=8.0, w=3.0, h=2.9, r=(45.0,), num=1, feature_stride=4, z=-1.78)
    config = RunConfig(preprocess=CONFIG.preprocess, postprocess=Postprocess(anchor_args=args))
    grid = grid_from_config(config)
    assert (grid.height, grid.width) == (64, 128)
    anchors = anchors_from_config(config, grid)
    assert anchors.shape == (64, 128, 1, 7)
    np.testing.assert_allclose(anchors[3, 5, 0, 2:], [-1.78, 8.0, 3.0, 2.9, math.pi / 4], rtol=1e-6)


def positives(index: NDArray[np.int64]) -> NDArray[np.float32]:
    chosen: NDArray[np.float32] = ANCHORS[index[:, 0], index[:, 1], index[:, 2]]
    return chosen


def test_codes_decode_to_the_matched_box() -> None:
    truth = truth_of(CARS)
    targets = make_targets(truth, ANCHORS, pos_threshold=0.6, neg_threshold=0.45)
    anchors = positives(targets.positive_index)
    decoded = decode_boxes(torch.from_numpy(targets.box_codes), torch.from_numpy(anchors)).numpy()
    distance = np.abs(decoded[:, None] - truth.boxes[None]).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-5
    assert set(distance.argmin(axis=1)) == {0, 1, 2}  # no box is lost
    assert targets.box_codes.dtype == np.float32
    assert (targets.labels == 1).sum() == len(targets.positive_index)


def test_code_order_is_x_y_z_h_w_l_yaw() -> None:
    exact = make_targets(truth_of(CARS[2:]), ANCHORS, pos_threshold=0.9, neg_threshold=0.45)
    np.testing.assert_allclose(exact.box_codes, np.zeros((1, 7)), atol=1e-6)
    x, y, z, length, width, height, yaw = CARS[2]
    scaled = (x + 0.1, y, z, 1.1 * length, width, 3 * height, yaw)
    targets = make_targets(truth_of([scaled]), ANCHORS, pos_threshold=0.9, neg_threshold=0.1)
    diagonal = math.hypot(3.9, 1.6)
    expected = [0.1 / diagonal, 0, 0, math.log(3), 0, math.log(1.1), 0]
    np.testing.assert_allclose(targets.box_codes[0], expected, atol=1e-6)


def test_trajectories_start_at_the_true_centre() -> None:
    targets = make_targets(truth_of(CARS), ANCHORS, pos_threshold=0.6, neg_threshold=0.45)
    count = len(targets.positive_index)
    np.testing.assert_allclose(targets.trajectories[:, 0], [[2.0, -1.0]] * count, atol=1e-5)
    np.testing.assert_allclose(targets.trajectories[:, 1], [[4.0, -2.0]] * count, atol=1e-5)
    assert not targets.trajectories[:, 2].any()
    assert targets.trajectory_valid.tolist() == [[True, True, False]] * count


def test_band_between_the_thresholds_is_marked() -> None:
    shifted = (0.4 + 0.9, 0.4, -1.0, 3.9, 1.6, 1.56, 0.0)
    targets = make_targets(truth_of([shifted]), ANCHORS, pos_threshold=0.8, neg_threshold=0.2)
    values, counts = np.unique(targets.labels, return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert counts[0] > 0


def test_no_object_means_all_negative() -> None:
    targets = make_targets(truth_of([]), ANCHORS, pos_threshold=0.6, neg_threshold=0.45)
    assert targets.labels.shape == (32, 64, 2)
    assert not targets.labels.any()
    assert targets.positive_index.shape == (0, 3)
    assert targets.box_codes.shape == (0, 7)
    assert targets.trajectories.shape == (0, 3, 2)
    assert targets.trajectory_valid.shape == (0, 3)
