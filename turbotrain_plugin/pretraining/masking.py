"""Which BEV columns of each agent and frame the encoder does not see."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import Batch

_ROUNDING: Final = 1e-6
"""Keeps (1 - 0.9) x 10 = 0.9999999999999998 from being floored to 0."""


def mask_columns(
    coordinates: Tensor,
    grid: BevGrid,
    ratio: float,
    generator: torch.Generator,
    *,
    map_count: int | None = None,
) -> Tensor:
    """Choose the voxels to hide, column by column, for every (agent, frame) map on its own.

    The unit is a non-empty BEV cell with everything above it (BEV-MAE, CooPre; ratio 0.7 from
    supplement B.3). Of the n columns of a map exactly n - floor((1 - ratio) n) are hidden, and when
    n >= 2 at least one is hidden and one kept. The draw of a column depends on the generator, its
    map and its cell only: neither the order of the voxels nor what other maps hold changes it
    (independent draws are our choice).

    Args:
        coordinates: (V, 4) integer: map index, z, y, x in voxels.
        grid: Its ``stride`` makes voxels into columns.
        ratio: Share of the columns to hide, in [0, 1]; 0 hides none.
        generator: Random source, advanced by the same amount for any content.
        map_count: Maps of the batch; the highest index plus one by default.

    Returns:
        (V,) bool, True where hidden.

    Raises:
        ValueError: When the ratio lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"`ratio` must lie in [0, 1]. Found {ratio}.")
    if map_count is None:
        map_count = int(coordinates[:, 0].max()) + 1 if len(coordinates) else 0
    cells = grid.height * grid.width
    keys = torch.rand(map_count * cells, generator=generator, device=generator.device)
    if ratio == 0 or not len(coordinates):
        return torch.zeros(len(coordinates), dtype=torch.bool, device=coordinates.device)
    column = column_index(coordinates, grid)
    occupied = torch.zeros(map_count * cells, dtype=torch.bool, device=column.device)
    occupied[column] = True
    held = occupied.view(map_count, cells).sum(dim=1)
    columns = occupied.nonzero().squeeze(1)
    map_index = columns // cells
    # The columns come sorted by map, so sorting map + key in [0, 1) shuffles within maps.
    order = (map_index.double() + keys.to(columns.device)[columns].double()).argsort(stable=True)
    first = held.cumsum(0) - held
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[map_index]
    hidden = torch.zeros_like(occupied)
    hidden[columns] = rank < _hidden_counts(held, ratio)[map_index]
    return hidden[column]


def column_index(coordinates: Tensor, grid: BevGrid) -> Tensor:
    """Return (V,) int64 map x H x W + row x W + column of the BEV cell a voxel lies in.

    Args:
        coordinates: (V, 4) integer: map index, z, y, x in voxels.
        grid: The BEV grid.
    """
    map_index, _, y, x = coordinates.long().unbind(dim=1)
    return (map_index * grid.height + y // grid.stride) * grid.width + x // grid.stride


def masked_region(batch: Batch, masked: Tensor, grid: BevGrid, rule: str) -> Tensor:
    """Return (B, H, W) bool, the cells to rebuild, judged by the current frame only.

    Args:
        batch: The batch whose voxels were masked.
        masked: (V,) bool, hidden voxels.
        grid: The BEV grid.
        rule: ``any``: hidden in at least one agent that has voxels there; ``all``: in every agent
            that has voxels there (our choice; the paper's rule is unknown).
    """
    frames = batch.frame_valid.shape[1]
    map_index = batch.voxels.coordinates[:, 0].long()
    current = map_index % frames == frames - 1
    samples = torch.arange(len(batch.record_len), device=map_index.device)
    sample_of_agent = samples.repeat_interleave(batch.record_len)
    coordinates = batch.voxels.coordinates.long().clone()
    coordinates[:, 0] = sample_of_agent[map_index // frames]
    cell = column_index(coordinates, grid)
    shape = (len(samples), grid.height, grid.width)

    def cells_of(chosen: Tensor) -> Tensor:
        region = torch.zeros(shape, dtype=torch.bool, device=cell.device)
        region.view(-1)[cell[chosen]] = True
        return region

    region = cells_of(current & masked)
    return region if rule == "any" else region & ~cells_of(current & ~masked)


def _hidden_counts(held: Tensor, ratio: float) -> Tensor:
    """Return (maps,) int64 columns to hide of the ``held`` ones."""
    kept = (held.double() * (1 - ratio) + _ROUNDING).floor().long()
    hidden = held - kept
    return hidden.where(held < 2, hidden.clamp(min=1).minimum(held - 1))
