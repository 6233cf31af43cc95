"""Losses of masked reconstruction: Chamfer distance of points, focal loss of occupancy."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.losses.focal import FocalShape, focal_from_logits
from turbotrain_plugin.losses.precision import full_precision

_CELLS_AT_ONCE: Final = 4096
"""Cells whose pairs are compared at once: 4096 x 20 x 64 distances are 21 MB."""


def occupancy_loss(logits: Tensor, occupied: Tensor, shape: FocalShape) -> Tensor:
    """Return the mean focal loss over supervised height bins (supplement B.2, equation S1).

    Args:
        logits: (N, bins) of the supervised cells.
        occupied: (N, bins) bool.
        shape: Constants of the focal loss.

    Returns:
        Scalar; 0 with a gradient path when no cell is supervised.
    """
    loss = focal_from_logits(logits, occupied, shape)
    return loss.sum() / max(loss.numel(), 1)


def chamfer_loss(
    predicted: Tensor,
    target: Tensor,
    counts: Tensor,
    *,
    distance: str = "l1",
    pool: str = "cell",
) -> Tensor:
    """Return the Chamfer distance between predicted and true points of each cell, averaged.

    Per cell: (1/Q) sum_p min_q d(p, q) + (1/n) sum_q min_p d(p, q) over Q predicted points p and n
    true points q. The nearest partners are found without autograd in blocks of cells, and only the
    chosen pairs enter the graph: the value and the derivative are those of the full Q x K
    comparison, the memory is not.

    Args:
        predicted: (R, Q, 3).
        target: (R, K, 3), padded behind the true points.
        counts: (R,) int64, true points n of a cell, 1 <= n <= K.
        distance: ``l1``: sum of absolute differences (CooPre); ``l2``: squared Euclidean distance
            (BEV-MAE).
        pool: ``cell``: mean over a cell's true points first (our choice); ``all``: mean over the
            true points of all cells, which favours dense cells near sensors (CooPre).

    Returns:
        Scalar; 0 with a gradient path when there is no cell.

    Raises:
        ValueError: On wrong shapes, an unknown option, or a cell without true points.
    """
    _check_chamfer(predicted, target, counts, distance, pool)
    predicted = full_precision(predicted)
    if not len(predicted):
        return predicted.sum()
    target = target.to(predicted.dtype)
    to_target, to_predicted = nearest_pairs(predicted, target, counts, distance=distance)
    forward = _distance(predicted - _rows(target, to_target), distance)
    padded = torch.arange(target.shape[1], device=counts.device) >= counts[:, None]
    difference = (_rows(predicted, to_predicted) - target).masked_fill(padded[..., None], 0.0)
    backward = _distance(difference, distance)
    if pool == "all":
        return forward.mean() + backward.sum() / counts.sum()
    return (forward.mean(dim=1) + backward.sum(dim=1) / counts).mean()


@torch.no_grad()
def nearest_pairs(
    predicted: Tensor,
    target: Tensor,
    counts: Tensor,
    *,
    distance: str = "l1",
    cells_at_once: int = _CELLS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Return who is nearest to whom inside each cell.

    Args:
        predicted: (R, Q, 3).
        target: (R, K, 3), padded behind the true points.
        counts: (R,) int64, true points of a cell.
        distance: ``l1`` or ``l2``.
        cells_at_once: Cells whose pairs are held in memory at the same time.

    Returns:
        (R, Q) int64 nearest true point of each predicted one, (R, K) int64 nearest predicted point
        of each true one (arbitrary where padded).

    Raises:
        ValueError: When a cell has no true point, or more than K.
    """
    to_target = counts.new_zeros(predicted.shape[:2])
    to_predicted = counts.new_zeros(target.shape[:2])
    # Most cells hold few points: cells of like size share a block that is only as wide as needed.
    sizes, by_size = counts.sort(descending=True)
    widths = _widths(sizes, target.shape[1], cells_at_once)
    order = 1.0 if distance == "l1" else 2.0
    for block, width in zip(torch.split(by_size, cells_at_once), widths, strict=True):
        pairs = torch.cdist(
            predicted[block],
            target[block, :width],
            p=order,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        padded = torch.arange(width, device=counts.device) >= counts[block, None]
        # min() instead of argmin(): on the CPU its search over the middle axis is 3 times faster.
        to_predicted[block, :width] = pairs.min(dim=1).indices
        to_target[block] = pairs.masked_fill(padded[:, None], torch.inf).min(dim=2).indices
    return to_target, to_predicted


def _rows(points: Tensor, index: Tensor) -> Tensor:
    """Return (R, N, 3) points[r, index[r, n]]."""
    return points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))


def _distance(difference: Tensor, distance: str) -> Tensor:
    if distance == "l1":
        return difference.abs().sum(dim=-1)
    return difference.square().sum(dim=-1)


def _widths(falling: Tensor, capacity: int, cells_at_once: int) -> list[int]:
    """Return the largest count of each block of cells, in one wait for the device."""
    if not len(falling):
        return []
    *widths, least = torch.cat([falling[::cells_at_once], falling[-1:]]).tolist()
    if least < 1 or widths[0] > capacity:
        raise ValueError(
            f"`counts` must lie in [1, {capacity}]: every cell needs a true point. "
            f"Found {least} to {widths[0]}."
        )
    return widths


def _check_chamfer(
    predicted: Tensor, target: Tensor, counts: Tensor, distance: str, pool: str
) -> None:
    if predicted.ndim != 3 or target.ndim != 3 or predicted.shape[2] != target.shape[2]:
        raise ValueError(
            "`predicted` must be (R, Q, 3) and `target` (R, K, 3). "
            f"Found {tuple(predicted.shape)} and {tuple(target.shape)}."
        )
    if not len(predicted) == len(target) == len(counts):
        raise ValueError(
            "`predicted`, `target` and `counts` must have one row a cell. "
            f"Found {len(predicted)}, {len(target)} and {len(counts)} rows."
        )
    if distance not in ("l1", "l2"):
        raise ValueError(f"`distance` must be 'l1' or 'l2'. Found {distance!r}.")
    if pool not in ("cell", "all"):
        raise ValueError(f"`pool` must be 'cell' or 'all'. Found {pool!r}.")
