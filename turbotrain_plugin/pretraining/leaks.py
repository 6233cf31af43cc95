"""What of the answer stands in the input: hidden content must not, token sites partly do.

BEV-MAE and CooPre put a learned token at every hidden voxel, whose place stays known; with voxels
as fine as the height bins an occupancy target can then be read off the places. The two numbers
here, logged every step, say how far that goes and whether a network lives on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import FocalShape, occupancy_loss
from turbotrain_plugin.pretraining.masking import target_cells
from turbotrain_plugin.structures import Batch

__all__ = ["collapse_warning", "prior_loss", "sites_iou"]

_COLLAPSED: Final = 0.1
"""Share of the prior's loss below which the task is taken for solved. Our choice."""
_ROUNDING: Final = 1e-6
"""A voxel of 0.2 m ends at 0.4 m in spite of binary fractions."""


@torch.no_grad()
def prior_loss(occupied: Tensor, shape: FocalShape) -> Tensor:
    """Return the occupancy loss of the base rate of every height bin, () float32.

    Args:
        occupied: (N, bins) bool of the supervised cells.
        shape: Constants of the focal loss.
    """
    if not len(occupied):
        return torch.zeros((), device=occupied.device)
    # Half an observation each way: a bin that is never taken has a finite logit.
    rate = (occupied.float().sum(dim=0) + 0.5) / (len(occupied) + 1)
    return occupancy_loss(rate.logit().expand(len(occupied), -1), occupied, shape)


@torch.no_grad()
def sites_iou(
    batch: Batch, given: Tensor, grid: BevGrid, region: Tensor, occupied: Tensor
) -> Tensor:
    """Return the IoU of taken bins with those that the places of the given voxels touch.

    1: whoever sees the places of the same frame knows the occupancy; 0: they tell nothing. Other
    frames, which show what stands still, are not counted.

    Args:
        batch: The batch.
        given: (V,) bool, voxels whose places the network is given, with points or with a token.
        grid: The BEV grid.
        region: (B, F, H, W) bool, cells to rebuild.
        occupied: (B * F * H * W, bins) bool, the truth.
    """
    bins = occupied.shape[1]
    cell, chosen = target_cells(batch, grid, region.shape[1])
    chosen = chosen & given
    height = batch.voxels.coordinates[chosen, 1].double()
    bins_per_voxel = bins / grid.voxel_counts[2]
    first = (height * bins_per_voxel + _ROUNDING).floor()[:, None]
    end = ((height + 1) * bins_per_voxel - _ROUNDING).ceil()[:, None]
    number = torch.arange(bins, device=height.device)
    touched = torch.zeros_like(occupied)
    voxel, bin_index = ((number >= first) & (number < end)).nonzero(as_tuple=True)
    touched.view(-1)[cell[chosen][voxel] * bins + bin_index] = True
    inside = region.view(-1, 1)
    both = (touched & occupied & inside).sum()
    return both / ((touched | occupied) & inside).sum().clamp(min=1)


def collapse_warning(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return a warning when an occupancy loss has fallen to next to nothing; else nothing.

    Args:
        steps: The ``parts`` of the last steps of the first epoch.
    """
    known = [step for step in steps if step.get("prior") and step.get("focal") is not None]
    if not known:
        return ""
    share = sum(step["focal"] for step in known) / sum(step["prior"] for step in known)
    if share >= _COLLAPSED:
        return ""
    sites = sum(step.get("sites_iou", 0.0) for step in known) / len(known)
    return (
        f"pretraining: the occupancy loss is down to {share:.1%} of what base rates give after one "
        f"epoch, and the places of the input's voxels give away an IoU of {sites:.2f}. The task "
        "may be too easy: turbotrain.pretrain.mask.mode=drop hides the places, too; mask.scope="
        "shared hides them in every agent and frame."
    )
