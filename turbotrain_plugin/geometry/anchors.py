"""Anchors: made on a BEV grid, matched with boxes, and boxes written as residuals to them.

Residual order is OpenCOOD's: dx, dy over the anchor's diagonal, dz over its height, log ratios of
height, width, length, and the yaw difference (SECOND, Yan et al. 2018, section 3.2.1). Two things
differ from OpenCOOD on purpose: anchors stand in the true cell centres, and overlaps are plain
areas (OpenCOOD adds 1, a pixel convention, to lengths in metres).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.geometry.boxes import bev_hulls
from turbotrain_plugin.geometry.grid import BevGrid


def make_anchors(
    grid: BevGrid,
    *,
    length: float,
    width: float,
    height: float,
    z: float,
    yaws_rad: Sequence[float],
) -> NDArray[np.float32]:
    """Return (H, W, anchors, 7) boxes, one per yaw in every cell centre.

    Args:
        grid: Where cells are.
        length: Metres; `width` and `height` likewise.
        width: Metres.
        height: Metres.
        z: Height of the centre in the ego LiDAR frame, metres.
        yaws_rad: Yaw of each anchor of a cell.
    """
    anchors = np.empty((grid.height, grid.width, len(yaws_rad), 7), dtype=np.float32)
    anchors[..., :2] = grid.cell_centres()[:, :, None]
    anchors[..., 2] = z
    anchors[..., 3:6] = length, width, height
    anchors[..., 6] = np.asarray(yaws_rad, dtype=np.float32)
    return anchors


def encode_boxes(boxes: NDArray[Any], anchors: NDArray[Any]) -> NDArray[Any]:
    """Return (N, 7) residuals x, y, z, h, w, l, yaw of boxes (N, 7) to their anchors (N, 7).

    Raises:
        ValueError: When the shapes differ or a size is not positive.
    """
    if boxes.shape != anchors.shape or boxes.shape[-1:] != (7,):
        raise ValueError(
            "`boxes` and `anchors` must have the same shape (N, 7). "
            f"Found {tuple(boxes.shape)} and {tuple(anchors.shape)}."
        )
    if not (boxes[..., 3:6] > 0).all():
        raise ValueError("`boxes` must have positive sizes. Found a size of 0 or less, or NaN.")
    diagonal = np.hypot(anchors[..., 3:4], anchors[..., 4:5])
    return np.concatenate(
        [
            (boxes[..., :2] - anchors[..., :2]) / diagonal,
            (boxes[..., 2:3] - anchors[..., 2:3]) / anchors[..., 5:6],
            np.log(boxes[..., 5:2:-1] / anchors[..., 5:2:-1]),
            boxes[..., 6:] - anchors[..., 6:],
        ],
        axis=-1,
    )


def decode_boxes(codes: Tensor, anchors: Tensor) -> Tensor:
    """Return (..., 7) boxes of residuals (..., 7) to anchors (..., 7); inverts `encode_boxes`."""
    if codes.shape[-1:] != (7,) or anchors.shape[-1:] != (7,):
        raise ValueError(
            "`codes` and `anchors` must have shape (..., 7). "
            f"Found {tuple(codes.shape)} and {tuple(anchors.shape)}."
        )
    diagonal = torch.hypot(anchors[..., 3:4], anchors[..., 4:5])
    xy = codes[..., :2] * diagonal + anchors[..., :2]
    z = codes[..., 2:3] * anchors[..., 5:6] + anchors[..., 2:3]
    lwh = torch.exp(codes[..., 3:6].flip(-1)) * anchors[..., 3:6]
    return torch.cat([xy, z, lwh, codes[..., 6:] + anchors[..., 6:]], dim=-1)


def assign_anchors(
    anchors: NDArray[np.float32],
    boxes: NDArray[Any],
    *,
    pos_threshold: float,
    neg_threshold: float,
) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.int64]]:
    """Match anchors with boxes by the IoU of their axis-aligned hulls (OpenCOOD's rule).

    An anchor is positive when its best IoU is above ``pos_threshold``, negative when it is below
    ``neg_threshold``, and neither in between. So that no box is lost, the anchor that overlaps a
    box most is positive for that box however little it overlaps; when two boxes claim one anchor
    so, the larger IoU has it. Ties go to the first anchor and the first box.

    Args:
        anchors: (H, W, anchors, 7) of `make_anchors`.
        boxes: (M, 7).
        pos_threshold: IoU above which an anchor is positive.
        neg_threshold: IoU below which it is negative.

    Returns:
        labels (H, W, anchors) int8, 1 positive, 0 negative, -1 neither; positive_index (N, 3)
        int64 row, column, anchor, ascending; matched (N,) int64 box of each.
    """
    if anchors.ndim != 4 or anchors.shape[3] != 7:
        raise ValueError(
            f"`anchors` must have shape (H, W, anchors, 7). Found {tuple(anchors.shape)}."
        )
    best = np.zeros(anchors.shape[:3])
    owner = np.zeros(anchors.shape[:3], dtype=np.int64)
    claims: dict[tuple[int, int, int], tuple[float, int]] = {}
    for box, rows, columns, overlap in _overlaps(anchors, boxes):
        better = overlap > best[rows, columns]
        best[rows, columns][better] = overlap[better]
        owner[rows, columns][better] = box
        peak = np.unravel_index(int(overlap.argmax()), overlap.shape)
        place = (int(rows.start + peak[0]), int(columns.start + peak[1]), int(peak[2]))
        value = float(overlap[peak])
        if value > claims.get(place, (0.0, -1))[0]:
            claims[place] = (value, box)
    labels = np.where(best > pos_threshold, 1, np.where(best < neg_threshold, 0, -1))
    for place, (_, box) in claims.items():
        labels[place] = 1
        owner[place] = box
    positive = np.argwhere(labels == 1)
    return labels.astype(np.int8), positive, owner[tuple(positive.T)]


def _overlaps(
    anchors: NDArray[np.float32], boxes: NDArray[Any]
) -> list[tuple[int, slice, slice, NDArray[np.float64]]]:
    """Return (box, rows, columns, IoU (rows, columns, anchors)) of the cells near each box.

    The grid is regular: x depends on the column, y on the row, and the hull's size on the anchor
    of the cell alone. So overlaps along x and y are found apart, and only where there are any.
    """
    hulls = bev_hulls(boxes)
    x = anchors[0, :, 0, 0].astype(np.float64)
    y = anchors[:, 0, 0, 1].astype(np.float64)
    size = bev_hulls(anchors[0, 0] * np.array([0, 0, 1, 1, 1, 1, 1], dtype=np.float32))
    half_x, half_y = size[:, 2], size[:, 3]
    anchor_area = 4 * half_x * half_y
    box_area = (hulls[:, 2] - hulls[:, 0]) * (hulls[:, 3] - hulls[:, 1])
    columns_from = np.searchsorted(x, hulls[:, 0] - half_x.max(), side="right")
    columns_to = np.searchsorted(x, hulls[:, 2] + half_x.max(), side="left")
    rows_from = np.searchsorted(y, hulls[:, 1] - half_y.max(), side="right")
    rows_to = np.searchsorted(y, hulls[:, 3] + half_y.max(), side="left")
    found = []
    for box in range(len(boxes)):
        columns = slice(int(columns_from[box]), int(columns_to[box]))
        rows = slice(int(rows_from[box]), int(rows_to[box]))
        if columns.start >= columns.stop or rows.start >= rows.stop:
            continue
        along_x = _shared(x[columns, None], half_x, hulls[box, 0], hulls[box, 2])
        along_y = _shared(y[rows, None], half_y, hulls[box, 1], hulls[box, 3])
        shared = along_y[:, None] * along_x[None]
        union = anchor_area + box_area[box] - shared
        found.append((box, rows, columns, shared / np.maximum(union, 1e-12)))
    return found


def _shared(
    centre: NDArray[np.float64], half: NDArray[np.float64], low: float, high: float
) -> NDArray[np.float64]:
    length = np.minimum(centre + half, high) - np.maximum(centre - half, low)
    return np.asarray(np.maximum(length, 0.0))
