"""SECOND's sparse 3-D encoder (Sensors 2018), plain or with residual blocks; needs spconv.

The residual variant (two blocks per scale) is what CooPre trains, the plain one OpenCOOD's. Its
layer shapes are theirs, so that parameter counts and channel order agree.
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import EncoderConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.layers import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, map_of
from turbotrain_plugin.models.spconv_support import load_spconv, set_algorithm
from turbotrain_plugin.structures import UserError, Voxels

__all__ = ["SecondEncoder"]

_STRIDE: Final = 8
_SCALES: Final = 4
_POINT_INPUTS: Final = 4


class SecondEncoder(nn.Module):
    """Voxels -> (maps, C', H, W): sparse convolutions at strides 1, 2, 4, 8, heights stacked.

    2.695 M parameters (residual, widths 16-32-64-128) or 0.712 M (plain, 16-32-64-64). Sites
    without voxels stay empty, so the maps' background is exactly zero. Runs in float32, also
    under autocast: spconv would cast to half precision whatever format is asked for.

    Args:
        args: ``model.args.encoder``; the plain variant is usually given ``widths`` 16-32-64-64.
        grid: The BEV grid; its stride must be 8.
        channels: Not used: ``out_channels`` is the last width times the height slices.

    Raises:
        UserError: Without spconv, or when the grid does not fit.
    """

    feature_width = _POINT_INPUTS

    def __init__(self, args: EncoderConfig, grid: BevGrid, channels: int) -> None:  # noqa: ARG002
        super().__init__()
        _check(args, grid)
        self._spconv = load_spconv()
        nx, ny, nz = grid.voxel_counts
        # One slice more than the grid has: the lineage's shape, which makes 40 bins end in 2.
        self._sparse_shape = [nz + 1, ny, nx]
        self._cells = (grid.height, grid.width)
        self._slices = _output_slices(nz)
        build = _Layers(self._spconv, residual=args.residual)
        first, second, third, last = args.widths
        out_width = 2 * third
        self.stem = build.conv(_POINT_INPUTS, first, key="stage0")
        self.stages = nn.ModuleList(
            [
                build.stage(first, first, 0),
                build.stage(first, second, 1),
                build.stage(second, third, 2),
                build.stage(third, last, 3),
            ]
        )
        self.squeeze = build.height_squeeze(last, out_width)
        self.out_channels = out_width * self._slices

    def input_features(self, voxels: Voxels) -> Tensor:
        """Return (V, 4), the mean of each voxel's points."""
        counts = voxels.point_counts.clamp(min=1).to(voxels.points.dtype)
        return voxels.points.sum(1) / counts.unsqueeze(1)

    def forward(self, features: Tensor, coordinates: Tensor, map_count: int) -> Tensor:
        """Run the sparse network.

        Args:
            features: (V, 4).
            coordinates: (V, 4) int: map index, z, y, x; unique rows.
            map_count: Number of maps.

        Returns:
            (map_count, out_channels, H, W), channel-major then height.
        """
        if len(features) == 0:
            return features.new_zeros(map_count, self.out_channels, *self._cells)
        self._choose_algorithm(features.device)
        with torch.autocast(features.device.type, enabled=False):
            sparse = self._spconv.SparseConvTensor(
                features.float(),
                coordinates.int().contiguous(),  # it misreads other layouts without a word
                self._sparse_shape,
                map_count,
            )
            sparse = self.stem(sparse)
            for stage in self.stages:
                sparse = stage(sparse)
            return self._stack_heights(self.squeeze(sparse), map_count)

    def _stack_heights(self, sparse: Any, map_count: int) -> Tensor:  # noqa: ANN401
        """Return dense maps; written straight to channels-last, unlike spconv's own ``dense``."""
        features = cast(Tensor, sparse.features)
        index, level, row, column = sparse.indices.long().unbind(1)
        canvas = features.new_zeros(map_count, *self._cells, features.shape[1], self._slices)
        canvas[index, row, column, :, level] = features
        return map_of(canvas.flatten(3))

    def _choose_algorithm(self, device: torch.device) -> None:
        for module in self.modules():
            if hasattr(module, "algo"):
                set_algorithm(self._spconv, module, device)


class _SiteNorm(nn.BatchNorm1d):
    """Batch normalisation over active sites that survives fewer than two of them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, features: Tensor) -> Tensor:
        if self.training and len(features) < 2:
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class _ResidualBlock(nn.Module):
    """Two submanifold convolutions and a shortcut (biased, as in the lineage)."""

    def __init__(self, spconv: Any, width: int, key: str) -> None:  # noqa: ANN401
        super().__init__()
        self.first = spconv.SubMConv3d(width, width, 3, padding=1, bias=True, indice_key=key)
        self.first_norm = _SiteNorm(width)
        self.second = spconv.SubMConv3d(width, width, 3, padding=1, bias=True, indice_key=key)
        self.second_norm = _SiteNorm(width)

    def forward(self, sparse: Any) -> Any:  # noqa: ANN401 - spconv's tensor
        hidden = self.first(sparse)
        hidden = hidden.replace_feature(torch.relu(self.first_norm(hidden.features)))
        hidden = self.second(hidden)
        added = self.second_norm(hidden.features) + sparse.features
        return hidden.replace_feature(torch.relu(added))


class _Layers:
    """Makes the layers of one variant."""

    def __init__(self, spconv: Any, *, residual: bool) -> None:  # noqa: ANN401
        self._spconv = spconv
        self._residual = residual

    def conv(self, in_width: int, width: int, *, key: str) -> nn.Module:
        """Return a submanifold convolution with normalisation and ReLU."""
        return self._with_norm(
            self._spconv.SubMConv3d(in_width, width, 3, padding=1, bias=False, indice_key=key),
            width,
        )

    def stage(self, in_width: int, width: int, scale: int) -> nn.Module:
        """Return the layers of one scale; every scale but the first begins by halving."""
        key = f"stage{scale}"
        layers: list[nn.Module] = []
        if scale > 0:
            # The last halving leaves the height unpadded: 11 -> 5 slices.
            padding = (0, 1, 1) if scale == _SCALES - 1 else 1
            halve = self._spconv.SparseConv3d(
                in_width, width, 3, stride=2, padding=padding, bias=False, indice_key=f"down{scale}"
            )
            layers.append(self._with_norm(halve, width))
        if self._residual:
            layers += [_ResidualBlock(self._spconv, width, key) for _ in range(2)]
        else:
            layers += [self.conv(width, width, key=key) for _ in range(2 if scale > 0 else 1)]
        return nn.Sequential(*layers)

    def height_squeeze(self, in_width: int, width: int) -> nn.Module:
        """Return the last convolution, which halves the height only."""
        squeeze = self._spconv.SparseConv3d(
            in_width, width, (3, 1, 1), stride=(2, 1, 1), bias=False, indice_key="squeeze"
        )
        return self._with_norm(squeeze, width)

    def _with_norm(self, conv: nn.Module, width: int) -> nn.Module:
        layers = (conv, _SiteNorm(width), nn.ReLU(inplace=True))
        return cast(nn.Module, self._spconv.SparseSequential(*layers))


def _output_slices(bins: int) -> int:
    """Return the height slices that remain of ``bins`` + 1: two paddings of 1, then two of 0."""
    slices = bins + 1
    for padding in (1, 1, 0, 0):
        slices = (slices + 2 * padding - 3) // 2 + 1
    return slices


def _check(args: EncoderConfig, grid: BevGrid) -> None:
    if len(args.widths) != _SCALES or min(args.widths) < 1:
        raise UserError(
            "model.args.encoder.widths needs four channel numbers, one per scale. "
            f"Found {list(args.widths)}."
        )
    if grid.stride != _STRIDE:
        raise UserError(
            "The SECOND encoder needs postprocess.anchor_args.feature_stride 8. "
            f"Found {grid.stride}."
        )
    bins = grid.voxel_counts[2]
    if _output_slices(bins) < 1:
        raise UserError(
            "The SECOND encoder needs at least 24 height bins (40 to 55 give the usual two "
            f"slices). Found {bins}: make voxel_size z smaller or the z range taller."
        )
