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
    """Return the indices of pairs whose hulls touch; the other pairs share nothing.

    A sweep along x: b is sorted by its lower x, so that the partners of a box of a lie in one run.
    """
    if not len(a) or not len(b):
        none = torch.zeros(0, dtype=torch.int64, device=a.device)
        return none, none
    low_a, high_a = _hulls(a)
    low_b, high_b = _hulls(b)
    low_x, order = torch.sort(low_b[0])
    widest = (high_b[0] - low_b[0]).max()
    start = torch.searchsorted(low_x, low_a[0] - widest)
    run = (torch.searchsorted(low_x, high_a[0], right=True) - start).clamp_min(0)
    first = torch.repeat_interleave(run)
    place = torch.arange(len(first), device=a.device) + (start - run.cumsum(0) + run)[first]
    second = order[place]
    touch = (high_b[0][second] >= low_a[0][first]) & (low_b[1][second] <= high_a[1][first])
    touch &= high_b[1][second] >= low_a[1][first]
    return first[touch], second[touch]


def _hulls(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper x, y, each (2, N), of the axis-aligned hulls."""
    values = boxes.double().T.contiguous()
    cos, sin = torch.cos(values[6]).abs(), torch.sin(values[6]).abs()
    half = torch.stack([values[3] * cos + values[4] * sin, values[3] * sin + values[4] * cos]) / 2
    return values[:2] - half, values[:2] + half


def _iou_of_pairs(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    rows_a, rows_b = _rows(a), _rows(b)
    parts = [
        _iou_of_chunk(rows_a[:, first[k : k + _CHUNK]], rows_b[:, second[k : k + _CHUNK]])
        for k in range(0, len(first), _CHUNK)
    ]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float64)


def _rows(boxes: Tensor) -> Tensor:
    """Return (6, N) float64 x, y, length, width, cos, sin: columns that lie together in memory."""
    values = boxes.double().T
    return torch.stack([*values[:2], *values[3:5], torch.cos(values[6]), torch.sin(values[6])])


def _iou_of_chunk(a: Tensor, b: Tensor) -> Tensor:
    shared = _shared_area(a, b)
    union = a[2] * a[3] + b[2] * b[3] - shared
    return torch.where(union > 0, shared / union.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


def _shared_area(a: Tensor, b: Tensor) -> Tensor:
    """Return (K,) area common to each pair of `_rows` (6, K), by the sum over the edges of a."""
    x, y = _corners_in_frame_of(a, b)
    half_length, width = b[2] / 2, b[3]
    y = y + width / 2  # the rectangle's lower side is y = 0, its upper side y = width
    x_end, y_end = x.roll(-1, dims=0), y.roll(-1, dims=0)
    run = x_end - x
    slope = torch.where(run != 0, (y_end - y) / torch.where(run != 0, run, 1.0), 0.0)
    x_from = x.clamp(-half_length, half_length)
    x_to = x_from.roll(-1, dims=0)
    height = _mean_height(y + (x_from - x) * slope, y + (x_to - x) * slope, width)
    # Counterclockwise, the upper edges run towards smaller x.
    return ((x_from - x_to) * height).sum(dim=0)


def _mean_height(y0: Tensor, y1: Tensor, width: Tensor) -> Tensor:
    """Return the mean of y, limited to [0, width], along straight edges from y0 to y1."""
    low, high = torch.minimum(y0, y1), torch.maximum(y0, y1)
    zero = torch.zeros_like(width)
    low_in, high_in = low.clamp(zero, width), high.clamp(zero, width)
    within = (low_in + high_in) / 2 * (high_in - low_in)
    above = width * (high - torch.maximum(low, width)).clamp_min(0.0)
    rise = high - low
    return torch.where(rise > 0, (within + above) / torch.where(rise > 0, rise, 1.0), low_in)


def _corners_in_frame_of(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y, each (4, K), of the corners of a, counterclockwise, in the frame of b."""
    x, y, length, width, cos_a, sin_a = a
    offset_x, offset_y, cos_b, sin_b = x - b[0], y - b[1], b[4], b[5]
    cos, sin = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b
    along = a.new_tensor([[0.5], [-0.5], [-0.5], [0.5]]) * length
    across = a.new_tensor([[0.5], [0.5], [-0.5], [-0.5]]) * width
    x_in_b = offset_x * cos_b + offset_y * sin_b + along * cos - across * sin
    y_in_b = offset_y * cos_b - offset_x * sin_b + along * sin + across * cos
    return x_in_b, y_in_b


def _check(boxes: Tensor, name: str) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            f"`{name}` must have shape (N, 7): x, y, z, length, width, height, yaw. "
            f"Found {tuple(boxes.shape)}."
        )
