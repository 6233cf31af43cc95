"""Which detection stands for which object: one-to-one assignment under a gate.

Displacement errors and EPA compare a predicted with a true trajectory, so they need pairs. As in
ViP3D (Gu et al., CVPR 2023) the pairs are the Hungarian assignment of least total cost, where a
pair beyond the gate costs 1e4 and is dropped afterwards: as many pairs as the gate allows, the
closest ones among them. Scores play no part beyond the threshold that was applied in decoding.
AP has its own greedy rule, see `average_precision`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from turbotrain_plugin.geometry.iou import rotated_iou_bev

FORBIDDEN_COST: Final = 1e4
"""Cost of a pair beyond the gate (ViP3D's value); far above any sum of allowed costs."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """K matched pairs of one sample.

    Attributes:
        detected: (K,) int64, rows of the detections, rising.
        truth: (K,) int64, the object of each.
    """

    detected: NDArray[np.int64]
    truth: NDArray[np.int64]


Matcher: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.float32]], Pairs]
"""(N, 7) detected boxes, (M, 7) true boxes -> pairs."""


def overlap_matrix(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N, M) BEV polygon IoU of (N, 7) and (M, 7) boxes as numpy."""
    if len(first) == 0 or len(second) == 0:
        return np.zeros((len(first), len(second)))
    iou = rotated_iou_bev(torch.from_numpy(first), torch.from_numpy(second))
    return iou.numpy().astype(np.float64)


def match_centres(
    detected: NDArray[np.float32], truth: NDArray[np.float32], *, gate_m: float
) -> Pairs:
    """Match by BEV distance of the centres.

    Args:
        detected: (N, 7) boxes.
        truth: (M, 7) boxes.
        gate_m: Greatest distance of a pair, metres, itself allowed.
    """
    offset = detected[:, None, :2].astype(np.float64) - truth[None, :, :2]
    distance = np.hypot(offset[..., 0], offset[..., 1])
    return assign(distance, distance <= gate_m)


def match_overlap(
    detected: NDArray[np.float32], truth: NDArray[np.float32], *, min_iou: float
) -> Pairs:
    """Match by BEV polygon IoU; a pair needs at least ``min_iou``. (N, 7) and (M, 7) boxes."""
    iou = overlap_matrix(detected, truth)
    return assign(1.0 - iou, iou >= min_iou)


def assign(cost: NDArray[np.float64], allowed: NDArray[np.bool_]) -> Pairs:
    """Return the one-to-one assignment of least cost, without the pairs that are not allowed.

    Args:
        cost: (N, M), at most a few metres each.
        allowed: (N, M).
    """
    rows, columns = linear_sum_assignment(np.where(allowed, cost, FORBIDDEN_COST))
    kept = allowed[rows, columns]
    return Pairs(rows[kept].astype(np.int64), columns[kept].astype(np.int64))


MATCHERS: Final[dict[str, Matcher]] = {
    "center_2m": partial(match_centres, gate_m=2.0),
    "center_1m": partial(match_centres, gate_m=1.0),
    "iou_0.5": partial(match_overlap, min_iou=0.5),
}
"""``turbotrain.evaluation.match``: ViP3D's gate, UniAD's motion-table gate, overlap."""
