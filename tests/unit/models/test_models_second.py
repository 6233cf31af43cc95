"""The SECOND encoder: size, place, few sites, evaluation on CPU."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.made_batches import MadeShape, make_batch
from tests.helpers.made_models import second_grid
from turbotrain_plugin.config import EncoderConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.second import SecondEncoder
from turbotrain_plugin.structures import UserError, Voxels

pytest.importorskip("spconv.pytorch")

NARROW = (4, 4, 8, 8)


def encoder_for(*, residual: bool = True, grid: BevGrid | None = None) -> SecondEncoder:
    torch.manual_seed(0)
    args = EncoderConfig(residual=residual, widths=NARROW)
    return SecondEncoder(args, grid or second_grid(), 16)


def voxels_for(count: int = 60) -> Voxels:
    shape = MadeShape(voxels_per_map=count, map_stride=0)
    made = make_batch(grid=second_grid(), record_len=[2], hist_frames=1, seed=0, shape=shape)
    return made.voxels


def run(encoder: SecondEncoder, voxels: Voxels) -> torch.Tensor:
    features = encoder.input_features(voxels)
    maps: torch.Tensor = encoder(features, voxels.coordinates, voxels.map_count)
    return maps


@pytest.mark.parametrize(
    ("residual", "widths", "parameters"),
    [(True, (16, 32, 64, 128), 2_694_880), (False, (16, 32, 64, 64), 711_872)],
)
def test_parameter_counts(residual: bool, widths: tuple[int, ...], parameters: int) -> None:
    grid = BevGrid((-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), (0.1, 0.1, 0.2), 8)
    encoder = SecondEncoder(EncoderConfig(residual=residual, widths=widths), grid, 256)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
    assert encoder.out_channels == 256


@pytest.mark.parametrize(("bins", "slices"), [(24, 1), (39, 1), (40, 2), (55, 2), (56, 3), (71, 3)])
def test_height_slices(bins: int, slices: int) -> None:
    grid = BevGrid((-0.8, -0.8, 0.0, 0.8, 0.8, bins * 0.2), (0.1, 0.1, 0.2), 8)
    encoder = encoder_for(grid=grid)
    assert encoder.out_channels == 16 * slices
    one = torch.tensor([[0, bins - 1, 3, 3], [0, 0, 9, 9]], dtype=torch.int32)
    assert encoder(torch.ones(2, 4), one, 1).shape == (1, 16 * slices, 2, 2)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_maps_have_the_grids_size(residual: bool, training: bool) -> None:
    encoder = encoder_for(residual=residual).train(training)
    maps = run(encoder, voxels_for())
    assert maps.shape == (2, 32, 8, 8)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(maps).all()
    assert maps.abs().sum() > 0


@pytest.mark.parametrize("residual", [True, False])
def test_every_parameter_learns(residual: bool) -> None:
    encoder = encoder_for(residual=residual)
    torch.autograd.backward(run(encoder, voxels_for(400)).square().sum())
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_gradients_reach_the_voxel_features() -> None:
    encoder = encoder_for()
    voxels = voxels_for(400)
    features = encoder.input_features(voxels).requires_grad_()
    encoder(features, voxels.coordinates, voxels.map_count).square().sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_input_features_are_the_mean_of_the_points() -> None:
    points = torch.tensor(
        [[[1.0, 2, 3, 0], [3, 4, 5, 1], [0, 0, 0, 0]], [[5, 5, 5, 5]] + [[0] * 4] * 2]
    )
    voxels = Voxels(points, torch.zeros(2, 4, dtype=torch.int32), torch.tensor([2, 1]), 1)
    assert encoder_for().input_features(voxels).tolist() == [[2, 3, 4, 0.5], [5, 5, 5, 5]]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 6), (7, 3)])
def test_a_voxel_answers_around_its_cell(row: int, column: int) -> None:
    encoder = encoder_for().eval()
    site = torch.tensor([[1, 20, 8 * row + 4, 8 * column + 4]], dtype=torch.int32)
    maps = encoder(torch.ones(1, 4), site, 2)
    assert maps[0].abs().sum() == 0
    answered = maps[1].abs().sum(0).nonzero()
    assert len(answered) > 0
    assert (answered - torch.tensor([row, column])).abs().max() <= 1


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_hardly_any_voxels_give_finite_maps(count: int, training: bool) -> None:
    encoder = encoder_for().train(training)
    voxels = voxels_for()
    few = Voxels(voxels.points[:count], voxels.coordinates[:count], voxels.point_counts[:count], 2)
    maps = run(encoder, few)
    assert maps.shape == (2, 32, 8, 8)
    assert torch.isfinite(maps).all()
    assert torch.isfinite(torch.cat([b.flatten() for b in encoder.buffers()])).all()


def test_memory_layout_of_coordinates_does_not_matter() -> None:
    """spconv reads raw memory: transposed coordinates give wrong sites without a word."""
    encoder = encoder_for().eval()
    voxels = voxels_for()
    turned = replace(voxels, coordinates=voxels.coordinates.T.contiguous().T)
    assert not turned.coordinates.is_contiguous()
    torch.testing.assert_close(run(encoder, turned), run(encoder, voxels))


def test_voxel_order_does_not_matter() -> None:
    encoder = encoder_for().eval()
    voxels = voxels_for()
    order = torch.randperm(len(voxels.points))
    shuffled = Voxels(
        voxels.points[order], voxels.coordinates[order], voxels.point_counts[order], 2
    )
    torch.testing.assert_close(run(encoder, shuffled), run(encoder, voxels), atol=1e-5, rtol=1e-4)


def test_autocast_is_switched_off_inside() -> None:
    encoder = encoder_for().eval()
    voxels = voxels_for()
    with torch.autocast("cpu", torch.bfloat16):
        maps = run(encoder, voxels)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, run(encoder, voxels))


def test_wrong_stride_is_refused() -> None:
    grid = BevGrid((-3.2, -3.2, -5.0, 3.2, 3.2, 3.0), (0.1, 0.1, 0.2), 4)
    with pytest.raises(UserError, match=r"SECOND encoder needs .*feature_stride 8. Found 4"):
        encoder_for(grid=grid)


def test_flat_grids_are_refused() -> None:
    grid = BevGrid((-3.2, -3.2, -5.0, 3.2, 3.2, -1.0), (0.1, 0.1, 0.2), 8)
    with pytest.raises(UserError, match=r"at least 24 height bins .*Found 20"):
        encoder_for(grid=grid)


@pytest.mark.parametrize("widths", [(4, 4, 8), (4, 4, 8, 0)])
def test_wrong_widths_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"encoder.widths needs four channel numbers"):
        SecondEncoder(EncoderConfig(widths=widths), second_grid(), 16)
