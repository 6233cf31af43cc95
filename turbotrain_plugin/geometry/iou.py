"""Overlap of rotated boxes seen from above, and suppression; vectorised, on any device, float64.

The area common to two boxes is found without clipping polygons: in the frame of the second box,
where it is an axis-aligned rectangle, the area is the sum over the edges of the first of the
signed area between the edge and the rectangle's lower side. Every term is continuous in the
boxes and free of cancellation, so shared edges, corners on edges and zero sizes need no care.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.geometry.boxes import bev_hulls

_CHUNK: Final = 1 << 18
"""Pairs computed at once; bounds memory (about 32 bytes times 10 intermediates per pair)."""


@torch.no_grad()
def rotated_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Return (N, M) float64 IoU, seen from above, of boxes (N, 7) with boxes (M, 7)."""
    _check(a, "a")
    _check(b, "b")
    first, second = _near_pairs(a, b)
    iou = a.new_zeros((len(a), len(b)), dtype=torch.float64)
    iou[first, second] = _iou_of_pairs(a, b, first, second)
    return iou


@torch.no_grad()
def paired_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Return (N,) float64 IoU, seen from above, of each box of (N, 7) with its partner (N, 7)."""
    _check(a, "a")
    _check(b, "b")
    if len(a) != len(b):
        raise ValueError(f"`a` and `b` must pair up. Found {len(a)} and {len(b)} boxes.")
    index = torch.arange(len(a), device=a.device)
    return _iou_of_pairs(a, b, index, index)


@torch.no_grad()
def nms_bev(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_candidates: int = 1000
) -> Tensor:
    """Return indices (K,) int64 of the boxes that greedy suppression keeps, by falling score.

    A box is dropped when a kept one of higher score overlaps it by more than the threshold. Equal
    scores keep their order.

    Args:
        boxes: (N, 7).
        scores: (N,).
        iou_threshold: IoU seen from above.
        max_candidates: The highest scores that take part; the rest is dropped.
    """
    _check(boxes, "boxes")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"`scores` must have shape ({len(boxes)},), one per box. Found {tuple(scores.shape)}."
        )
    order = torch.sort(scores, descending=True, stable=True).indices[:max_candidates]
    candidates = boxes[order]
    first, second = _near_pairs(candidates, candidates)
    below = first < second
    first, second = first[below], second[below]
    overlaps = _iou_of_pairs(candidates, candidates, first, second) > iou_threshold
    return order[_keep(first[overlaps], second[overlaps], len(candidates))]


def _keep(stronger: Tensor, weaker: Tensor, count: int) -> Tensor:
    """Return (count,) bool: what greedy suppression keeps, given all (stronger, weaker) pairs.

    "Kept unless a kept stronger one overlaps" is repeated until nothing changes. Round k settles
    at least the k strongest, so this ends, and in greedy's answer; it takes about as many rounds
    as the longest chain of boxes, not one per box.
    """
    kept = torch.ones(count, dtype=torch.bool, device=stronger.device)
    while True:
        settled = torch.ones_like(kept)
        settled[weaker[kept[stronger]]] = False
        if torch.equal(settled, kept):
            return kept
        kept = settled


def hull_iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N, M) IoU of the axis-aligned hulls, seen from above, of boxes (N, 7) and (M, 7)."""
    first, second = bev_hulls(a)[:, None], bev_hulls(b)[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.maximum(high - low, 0.0).prod(axis=-1)
    areas = [(hull[..., 2:] - hull[..., :2]).prod(axis=-1) for hull in (first, second)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _near_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of pairs whose hulls touch; the other pairs share nothing."""
    low_a, high_a = _hulls(a)
    low_b, high_b = _hulls(b)
    apart = (low_a[:, None, 0] > high_b[:, 0]) | (low_b[:, 0] > high_a[:, None, 0])
    apart |= (low_a[:, None, 1] > high_b[:, 1]) | (low_b[:, 1] > high_a[:, None, 1])
    first, second = torch.nonzero(~apart, as_tuple=True)
    return first, second


def _hulls(boxes: Tensor) -> tuple[Tensor, Tensor]:
    values = boxes.double()
    cos, sin = torch.cos(values[:, 6]).abs(), torch.sin(values[:, 6]).abs()
    length, width = values[:, 3], values[:, 4]
    half = torch.stack([length * cos + width * sin, length * sin + width * cos], dim=-1) / 2
    return values[:, :2] - half, values[:, :2] + half


def _iou_of_pairs(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    parts = [
        _iou_of_chunk(
            a[first[start : start + _CHUNK]].double(), b[second[start : start + _CHUNK]].double()
        )
        for start in range(0, len(first), _CHUNK)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float64)


def _iou_of_chunk(a: Tensor, b: Tensor) -> Tensor:
    shared = _shared_area(a, b)
    union = a[:, 3] * a[:, 4] + b[:, 3] * b[:, 4] - shared
    return torch.where(union > 0, shared / union.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Return (K,) area common to each pair of boxes (K, 7), by the sum over the edges of a."""
    x, y = _corners_in_frame_of(a, b)
    half_length, width = b[:, 3:4] / 2, b[:, 4:5]
    y = y + width / 2  # the rectangle's lower side is y = 0, its upper side y = width
    x_end, y_end = x.roll(-1, dims=1), y.roll(-1, dims=1)
    run = x_end - x
    slope = torch.where(run != 0, (y_end - y) / torch.where(run != 0, run, 1.0), 0.0)
    x_from = torch.minimum(torch.maximum(x, -half_length), half_length)
    x_to = torch.minimum(torch.maximum(x_end, -half_length), half_length)
    height = _mean_height(y + (x_from - x) * slope, y + (x_to - x) * slope, width)
    # Counterclockwise, the upper edges run towards smaller x.
    return ((x_from - x_to) * height).sum(dim=1).clamp_min(0.0)


def _mean_height(y0: Tensor, y1: Tensor, width: Tensor) -> Tensor:
    """Return the mean of y, limited to [0, width], along straight edges from y0 to y1."""
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    zero = torch.zeros_like(width)
    low_in = torch.minimum(torch.maximum(low, zero), width)
    high_in = torch.minimum(torch.maximum(high, zero), width)
    within = (low_in + high_in) / 2 * (high_in - low_in)
    above = width * (high - torch.maximum(low, width)).clamp_min(0.0)
    rise = high - low
    return torch.where(rise > 0, (within + above) / torch.where(rise > 0, rise, 1.0), low_in)


def _corners_in_frame_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y, each (K, 4), of the corners of a, counterclockwise, in the frame of b."""
    offset = a[:, :2] - b[:, :2]
    cos_b, sin_b = torch.cos(b[:, 6]), torch.sin(b[:, 6])
    centre_x = offset[:, 0] * cos_b + offset[:, 1] * sin_b
    centre_y = offset[:, 1] * cos_b - offset[:, 0] * sin_b
    turn = a[:, 6] - b[:, 6]
    cos, sin = torch.cos(turn)[:, None], torch.sin(turn)[:, None]
    along = a[:, 3:4] * a.new_tensor([0.5, -0.5, -0.5, 0.5])
    across = a[:, 4:5] * a.new_tensor([0.5, 0.5, -0.5, -0.5])
    x = centre_x[:, None] + along * cos - across * sin
    y = centre_y[:, None] + along * sin + across * cos
    return x, y


def _check(boxes: Tensor, name: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            f"`{name}` must have shape (N, 7): x, y, z, length, width, height, yaw. "
            f"Found {tuple(boxes.shape)}."
        )
