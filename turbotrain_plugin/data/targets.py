"""Supervision of one sample: anchor labels, box residuals and trajectories of positive anchors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.geometry.anchors import assign_anchors, encode_boxes, make_anchors
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import GroundTruth

__all__ = ["SampleTargets", "anchors_from_config", "grid_from_config", "make_targets"]


@dataclass(frozen=True, slots=True)
class SampleTargets:
    """``structures.Targets`` of one sample, as numpy arrays and without the sample column.

    Attributes:
        labels: (H, W, anchors) int8: 1 positive, 0 negative, -1 between the thresholds.
        positive_index: (N, 3) int64: row, column, anchor.
        box_codes: (N, 7) float32.
        trajectories: (N, F, 2) float32, zero where not valid.
        trajectory_valid: (N, F) bool.
    """

    labels: NDArray[np.int8]
    positive_index: NDArray[np.int64]
    box_codes: NDArray[np.float32]
    trajectories: NDArray[np.float32]
    trajectory_valid: NDArray[np.bool_]


def grid_from_config(config: RunConfig) -> BevGrid:
    """Return the voxel grid and its BEV cells of a resolved hypes file."""
    return BevGrid(
        range_m=config.preprocess.cav_lidar_range,
        voxel_m=config.preprocess.args.voxel_size,
        stride=config.postprocess.anchor_args.feature_stride,
    )


def anchors_from_config(config: RunConfig, grid: BevGrid) -> NDArray[np.float32]:
    """Return the anchors (H, W, anchors, 7) of a resolved hypes file."""
    args = config.postprocess.anchor_args
    return make_anchors(
        grid,
        length=args.l,
        width=args.w,
        height=args.h,
        z=args.z,
        yaws_rad=tuple(math.radians(yaw) for yaw in args.r),
    )


def make_targets(
    truth: GroundTruth,
    anchors: NDArray[np.float32],
    *,
    pos_threshold: float,
    neg_threshold: float,
) -> SampleTargets:
    """Assign the objects of one sample to anchors.

    A trajectory target is the object's future centre minus its *true* centre at t = 0 in ego axes
    (our choice): what it must predict does not depend on how far the anchor is off.

    Args:
        truth: Objects in the frame of the anchors.
        anchors: (H, W, anchors, 7).
        pos_threshold: Hull IoU above which an anchor is positive.
        neg_threshold: Hull IoU with every box below which an anchor is negative.
    """
    labels, index, matched = assign_anchors(
        anchors, truth.boxes, pos_threshold=pos_threshold, neg_threshold=neg_threshold
    )
    boxes = truth.boxes[matched]
    codes = encode_boxes(boxes, anchors[index[:, 0], index[:, 1], index[:, 2]])
    valid = truth.future_valid[matched]
    offsets = truth.futures[matched] - boxes[:, None, :2]
    return SampleTargets(
        labels=labels,
        positive_index=index,
        box_codes=np.asarray(codes, dtype=np.float32),
        trajectories=np.where(valid[..., None], offsets, 0).astype(np.float32),
        trajectory_valid=valid,
    )
