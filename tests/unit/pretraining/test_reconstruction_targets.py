"""Reconstruction targets: normalisation, limits, choice; empty cells; the head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.pretraining import (
    CellPoints,
    ReconstructionHead,
    cell_points,
    choose_empty,
    choose_points,
    occupied_bins,
)
from turbotrain_plugin.structures import ReconstructionPoints

# The paper's grid: 100 x 256 cells of 0.8 m, z from -5 to 3 m.
_PAPER = BevGrid((-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), (0.1, 0.1, 0.2), 8)
_SMALL = BevGrid((-3.2, -1.6, -5.0, 3.2, 1.6, 3.0), (0.1, 0.1, 0.2), 8)


def _points(
    xyz: list[list[float]] | Tensor, sample: list[int] | None = None
) -> ReconstructionPoints:
    places = torch.as_tensor(xyz, dtype=torch.float32).reshape(-1, 3)
    samples = torch.tensor(sample or [0] * len(places), dtype=torch.int64)
    zeros = torch.zeros(len(places), dtype=torch.int64)
    return ReconstructionPoints(places, samples, zeros, zeros)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_offsets_by_hand() -> None:
    found = cell_points(
        _points([[-3.2, -1.6, -5.0], [-2.8, -1.2, -1.0], [2.6, 1.4, 2.2]], [0, 0, 1]), _SMALL
    )
    # 8 columns, 4 rows: cell (0, 0) of sample 0 twice, then cell (3, 7) of sample 1.
    assert found.cell.tolist() == [0, 0, 32 + 3 * 8 + 7]
    expected = torch.tensor([[-0.5, -0.5, -0.5], [0.0, 0.0, 0.0], [-0.25, 0.25, 0.4]])
    torch.testing.assert_close(found.offset, expected, atol=1e-6, rtol=0)


def test_points_outside_the_range_are_left_out() -> None:
    outside = [[-3.3, 0, 0], [3.2, 0, 0], [0, -1.7, 0], [0, 1.6, 0], [0, 0, -5.1], [0, 0, 3.0]]
    inside = [[-3.2, 0, 0], [3.19, 0, 0], [0, -1.6, 0], [0, 1.59, 0], [0, 0, -5.0], [0, 0, 2.99]]
    assert len(cell_points(_points(outside), _SMALL).cell) == 0
    assert len(cell_points(_points(inside), _SMALL).cell) == 6


def test_offsets_stay_within_half_a_cell_on_the_paper_grid() -> None:
    low, high = torch.tensor(_PAPER.range_m[:3]), torch.tensor(_PAPER.range_m[3:])
    xyz = low + torch.rand(200_000, 3, generator=_seeded()) * (high - low)
    found = cell_points(_points(xyz), _PAPER)
    assert len(found.cell) > 199_900
    assert found.offset.min() >= -0.5
    assert found.offset.max() <= 0.5
    assert found.offset.std(dim=0).sub(12**-0.5).abs().max() < 0.01


def test_cell_centres_of_the_grid_have_offset_zero() -> None:
    centres = torch.from_numpy(_PAPER.cell_centres()).reshape(-1, 2)
    xyz = torch.cat([centres, torch.full((len(centres), 1), -1.0)], dim=1)
    found = cell_points(_points(xyz), _PAPER)
    assert torch.equal(found.cell, torch.arange(100 * 256))
    assert found.offset.abs().max() < 1e-4


def test_occupied_bins_by_hand() -> None:
    # 20 bins of 0.4 m from -5 m: bin 0, bin 1, the last; the same bin twice; another cell.
    z = [-5.0, -4.5, 2.99, 2.9]
    points = cell_points(
        _points([[-3.0, -1.5, height] for height in z] + [[3.0, 1.5, 0.0]]), _SMALL
    )
    occupied = occupied_bins(points, 32, 20)
    assert occupied.shape == (32, 20)
    assert occupied.nonzero().tolist() == [[0, 0], [0, 1], [0, 19], [31, 12]]


def test_occupied_bins_clamp_the_upper_edge() -> None:
    edge = CellPoints(torch.tensor([3, 4]), torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]]))
    assert occupied_bins(edge, 8, 20).nonzero().tolist() == [[3, 19], [4, 0]]


def test_chosen_points_are_the_points_of_the_region() -> None:
    xyz = [[-3.0, -1.5, 0.0], [-2.9, -1.4, 1.0], [3.0, 1.5, -1.0], [0.1, 0.1, 0.0]]
    points = cell_points(_points(xyz), _SMALL)
    region = torch.zeros(1, 4, 8, dtype=torch.bool)
    region[0, 0, 0] = region[0, 3, 7] = region[0, 0, 5] = True
    targets = choose_points(points, region, 4, _seeded())
    assert targets.cell.tolist() == [0, 31]
    assert targets.counts.tolist() == [2, 1]
    assert targets.xyz.shape == (2, 4, 3)
    assert not targets.xyz[0, 2:].any()
    first = {tuple(row) for row in targets.xyz[0, :2].tolist()}
    assert first == {tuple(row) for row in points.offset[:2].tolist()}
    torch.testing.assert_close(targets.xyz[1, 0], points.offset[2])


def test_crowded_cells_are_thinned_without_repetition() -> None:
    xyz = torch.rand(500, 3, generator=_seeded()) * torch.tensor([0.79, 0.79, 7.9])
    points = cell_points(_points(xyz + torch.tensor([0.0, 0.0, -5.0])), _SMALL)
    region = torch.ones(1, 4, 8, dtype=torch.bool)
    targets = choose_points(points, region, 64, _seeded())
    assert targets.counts.tolist() == [64]
    chosen = {tuple(row) for row in targets.xyz[0].tolist()}
    assert len(chosen) == 64
    assert chosen <= {tuple(row) for row in points.offset.tolist()}
    again = choose_points(points, region, 64, _seeded(1))
    assert {tuple(row) for row in again.xyz[0].tolist()} != chosen


def test_the_choice_is_uniform() -> None:
    offset = torch.zeros(10, 3)
    offset[:, 0] = torch.arange(10) / 20
    points = CellPoints(torch.zeros(10, dtype=torch.int64), offset)
    region = torch.ones(1, 1, 1, dtype=torch.bool)
    generator = _seeded()
    counts = torch.zeros(10)
    for _ in range(2000):
        kept = choose_points(points, region, 3, generator).xyz[0, :, 0]
        counts[(kept * 20).round().long()] += 1
    assert (counts / 2000 - 0.3).abs().max() < 0.05


def test_z_scale_multiplies_z_only() -> None:
    points = cell_points(_points([[-3.0, -1.5, 1.0]]), _SMALL)
    region = torch.ones(1, 4, 8, dtype=torch.bool)
    plain = choose_points(points, region, 4, _seeded()).xyz[0, 0]
    scaled = choose_points(points, region, 4, _seeded(), z_scale=10.0).xyz[0, 0]
    torch.testing.assert_close(scaled, plain * torch.tensor([1.0, 1.0, 10.0]))


def test_an_empty_region_has_no_targets() -> None:
    points = cell_points(_points([[-3.0, -1.5, 1.0]]), _SMALL)
    targets = choose_points(points, torch.zeros(1, 4, 8, dtype=torch.bool), 64, _seeded())
    assert targets.cell.shape == (0,)
    assert targets.xyz.shape == (0, 64, 3)
    assert targets.counts.shape == (0,)


@pytest.mark.parametrize(("wanted", "expected"), [(0, 0), (5, 5), (60, 60), (1000, 60)])
def test_empty_cells_are_empty_distinct_and_as_many_as_there_are(
    wanted: int, expected: int
) -> None:
    occupied = torch.arange(100) % 5 < 2
    chosen = choose_empty(occupied, wanted, _seeded())
    assert len(set(chosen.tolist())) == len(chosen) == expected
    assert not occupied[chosen].any()


def test_empty_cells_are_random() -> None:
    occupied = torch.zeros(100, dtype=torch.bool)
    one, two = choose_empty(occupied, 20, _seeded(1)), choose_empty(occupied, 20, _seeded(2))
    assert not torch.equal(one, two)
    assert torch.equal(one, choose_empty(occupied, 20, _seeded(1)))


def test_head_keeps_the_grid_and_puts_values_last() -> None:
    head = ReconstructionHead(8, 60, frames=3)
    features = torch.randn(2, 8, 5, 7)
    assert head(features).shape == (2, 3, 5, 7, 60)
    raw = head.eval().layers(features)
    torch.testing.assert_close(head(features)[1, 2, 2, 3], raw[1, 120:, 2, 3])
