"""What masked pretraining predicts: heads, and the targets made of the unmasked current points."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import ReconstructionPoints


class ReconstructionHead(nn.Module):
    """Light decoder: conv3x3, BatchNorm, ReLU, conv1x1 (width and depth as CooPre's).

    Args:
        channels: C of the BEV feature.
        outputs: Values per cell and frame.
        frames: F, frames to rebuild.
    """

    def __init__(self, channels: int, outputs: int, frames: int = 1) -> None:
        super().__init__()
        self._frames = frames
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, outputs * frames, kernel_size=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, F, H, W, outputs)."""
        maps: Tensor = self.layers(features).unflatten(1, (self._frames, -1))
        return maps.permute(0, 1, 3, 4, 2)


@dataclass(frozen=True, slots=True)
class CellPoints:
    """Points that lie on the grid, by BEV cell.

    Attributes:
        cell: (P,) int64, ((sample x F + frame) x H + row) x W + column, F the target frames.
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


def cell_points(points: ReconstructionPoints, grid: BevGrid, target_frames: int = 1) -> CellPoints:
    """Sort the points of all agents into BEV cells; those out of range or older are left out.

    Offsets are divided by the size of the cell they are taken in (BEV-MAE). CooPre's release
    divides by the fine voxel size and centres on the coarse index, which sends x beyond 2000.

    Args:
        points: Unmasked points in the ego frame.
        grid: The BEV grid.
        target_frames: F, how many of the latest frames are to be rebuilt, oldest first.
    """
    low = points.xyz.new_tensor(grid.range_m[:3])
    size = points.xyz.new_tensor((*grid.cell_m, grid.range_m[5] - grid.range_m[2]))
    position = (points.xyz - low) / size
    index = position.floor()
    limit = position.new_tensor((grid.width, grid.height, 1))
    inside = ((index >= 0) & (index < limit)).all(dim=1) & (points.age < target_frames)
    column, row, _ = index[inside].long().unbind(dim=1)
    frame = points.sample[inside] * target_frames + (target_frames - 1 - points.age[inside])
    cell = (frame * grid.height + row) * grid.width + column
    return CellPoints(cell, position[inside] - index[inside] - 0.5)


def occupied_bins(points: CellPoints, cell_count: int, bins: int) -> Tensor:
    """Return (cells, bins) bool: whether any agent's point falls in a height bin of a cell.

    Args:
        points: The points by cell.
        cell_count: B x F x H x W.
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
        points: The points by cell.
        region: (B, F, H, W) bool; cells of it without a point do not appear in the result.
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


def choose_empty(taken: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return up to ``count`` random cells (int64, rising) in which no agent has a point.

    Without them "every column is occupied" would be a solution of the occupancy task.

    Args:
        taken: (cells,) bool, those with points and those of frames that nobody recorded.
        count: How many are wanted.
        generator: Random source, advanced by the same amount for any content.
    """
    keys = torch.rand(len(taken), generator=generator, device=generator.device)
    keys = keys.to(taken.device).masked_fill(taken, 2.0)
    # The generator's keys lie in [0, 1), so taken cells come last and are never reached.
    available = int((~taken).sum())
    chosen = keys.argsort(stable=True)[: min(count, available)]
    return chosen.sort().values
