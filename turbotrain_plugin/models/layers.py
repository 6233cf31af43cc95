"""Building blocks shared by the networks: convolutions on maps, feed-forward parts on cells.

Maps are (N, C, H, W) in channels-last memory, so that ``cells_of`` and ``map_of`` change between
maps and (N, H, W, C) cells without copying, and convolutions take their faster path on CPU.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

BATCH_NORM_EPS: Final = 1e-3
BATCH_NORM_MOMENTUM: Final = 0.05
"""Our choice: statistics settle within a hundred steps, which short runs need."""


def cells_of(maps: Tensor) -> Tensor:
    """Return (N, H, W, C) contiguous cells of (N, C, H, W) maps; a view when channels-last."""
    return maps.permute(0, 2, 3, 1).contiguous()


def map_of(cells: Tensor) -> Tensor:
    """Return (N, C, H, W) channels-last maps of (N, H, W, C) cells, without a copy."""
    return cells.permute(0, 3, 1, 2)


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU; "same" padding for odd kernels."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
            ),
            batch_norm(out_channels),
            nn.ReLU(inplace=True),
        )


class FeedForward(nn.Sequential):
    """(..., C) -> (..., C): layer norm, linear, GELU, dropout, linear, dropout; no residual."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, channels),
            nn.Dropout(dropout),
        )


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch normalisation of maps with this package's constants."""
    return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


def check_heads(channels: int, heads: int) -> int:
    """Return the width of a head.

    Raises:
        ValueError: When ``heads`` does not divide ``channels``.
    """
    if heads < 1 or channels % heads:
        raise ValueError(f"`heads` must divide the channels {channels}. Found {heads}.")
    return channels // heads


def split_last(values: Tensor, *parts: int) -> Tensor:
    """Return a view whose last axis is split into ``parts`` and what remains."""
    return values.view(*values.shape[:-1], *parts, -1)


def head_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return scaled products per head.

    Args:
        query: (..., C), broadcastable to ``key``.
        key: (..., C).
        heads: Number of heads that C is split into.

    Returns:
        (..., heads) products divided by the root of the head's width.
    """
    # With a handful of keys per cell an elementwise product beats a batched matrix product, whose
    # matrices would be 1 x width.
    product = split_last(query * key, heads)
    return product.sum(-1) / math.sqrt(product.shape[-1])


def weigh_values(weights: Tensor, values: Tensor) -> Tensor:
    """Return (..., C) values (..., C) times their heads' weights (..., heads)."""
    split = split_last(values, weights.shape[-1])
    return torch.flatten(split * weights.to(values.dtype).unsqueeze(-1), -2)


def masked_softmax(scores: Tensor, visible: Tensor, dim: int) -> Tensor:
    """Return the float32 softmax over ``dim`` among the visible entries.

    Args:
        scores: Any shape.
        visible: Bool, broadcastable to ``scores``; at least one entry along ``dim`` must be True.
        dim: Axis that sums to 1.
    """
    # float32: half-precision softmax loses small weights, and -inf is safe in any format.
    return torch.softmax(scores.float().masked_fill(~visible, float("-inf")), dim=dim)
