"""Point encoders against dense convolutions and loops over voxels; F-Cooper against a loop."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.config import EncoderConfig, FusionConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models import PillarEncoder
from turbotrain_plugin.models.fusion import FCooper
from turbotrain_plugin.models.second import SecondEncoder
from turbotrain_plugin.structures import FusionContext, Voxels


def voxels_on(grid: BevGrid, count: int) -> Voxels:
    shape = MadeShape(voxels_per_map=count, map_stride=0)
    return make_batch(grid=grid, record_len=[2], hist_frames=1, seed=3, shape=shape).voxels


@torch.no_grad()
def test_pillar_features_voxel_by_voxel() -> None:
    grid = small_grid(8, stride=2, voxel_z=4.0)
    encoder = PillarEncoder(EncoderConfig(pillar_channels=8, pillar_blocks=(1, 1)), grid, 8)
    voxels = voxels_on(grid, 40)
    features = encoder.input_features(voxels)
    size, low = torch.tensor(grid.voxel_m), torch.tensor(grid.range_m[:3])
    half = (torch.tensor(grid.range_m[3:]) - low) / 2
    for row in range(len(voxels.points)):
        points = voxels.points[row, : int(voxels.point_counts[row])]
        centre = low + (voxels.coordinates[row, [3, 2, 1]] + 0.5) * size
        inputs = torch.cat(
            [
                (points[:, :3] - low) / half - 1,
                points[:, 3:],
                (points[:, :3] - points[:, :3].mean(0)) / size,
                (points[:, :3] - centre) / size,
            ],
            dim=1,
        )
        assert inputs[:, :3].abs().max() <= 1.0
        assert inputs[:, 7:].abs().max() <= 0.5
        torch.testing.assert_close(features[row], encoder.points(inputs).amax(0))


def test_gradient_of_the_pillar_maximum() -> None:
    """The segment maximum passes gradients as a padded maximum does."""
    grid = small_grid(8, stride=1)
    encoder = PillarEncoder(EncoderConfig(pillar_channels=8, pillar_blocks=(0,)), grid, 8)
    voxels = voxels_on(grid, 40)
    probe = torch.randn(len(voxels.points), 8)
    parameters = list(encoder.points.parameters())
    found = torch.autograd.grad((encoder.input_features(voxels) * probe).sum(), parameters)
    slots = torch.arange(voxels.points.shape[1])
    used = slots < voxels.point_counts[:, None]
    padded = torch.zeros(*used.shape, 8)
    padded[used] = encoder.points(encoder._point_inputs(voxels, used))
    true = torch.autograd.grad((padded.amax(1) * probe).sum(), parameters)
    torch.testing.assert_close(found, true, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_pillar_canvas_against_a_loop() -> None:
    grid = small_grid(8, stride=1, voxel_z=2.0)
    encoder = PillarEncoder(EncoderConfig(pillar_channels=4, pillar_blocks=(0,)), grid, 4)
    voxels = voxels_on(grid, 100)
    features = torch.randn(len(voxels.points), 4)
    canvas = torch.zeros(2, 4, 8, 8)
    for row, (index, _, y, x) in enumerate(voxels.coordinates.tolist()):
        canvas[index, :, y, x] += features[row]
    torch.testing.assert_close(encoder(features, voxels.coordinates, 2), canvas)


@torch.no_grad()
def test_fcooper_against_a_loop_over_cells() -> None:
    features, roi = torch.randn(3, 4, 3, 5), torch.rand(3, 1, 3, 5) > 0.5
    context = FusionContext(
        torch.tensor([3]), torch.zeros(3).long(), roi, torch.zeros(3), torch.eye(4).expand(3, 4, 4)
    )
    fused = FCooper(FusionConfig(), 4)(features, context).features[0]
    for y in range(3):
        for x in range(5):
            seen = [features[a, :, y, x] for a in range(3) if a == 0 or roi[a, 0, y, x]]
            assert torch.equal(fused[:, y, x], torch.stack(seen).amax(0))


# ------------------------------------------------------------------------- SECOND, densely


class DenseTwin:
    """Runs the weights of a ``SecondEncoder`` with dense convolutions and a mask of active sites.

    A submanifold convolution is a dense one seen at the active sites; a strided one is active
    wherever its kernel meets an active site.
    """

    def __init__(self, occupied: Tensor, values: Tensor) -> None:
        self.active = occupied  # (N, 1, D, H, W)
        self.values = values  # (N, C, D, H, W)

    def sequence(self, module: nn.Module) -> None:
        for layer in module.children():
            kind = type(layer).__name__
            if kind in ("SubMConv3d", "SparseConv3d"):
                self.convolve(layer)
            elif kind == "_SiteNorm":
                self.norm(layer)
            elif kind == "ReLU":
                self.values = self.values.relu()
            elif kind == "_ResidualBlock":
                self.residual(layer)
            else:
                self.sequence(layer)

    def convolve(self, layer: nn.Module) -> None:
        weight = layer.get_parameter("weight").permute(0, 4, 1, 2, 3)
        bias = layer.bias if isinstance(layer.bias, Tensor) else None
        stride, padding = layer.stride, layer.padding
        assert isinstance(stride, list)
        assert isinstance(padding, list)
        if not layer.subm:
            kernel = torch.ones(1, 1, *weight.shape[2:])
            self.active = F.conv3d(self.active, kernel, stride=stride, padding=padding).clamp(max=1)
        values = F.conv3d(self.values, weight, bias, stride=stride, padding=padding)
        self.values = values * self.active

    def norm(self, layer: nn.Module) -> None:
        at = self.active[:, 0].bool()
        rows = self.values.permute(0, 2, 3, 4, 1)[at]
        normed = torch.zeros_like(self.values.permute(0, 2, 3, 4, 1))
        normed[at] = layer(rows)
        self.values = normed.permute(0, 4, 1, 2, 3)

    def residual(self, block: nn.Module) -> None:
        shortcut = self.values
        self.convolve(block.get_submodule("first"))
        self.norm(block.get_submodule("first_norm"))
        self.values = self.values.relu()
        self.convolve(block.get_submodule("second"))
        self.norm(block.get_submodule("second_norm"))
        self.values = (self.values + shortcut).relu() * self.active


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_second_against_dense_convolutions(residual: bool, training: bool) -> None:
    pytest.importorskip("spconv.pytorch")
    torch.manual_seed(0)
    grid = BevGrid((-0.8, -1.6, -5.0, 0.8, 1.6, 3.0), (0.1, 0.1, 0.2), 8)
    encoder = SecondEncoder(EncoderConfig(residual=residual, widths=(4, 4, 6, 6)), grid, 16)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder.train(training)
    voxels = voxels_on(grid, 300)
    features = torch.randn(len(voxels.points), 4, requires_grad=True)
    sparse = encoder(features, voxels.coordinates, 2)

    at = voxels.coordinates.long().unbind(1)
    canvas = torch.zeros(2, 41, 32, 16, 4).index_put(at, features).permute(0, 4, 1, 2, 3)
    occupied = torch.zeros(2, 41, 32, 16).index_put(at, torch.tensor(1.0)).unsqueeze(1)
    twin = DenseTwin(occupied, canvas)
    for module in (encoder.stem, encoder.stages, encoder.squeeze):
        twin.sequence(module)
    # Channel-major, then height: what the lineage's dense-and-view gives.
    dense = twin.values.flatten(1, 2)
    assert dense.shape == (2, 24, 4, 2)
    torch.testing.assert_close(sparse, dense, atol=1e-4, rtol=1e-3)

    probe = torch.randn_like(dense)
    weights = [features, *(p for p in encoder.parameters() if training or p.ndim > 1)]
    found = torch.autograd.grad((sparse * probe).sum(), weights)
    true = torch.autograd.grad((dense * probe).sum(), weights)
    for ours, theirs in zip(found, true, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)
