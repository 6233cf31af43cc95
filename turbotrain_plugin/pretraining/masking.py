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
    order_of_map: Tensor | None = None,
) -> Tensor:
    """Choose the voxels to hide, column by column, for every (agent, frame) map.

    The unit is a non-empty BEV cell with everything above it (BEV-MAE, CooPre; ratio 0.7 from
    supplement B.3). A random order of the grid's cells is drawn, and of its n columns a map hides
    the first n - floor((1 - ratio) n) in that order; when n >= 2 at least one is hidden and one
    kept. The count is exact in every map, whatever its neighbours hold, and depends, like the
    choice, on the generator, the map's order and its own cells only: neither the order of the
    voxels nor what other maps hold changes it.

    Maps that share an order (``shared_orders``; our choice, as is the default, an order for each
    map) hide the same columns where they hold the same columns. Where they do not, the exact counts
    come first, and a cell that both hold may differ when it stands in the order between the last
    columns that the two hide.

    Args:
        coordinates: (V, 4) integer: map index, z, y, x in voxels.
        grid: Its ``stride`` makes voxels into columns.
        ratio: Share of the columns to hide, in [0, 1]; 0 hides none.
        generator: Random source, advanced by the same amount for any content.
        map_count: Maps of the batch; the highest index plus one by default.
        order_of_map: (maps,) int64, which of the orders 0, 1, ... a map follows; None: its own.

    Returns:
        (V,) bool, True where hidden.

    Raises:
        ValueError: When the ratio lies outside [0, 1], or ``order_of_map`` misses a map.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"`ratio` must lie in [0, 1]. Found {ratio}.")
    if map_count is None:
        map_count = int(coordinates[:, 0].max()) + 1 if len(coordinates) else 0
    if order_of_map is None:
        order_of_map = torch.arange(map_count, device=coordinates.device)
    if len(order_of_map) != map_count:
        raise ValueError(
            f"`order_of_map` must have one entry for each of {map_count} maps. "
            f"Found {len(order_of_map)}."
        )
    cells = grid.height * grid.width
    orders = int(order_of_map.max()) + 1 if map_count else 0
    keys = torch.rand(orders * cells, generator=generator, device=generator.device)
    if ratio == 0 or not len(coordinates):
        return torch.zeros(len(coordinates), dtype=torch.bool, device=coordinates.device)
    column = column_index(coordinates, grid)
    occupied = torch.zeros(map_count * cells, dtype=torch.bool, device=column.device)
    occupied[column] = True
    held = occupied.view(map_count, cells).sum(dim=1)
    columns = occupied.nonzero().squeeze(1)
    map_index = columns // cells
    key = keys.to(columns.device)[order_of_map[map_index] * cells + columns % cells]
    # The columns come sorted by map, so sorting map + key in [0, 1) shuffles within maps.
    order = (map_index.double() + key.double()).argsort(stable=True)
    first = held.cumsum(0) - held
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - first[map_index]
    hidden = torch.zeros_like(occupied)
    hidden[columns] = rank < _hidden_counts(held, ratio)[map_index]
    return hidden[column]


def shared_orders(record_len: Tensor, frames: int, scope: str) -> Tensor:
    """Return (sum A * T,) int64: which order of ``mask_columns`` an (agent, frame) map follows.

    All maps lie in the ego grid of the current time, so a cell is one place of the world.

    Args:
        record_len: (B,) int64, agents per sample.
        frames: T.
        scope: ``independent``: each map its own; ``tube``: one for the frames of an agent;
            ``shared``: one for all agents and frames of a sample.

    Raises:
        ValueError: On an unknown scope.
    """
    agents = torch.arange(int(record_len.sum()), device=record_len.device)
    if scope == "independent":
        return torch.arange(len(agents) * frames, device=record_len.device)
    if scope == "tube":
        return agents.repeat_interleave(frames)
    if scope == "shared":
        samples = torch.arange(len(record_len), device=record_len.device)
        return samples.repeat_interleave(record_len * frames)
    raise ValueError(f"`scope` must be independent, tube or shared. Found {scope!r}.")


def column_index(coordinates: Tensor, grid: BevGrid) -> Tensor:
    """Return (V,) int64 map x H x W + row x W + column of the BEV cell a voxel lies in.

    Args:
        coordinates: (V, 4) integer: map index, z, y, x in voxels.
        grid: The BEV grid.
    """
    map_index, _, y, x = coordinates.long().unbind(dim=1)
    return (map_index * grid.height + y // grid.stride) * grid.width + x // grid.stride


def masked_region(
    batch: Batch, masked: Tensor, grid: BevGrid, rule: str, *, target_frames: int = 1
) -> Tensor:
    """Return (B, F, H, W) bool, the cells to rebuild in each of the F latest frames.

    Args:
        batch: The batch whose voxels were masked.
        masked: (V,) bool, hidden voxels.
        grid: The BEV grid.
        rule: ``any``: hidden in at least one agent that has voxels there in that frame; ``all``:
            in every agent that has voxels there (our choice; the paper's rule is unknown).
        target_frames: F; 1 is the current frame alone.
    """
    cell, target = target_cells(batch, grid, target_frames)
    shape = (len(batch.record_len), target_frames, grid.height, grid.width)

    def cells_of(chosen: Tensor) -> Tensor:
        region = torch.zeros(shape, dtype=torch.bool, device=cell.device)
        region.view(-1)[cell[chosen & target]] = True
        return region

    region = cells_of(masked)
    return region if rule == "any" else region & ~cells_of(~masked)


def target_cells(batch: Batch, grid: BevGrid, target_frames: int) -> tuple[Tensor, Tensor]:
    """Return where voxels lie among the cells to rebuild, agents of a sample taken together.

    Args:
        batch: The batch.
        grid: The BEV grid.
        target_frames: F, how many of the latest frames are to be rebuilt.

    Returns:
        (V,) int64 ((sample x F + frame) x H + row) x W + column; (V,) bool, False for voxels of
        older frames, whose cell means nothing.
    """
    frames = batch.frame_valid.shape[1]
    map_index = batch.voxels.coordinates[:, 0].long()
    target = map_index % frames - (frames - target_frames)
    samples = torch.arange(len(batch.record_len), device=map_index.device)
    sample_of_agent = samples.repeat_interleave(batch.record_len)
    coordinates = batch.voxels.coordinates.long().clone()
    coordinates[:, 0] = sample_of_agent[map_index // frames] * target_frames + target
    return column_index(coordinates, grid), target >= 0


def _hidden_counts(held: Tensor, ratio: float) -> Tensor:
    """Return (maps,) int64 columns to hide of the ``held`` ones."""
    kept = (held.double() * (1 - ratio) + _ROUNDING).floor().long()
    hidden = held - kept
    return hidden.where(held < 2, hidden.clamp(min=1).minimum(held - 1))
