"""PointPillars-like encoder (arXiv:1812.05784) in plain torch, for machines without spconv."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import EncoderConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.layers import ConvNormReLU, map_of
from turbotrain_plugin.structures import UserError, Voxels

__all__ = ["PillarEncoder"]

_POINT_INPUTS = 10
"""x, y, z, intensity, offset to the voxel's mean (3) and to the voxel's centre (3)."""


class PillarEncoder(nn.Module):
    """Points of a voxel through one linear layer and a maximum, then strided 2-D convolutions.

    Unlike the paper's, points are normalised by layer norm: batch statistics over points would
    differ between padded and unpadded batches and fail on a batch without points. Voxels of one
    column are summed, so grids with several height slices work too.

    Args:
        args: ``model.args.encoder``.
        grid: The BEV grid; its stride fixes the number of ``pillar_blocks``.
        channels: C of the maps that come out.

    Raises:
        UserError: When ``pillar_blocks`` does not fit the stride.
    """

    def __init__(self, args: EncoderConfig, grid: BevGrid, channels: int) -> None:
        super().__init__()
        _check_blocks(args.pillar_blocks, grid.stride)
        self.grid = grid
        self.feature_width = args.pillar_channels
        self.out_channels = channels
        self.points = nn.Sequential(
            nn.Linear(_POINT_INPUTS, self.feature_width, bias=False),
            nn.LayerNorm(self.feature_width),
            nn.ReLU(inplace=True),
        )
        self.stages, width = _make_stages(args, channels)
        self.project = (
            nn.Identity() if width == channels else ConvNormReLU(width, channels, kernel=1)
        )

    def input_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D) pillar features: the maximum of the embedded points of each voxel."""
        slots = torch.arange(voxels.points.shape[1], device=voxels.points.device)
        used = slots < voxels.point_counts.unsqueeze(1)
        embedded: Tensor = self.points(self._point_inputs(voxels, used))
        if len(used) == 0:
            return embedded
        # Only filled slots are embedded. Embedded points are not negative (ReLU), so an initial
        # maximum of 0 changes nothing but makes empty voxels 0. `unsafe` leaves out a check of the
        # lengths that would make a GPU wait.
        counts = voxels.point_counts.long()
        return torch.segment_reduce(
            embedded, "max", lengths=counts, axis=0, unsafe=True, initial=0.0
        )

    def forward(self, features: Tensor, coordinates: Tensor, map_count: int) -> Tensor:
        """Scatter voxel features and convolve.

        Args:
            features: (V, D).
            coordinates: (V, 4) int: map index, z, y, x.
            map_count: Number of maps.

        Returns:
            (map_count, C, H, W).
        """
        nx, ny, _ = self.grid.voxel_counts
        map_index, _, row, column = coordinates.long().unbind(1)
        canvas = features.new_zeros(map_count * ny * nx, features.shape[1])
        canvas = canvas.index_add(0, (map_index * ny + row) * nx + column, features)
        maps = map_of(canvas.view(map_count, ny, nx, -1))
        projected: Tensor = self.project(self.stages(maps))
        return projected

    def _point_inputs(self, voxels: Voxels, used: Tensor) -> Tensor:
        """Return (filled slots, 10) inputs, every one of the order of 1."""
        size = _row(voxels.points, self.grid.voxel_m)
        origin = _row(voxels.points, self.grid.range_m[:3])
        half_extent = (_row(voxels.points, self.grid.range_m[3:]) - origin) / 2
        voxel_centre = origin + (voxels.coordinates[:, [3, 2, 1]] + 0.5) * size
        count = voxels.point_counts.clamp(min=1).unsqueeze(1)
        mean = (voxels.points[..., :3] * used.unsqueeze(-1)).sum(1) / count
        voxel = used.nonzero()[:, 0]
        points = voxels.points[used]
        xyz = points[:, :3]
        return torch.cat(
            [
                (xyz - origin) / half_extent - 1,
                points[:, 3:4],
                (xyz - mean[voxel]) / size,
                (xyz - voxel_centre[voxel]) / size,
            ],
            dim=1,
        )


def _row(like: Tensor, values: tuple[float, ...]) -> Tensor:
    return like.new_tensor(values)


def _make_stages(args: EncoderConfig, channels: int) -> tuple[nn.Sequential, int]:
    """Return the stages and their last width; widths double per stage up to ``channels``."""
    layers: list[nn.Module] = []
    width = args.pillar_channels
    for stage, blocks in enumerate(args.pillar_blocks):
        target = width if stage == 0 else min(2 * width, max(channels, width))
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ConvNormReLU(width, target, stride=stride))
            width = target
    return nn.Sequential(*layers), width


def _check_blocks(blocks: tuple[int, ...], stride: int) -> None:
    stages = stride.bit_length()
    if stride != 1 << (stages - 1):
        raise UserError(
            "The pillar encoder needs postprocess.anchor_args.feature_stride 1, 2, 4 or 8. "
            f"Found {stride}."
        )
    if len(blocks) != stages or min(blocks[1:], default=1) < 1 or blocks[0] < 0:
        raise UserError(
            f"model.args.encoder.pillar_blocks needs {stages} stages for the feature stride "
            f"{stride} (every stage but the first halves the map and has at least one "
            f"convolution). Found {list(blocks)}."
        )
