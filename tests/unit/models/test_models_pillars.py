"""The pillar encoder: places, padding, strides, refusals."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.config import EncoderConfig
from turbotrain_plugin.models import PillarEncoder
from turbotrain_plugin.structures import UserError, Voxels


def encoder_for(
    stride: int, *, channels: int = 16, cells: int = 8, voxel_z: float = 8.0
) -> PillarEncoder:
    torch.manual_seed(0)
    args = EncoderConfig(
        core_method="pillars", pillar_channels=8, pillar_blocks=(1,) * stride.bit_length()
    )
    return PillarEncoder(args, small_grid(cells, stride=stride, voxel_z=voxel_z), channels)


def voxels_for(encoder: PillarEncoder, seed: int = 0) -> Voxels:
    made = make_batch(
        grid=encoder.grid,
        record_len=[2],
        hist_frames=2,
        seed=seed,
        shape=MadeShape(voxels_per_map=30),
    )
    return made.voxels


def run(encoder: PillarEncoder, voxels: Voxels) -> torch.Tensor:
    features = encoder.input_features(voxels)
    maps: torch.Tensor = encoder(features, voxels.coordinates, voxels.map_count)
    return maps


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [8, 16, 24])
def test_total_stride_is_the_grids(stride: int, channels: int) -> None:
    encoder = encoder_for(stride, channels=channels)
    maps = run(encoder, voxels_for(encoder))
    assert maps.shape == (4, channels, 8, 8)
    assert encoder.out_channels == channels
    assert maps.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("stride", "blocks"), [(2, (1,)), (1, (1, 1)), (4, (1, 1)), (2, (1, 0)), (2, (-1, 1)), (2, ())]
)
def test_blocks_that_do_not_fit_the_stride_are_refused(
    stride: int, blocks: tuple[int, ...]
) -> None:
    args = EncoderConfig(pillar_blocks=blocks)
    with pytest.raises(UserError, match=r"pillar_blocks needs \d stages for the feature stride"):
        PillarEncoder(args, small_grid(8, stride=stride), 16)


def test_a_stride_that_is_no_power_of_two_is_refused() -> None:
    with pytest.raises(UserError, match=r"feature_stride 1, 2, 4 or 8. Found 3"):
        PillarEncoder(EncoderConfig(), small_grid(8, stride=3), 16)


def test_a_first_stage_without_convolutions_only_scatters() -> None:
    args = EncoderConfig(pillar_channels=8, pillar_blocks=(0,))
    encoder = PillarEncoder(args, small_grid(8, stride=1), 8)
    features = torch.tensor([[1.0] * 8, [2.0] * 8])
    coordinates = torch.tensor([[0, 0, 2, 5], [1, 0, 7, 0]], dtype=torch.int32)
    maps = encoder(features, coordinates, 2)
    expected = torch.zeros(2, 8, 8, 8)
    expected[0, :, 2, 5], expected[1, :, 7, 0] = 1.0, 2.0
    assert torch.equal(maps, expected)


def test_voxels_of_one_column_are_summed() -> None:
    args = EncoderConfig(pillar_channels=8, pillar_blocks=(0,))
    encoder = PillarEncoder(args, small_grid(8, stride=1, voxel_z=4.0), 8)
    coordinates = torch.tensor([[0, 0, 2, 5], [0, 1, 2, 5]], dtype=torch.int32)
    maps = encoder(torch.ones(2, 8), coordinates, 1)
    assert maps[0, :, 2, 5].tolist() == [2.0] * 8
    assert maps.sum() == 16.0


def test_what_lies_in_unused_slots_is_ignored() -> None:
    encoder = encoder_for(2)
    voxels = voxels_for(encoder)
    slots = torch.arange(voxels.points.shape[1])
    points = voxels.points.clone()
    points[slots[None] >= voxels.point_counts[:, None]] = 1e6
    dirty = replace(voxels, points=points)
    torch.testing.assert_close(encoder.input_features(dirty), encoder.input_features(voxels))


def test_the_order_of_points_and_voxels_does_not_matter() -> None:
    encoder = encoder_for(2).eval()
    voxels = voxels_for(encoder)
    turned = voxels.points.clone()
    full = voxels.point_counts == voxels.points.shape[1]
    assert full.any()
    turned[full] = turned[full].flip(1)
    order = torch.randperm(len(turned))
    shuffled = Voxels(
        turned[order], voxels.coordinates[order], voxels.point_counts[order], voxels.map_count
    )
    torch.testing.assert_close(run(encoder, shuffled), run(encoder, voxels))


def test_voxels_without_points_give_zero() -> None:
    encoder = encoder_for(2)
    voxels = voxels_for(encoder)
    counts = voxels.point_counts.clone()
    counts[3] = 0
    features = encoder.input_features(replace(voxels, point_counts=counts))
    assert torch.equal(features[3], torch.zeros(8))
    assert torch.isfinite(features).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_voxels_gives_finite_maps(training: bool) -> None:
    encoder = encoder_for(2).train(training)
    voxels = voxels_for(encoder)
    none = Voxels(voxels.points[:0], voxels.coordinates[:0], voxels.point_counts[:0], 4)
    maps = run(encoder, none)
    assert maps.shape == (4, 16, 8, 8)
    assert torch.isfinite(maps).all()


def test_gradients_reach_points_and_voxel_features() -> None:
    encoder = encoder_for(2)
    voxels = voxels_for(encoder)
    features = encoder.input_features(voxels)
    features.retain_grad()
    encoder(features, voxels.coordinates, voxels.map_count).square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(1) > 0).float().mean() > 0.9
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.points.parameters())


def test_maps_do_not_mix() -> None:
    encoder = encoder_for(2).eval()
    voxels = voxels_for(encoder)
    only_first = voxels.coordinates[:, 0] == 0
    alone = Voxels(
        voxels.points[only_first],
        voxels.coordinates[only_first],
        voxels.point_counts[only_first],
        voxels.map_count,
    )
    torch.testing.assert_close(run(encoder, alone)[0], run(encoder, voxels)[0])
