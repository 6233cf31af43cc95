"""What masked pretraining predicts: heads, and the targets made of the unmasked current points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import ReconstructionPoints


class ReconstructionHead(nn.Module):
    """Light decoder: conv3x3, BatchNorm, ReLU, conv1x1 (width and depth as CooPre's).

    Args:
        channels: C of the BEV feature.
        outputs: Values per cell.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, outputs, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, H, W, outputs)."""
        return cast(Tensor, self.layers(features)).permute(0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class CellPoints:
    """Points that lie on the grid, by BEV cell.

    Attributes:
        cell: (P,) int64, sample x H x W + row x W + column.
        offset: (P, 3) float32 from the cell centre, each in [-0.5, 0.5]: x and y over the cell
            size, z over the z range.
    """

    cell: Tensor
    offset: Tensor


@dataclass(frozen=True, slots=True)
class PointTargets:
    """True points of R cells, at most K each.

    Attributes:
        cell: (R,) int64, flat cells in rising order.
        xyz: (R, K, 3) float32 normalised offsets, zero padded.
        counts: (R,) int64, true points, at least 1.
    """

    cell: Tensor
    xyz: Tensor
    counts: Tensor


def cell_points(points: ReconstructionPoints, grid: BevGrid) -> CellPoints:
    """Sort the points of all agents into BEV cells; points outside the range are left out.

    Offsets are divided by the size of the cell they are taken in (BEV-MAE). CooPre's release
    divides by the fine voxel size and centres on the coarse index, which sends x beyond 2000.

    Args:
        points: Unmasked points of the current frame in the ego frame.
        grid: The BEV grid.
    """
    low = points.xyz.new_tensor(grid.range_m[:3])
    size = points.xyz.new_tensor((*grid.cell_m, grid.range_m[5] - grid.range_m[2]))
    position = (points.xyz - low) / size
    index = position.floor()
    limit = position.new_tensor((grid.width, grid.height, 1))
    inside = ((index >= 0) & (index < limit)).all(dim=1)
    column, row, _ = index[inside].long().unbind(dim=1)
    cell = (points.sample[inside] * grid.height + row) * grid.width + column
    return CellPoints(cell, position[inside] - index[inside] - 0.5)


def occupied_bins(points: CellPoints, cell_count: int, bins: int) -> Tensor:
    """Return (cells, bins) bool: whether any agent's point falls in a height bin of a cell.

    Args:
        points: The points of the current frame.
        cell_count: B x H x W.
        bins: Equal bins over the z range of the grid.
    """
    height = ((points.offset[:, 2] + 0.5) * bins).long().clamp(0, bins - 1)
    occupied = torch.zeros(cell_count * bins, dtype=torch.bool, device=height.device)
    occupied[points.cell * bins + height] = True
    return occupied.view(cell_count, bins)


def choose_points(
    points: CellPoints,
    region: Tensor,
    max_points: int,
    generator: torch.Generator,
    *,
    z_scale: float = 1.0,
) -> PointTargets:
    """Gather the true points of the cells of a region, a uniform random choice where too many.

    Args:
        points: The points of the current frame.
        region: (B, H, W) bool; cells of it without a point do not appear in the result.
        max_points: K.
        generator: Random source.
        z_scale: Factor on the normalised z (1: z errors weigh about 10 times less than x, y).
    """
    wanted = region.reshape(-1)[points.cell]
    cell, offset = points.cell[wanted], points.offset[wanted]
    keys = torch.rand(len(cell), generator=generator, device=generator.device)
    order = (cell.double() + keys.to(cell.device).double()).argsort(stable=True)
    cells, row, held = torch.unique_consecutive(
        cell[order], return_inverse=True, return_counts=True
    )
    rank = torch.arange(len(order), device=order.device) - (held.cumsum(0) - held)[row]
    kept = rank < max_points
    xyz = offset.new_zeros(len(cells), max_points, 3)
    scale = offset.new_tensor((1.0, 1.0, z_scale))
    xyz[row[kept], rank[kept]] = offset[order[kept]] * scale
    return PointTargets(cells, xyz, held.clamp(max=max_points))


def choose_empty(occupied: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to ``count`` random cells (int64, rising) in which no agent has a point.

    Without them "every column is occupied" would be a solution of the occupancy task.

    Args:
        occupied: (cells,) bool.
        count: How many are wanted.
        generator: Random source, advanced by the same amount for any content.
    """
    keys = torch.rand(len(occupied), generator=generator, device=generator.device)
    keys = keys.to(occupied.device).masked_fill(occupied, 2.0)
    # The generator's keys lie in [0, 1), so occupied cells come last and are never reached.
    available = int((~occupied).sum())
    chosen = keys.argsort(stable=True)[: min(count, available)]
    return chosen.sort().values
