"""What an agent sends: its map, optionally squeezed by channel compression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from turbotrain_plugin.models.layers import ConvNormReLU

__all__ = ["Compressor", "map_bytes"]

_FLOAT_BYTES = 4


class Compressor(nn.Module):
    """(N, C, H, W) -> same: a 3x3 convolution to C / ratio channels at the sender, two back.

    As in OpenCOOD's habit all maps pass, the ego's too, so that all share one distribution.

    Args:
        channels: C.
        ratio: Compression factor; divides C.

    Raises:
        ValueError: When ``ratio`` does not divide ``channels``.
    """

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        if ratio < 1 or channels % ratio:
            raise ValueError(f"`ratio` must divide the channels {channels}. Found {ratio}.")
        self.ratio = ratio
        self.encoder = ConvNormReLU(channels, channels // ratio)
        self.decoder = nn.Sequential(
            ConvNormReLU(channels // ratio, channels), ConvNormReLU(channels, channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return what the receiver decodes."""
        decoded: Tensor = self.decoder(self.encoder(features))
        return decoded


def map_bytes(features: Tensor) -> int:
    """Return the bytes of one float32 map of (N, C, H, W) features."""
    channels, height, width = features.shape[1:]
    return int(torch.Size((channels, height, width)).numel()) * _FLOAT_BYTES
