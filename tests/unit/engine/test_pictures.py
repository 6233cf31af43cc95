"""What the pictures show is where it is: cells, metres, frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.made_batches import make_batch, small_grid
from turbotrain_plugin.engine.pictures import reconstruction_drawing
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.pretraining.reconstruction import cell_points
from turbotrain_plugin.structures import Batch, Reconstruction, ReconstructionPoints

GRID = BevGrid(range_m=(-8.0, -4.0, -5.0, 8.0, 4.0, 3.0), voxel_m=(1.0, 1.0, 8.0), stride=2)


def batch_with(xyz: list[list[float]]) -> Batch:
    batch = make_batch(grid=GRID, record_len=[1], hist_frames=2, seed=0)
    points = torch.tensor(xyz, dtype=torch.float32).reshape(-1, 3)
    zeros = torch.zeros(len(points), dtype=torch.int64)
    batch.reconstruction = ReconstructionPoints(points, zeros, zeros, zeros)
    return batch


def outputs(
    batch: Batch, unit: tuple[float, float, float], *cells: tuple[int, int]
) -> Reconstruction:
    """Predict ``unit`` in every cell; the region is ``cells`` (row, column)."""
    region = torch.zeros(1, 1, GRID.height, GRID.width, dtype=torch.bool)
    for row, column in cells:
        region[0, 0, row, column] = True
    points = torch.tensor(unit).expand(1, 1, GRID.height, GRID.width, 3, 3)
    masked = torch.zeros(len(batch.voxels.coordinates), dtype=torch.bool)
    return Reconstruction(points, None, region, masked)


@pytest.mark.parametrize(
    ("unit", "xyz"),
    [
        ((0.0, 0.0, 0.0), (1.0, -3.0, -1.0)),  # centre of cell (0, 4) and of the height range
        ((0.5, 0.5, 0.5), (2.0, -2.0, 3.0)),
        ((-0.5, -0.5, -0.5), (0.0, -4.0, -5.0)),
        ((0.5, -0.25, 0.0), (2.0, -3.5, -1.0)),
    ],
)
def test_predictions_are_in_units_of_their_cell(
    unit: tuple[float, float, float], xyz: tuple[float, float, float]
) -> None:
    batch = batch_with([[0.0, 0.0, 0.0]])
    drawing = reconstruction_drawing(batch, outputs(batch, unit, (0, 4)), GRID)
    assert drawing.rebuilt is not None
    np.testing.assert_allclose(drawing.rebuilt, [xyz] * 3, atol=1e-6)


@pytest.mark.parametrize("z_scale", [1.0, 4.0])
def test_drawing_undoes_what_the_targets_do(z_scale: float) -> None:
    """A network that predicts its target exactly is drawn on the true point."""
    point = [3.3, 1.7, -2.2]
    batch = batch_with([point])
    assert batch.reconstruction is not None
    target = cell_points(batch.reconstruction, GRID)
    x, y, z = target.offset[0].tolist()
    row, column = divmod(int(target.cell[0]), GRID.width)
    predicted = outputs(batch, (x, y, z * z_scale), (row, column))
    drawing = reconstruction_drawing(batch, predicted, GRID, z_scale=z_scale)
    assert drawing.rebuilt is not None
    np.testing.assert_allclose(drawing.rebuilt, [point] * 3, atol=1e-5)
    np.testing.assert_allclose(drawing.target, [point], atol=1e-6)


def test_targets_are_the_points_of_masked_cells() -> None:
    inside, outside = [1.9, -2.1, 0.0], [2.1, -2.1, 0.0]  # cells (0, 4) and (0, 5)
    batch = batch_with([inside, outside])
    drawing = reconstruction_drawing(batch, outputs(batch, (0.0, 0.0, 0.0), (0, 4)), GRID)
    np.testing.assert_allclose(drawing.target, [inside], atol=1e-6)
    assert (drawing.scene, drawing.frame) == batch.keys[0][:2]
    assert drawing.occupancy is None


def test_visible_points_are_current_and_not_hidden() -> None:
    batch = batch_with([[0.0, 0.0, 0.0]])
    predicted = outputs(batch, (0.0, 0.0, 0.0), (0, 0))
    current = batch.voxels.coordinates[:, 0] % 2 == 1
    hidden = int(current.nonzero()[0])
    predicted.masked[hidden] = True
    counts = batch.voxels.point_counts.clone()
    counts[hidden] = 0
    drawing = reconstruction_drawing(batch, predicted, GRID)
    assert len(drawing.visible) == int(counts[current].sum())


def test_mask_states_are_those_of_the_agents() -> None:
    """Two agents, two frames; current voxels in four cells, one more in the past."""
    batch = make_batch(grid=GRID, record_len=[2], hist_frames=2, seed=0)
    rows = [
        ([1, 0, 0, 0], False),  # cell (0, 0): seen by agent 0, hidden from agent 1
        ([3, 0, 1, 1], True),
        ([1, 0, 0, 2], True),  # cell (0, 1): hidden from both
        ([3, 0, 0, 3], True),
        ([1, 0, 2, 0], False),  # cell (1, 0): seen by the only one there
        ([3, 0, 2, 2], True),  # cell (1, 1): hidden from the only one there
        ([0, 0, 4, 4], True),  # the past
    ]
    coordinates = torch.tensor([row for row, _ in rows], dtype=torch.int32)
    batch.voxels.coordinates = coordinates
    batch.voxels.points = torch.zeros(len(rows), 1, 4)
    batch.voxels.point_counts = torch.ones(len(rows), dtype=torch.int32)
    found = outputs(batch, (0.0, 0.0, 0.0), (0, 0))
    found.masked = torch.tensor([hidden for _, hidden in rows])
    drawing = reconstruction_drawing(batch, found, GRID)
    assert drawing.mask is not None
    assert drawing.mask[:2, :2].tolist() == [[2, 3], [1, 3]]
    assert drawing.mask.sum() == 9


def test_occupancy_is_the_highest_bin() -> None:
    batch = batch_with([[0.0, 0.0, 0.0]])
    predicted = outputs(batch, (0.0, 0.0, 0.0), (0, 0))
    logits = torch.full((1, 1, GRID.height, GRID.width, 2), -20.0)
    logits[0, 0, 1, 2, 1] = 0.0
    predicted.points, predicted.occupancy = None, logits
    drawing = reconstruction_drawing(batch, predicted, GRID)
    assert drawing.rebuilt is None
    assert drawing.occupancy is not None
    assert drawing.occupancy[1, 2] == pytest.approx(0.5)
    assert drawing.occupancy.sum() == pytest.approx(0.5, abs=1e-3)


def test_a_batch_without_points_is_a_mistake_of_the_caller() -> None:
    batch = make_batch(grid=small_grid(), record_len=[1], hist_frames=2, seed=0)
    batch.reconstruction = None
    empty = torch.zeros(1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`batch\.reconstruction`"):
        reconstruction_drawing(batch, Reconstruction(None, None, empty, empty), small_grid())
