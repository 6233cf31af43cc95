"""Masks, regions and targets against plain loops over dictionaries."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.pretraining import (
    cell_points,
    choose_points,
    mask_columns,
    masked_region,
    occupied_bins,
)
from turbotrain_plugin.structures import Batch

_GRID = small_grid(12)
_FRAMES = 3


def _batch(seed: int) -> Batch:
    return make_batch(
        grid=_GRID,
        record_len=[3, 1, 2],
        hist_frames=_FRAMES,
        seed=seed,
        shape=MadeShape(voxels_per_map=90),
    )


def _cell(row: list[int]) -> tuple[int, int]:
    return row[2] // _GRID.stride, row[3] // _GRID.stride


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9])
def test_counts_of_every_map(ratio: float) -> None:
    batch = _batch(0)
    generator = torch.Generator().manual_seed(1)
    masked = mask_columns(
        batch.voxels.coordinates, _GRID, ratio, generator, map_count=batch.voxels.map_count
    )
    fate: dict[int, dict[tuple[int, int], set[bool]]] = defaultdict(lambda: defaultdict(set))
    for row, hidden in zip(batch.voxels.coordinates.tolist(), masked.tolist(), strict=True):
        fate[row[0]][_cell(row)].add(hidden)
    assert len(fate) > 10
    for columns in fate.values():
        assert all(len(fates) == 1 for fates in columns.values())
        hidden_count = sum(fates == {True} for fates in columns.values())
        kept = math.floor(round((1 - ratio) * len(columns), 9))
        assert hidden_count == min(max(len(columns) - kept, 1), len(columns) - 1)


@pytest.mark.parametrize("rule", ["any", "all"])
@pytest.mark.parametrize("targets", [1, 2, _FRAMES])
def test_region(rule: str, targets: int) -> None:
    batch = _batch(1)
    generator = torch.Generator().manual_seed(1)
    masked = mask_columns(batch.voxels.coordinates, _GRID, 0.6, generator)
    sample_of_agent = [0, 0, 0, 1, 2, 2]
    fates: dict[tuple[int, ...], list[bool]] = defaultdict(list)
    for row, hidden in zip(batch.voxels.coordinates.tolist(), masked.tolist(), strict=True):
        frame = row[0] % _FRAMES - (_FRAMES - targets)
        if frame >= 0:
            fates[(sample_of_agent[row[0] // _FRAMES], frame, *_cell(row))].append(hidden)
    decide = any if rule == "any" else all
    expected = sorted(place for place, hidden in fates.items() if decide(hidden))
    region = masked_region(batch, masked, _GRID, rule, target_frames=targets)
    assert region.shape == (3, targets, _GRID.height, _GRID.width)
    assert [tuple(place) for place in region.nonzero().tolist()] == expected


@pytest.mark.parametrize("targets", [1, _FRAMES])
def test_region_lies_where_the_points_are(targets: int) -> None:
    """Voxels and raw points of a made batch agree cell by cell, in every frame."""
    batch = _batch(2)
    assert batch.reconstruction is not None
    everything = torch.ones(len(batch.voxels.coordinates), dtype=torch.bool)
    region = masked_region(batch, everything, _GRID, "any", target_frames=targets)
    found = cell_points(batch.reconstruction, _GRID, targets)
    occupied = occupied_bins(found, region.numel(), 20)
    assert torch.equal(occupied.any(dim=1), region.view(-1))


@pytest.mark.parametrize("frames", [1, 2])
def test_targets_and_occupancy(frames: int) -> None:
    batch = _batch(3)
    assert batch.reconstruction is not None
    points = batch.reconstruction
    by_cell: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    bins: set[tuple[int, int]] = set()
    owners = zip(points.xyz.tolist(), points.sample.tolist(), points.age.tolist(), strict=True)
    for (x, y, z), sample, age in owners:
        if age >= frames:
            continue
        column = math.floor((x - _GRID.range_m[0]) / 0.8)
        row = math.floor((y - _GRID.range_m[1]) / 0.8)
        target = sample * frames + frames - 1 - age
        cell = (target * _GRID.height + row) * _GRID.width + column
        centre_x = _GRID.range_m[0] + (column + 0.5) * 0.8
        centre_y = _GRID.range_m[1] + (row + 0.5) * 0.8
        by_cell[cell].append(((x - centre_x) / 0.8, (y - centre_y) / 0.8, (z + 1.0) / 8.0))
        bins.add((cell, math.floor((z + 5.0) / 0.4)))
    shape = (3, frames, _GRID.height, _GRID.width)
    region_cells = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    found = cell_points(points, _GRID, frames)
    targets = choose_points(found, region_cells, 64, torch.Generator().manual_seed(0))
    wanted = {cell for cell in by_cell if region_cells.view(-1)[cell]}
    assert targets.cell.tolist() == sorted(wanted)
    for cell, xyz, count in zip(
        targets.cell.tolist(), targets.xyz, targets.counts.tolist(), strict=True
    ):
        expected = torch.tensor(sorted(by_cell[cell]))
        torch.testing.assert_close(
            torch.tensor(sorted(xyz[:count].tolist())), expected, atol=2e-5, rtol=0
        )
    occupied = occupied_bins(found, region_cells.numel(), 20)
    assert {(cell, height) for cell, height in occupied.nonzero().tolist()} == bins
