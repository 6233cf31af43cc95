"""Vector map: lane segments to tokens, tokens into BEV features (V2XPnP, arXiv:2412.01812)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.config import MapConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.layers import (
    FeedForward,
    cells_of,
    check_heads,
    head_scores,
    map_of,
    masked_softmax,
    weigh_values,
)
from turbotrain_plugin.structures import MapTokens

__all__ = ["MapFusion", "SegmentEncoder"]

_POINT_INPUTS = 7
_POSITION_SCALE_M = 10.0
"""Metres that count as 1 in the network's inputs."""


class SegmentEncoder(nn.Module):
    """(S, 10, 7) segments -> (S, C) tokens: an MLP per point and a maximum over the valid points.

    A segment is encoded once, around its own centre, and not once per cell it is near to: at 256
    channels that is H W 5 / S times less work. Where it lies as seen from a cell is added by
    ``MapFusion``. 0.042 M parameters at 256 channels.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = max(channels // 4, 1), max(channels // 2, 1)
        self.points = nn.Sequential(
            nn.Linear(_POINT_INPUTS, first),
            nn.LayerNorm(first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.LayerNorm(second),
            nn.ReLU(),
        )
        self.project = nn.Linear(second, channels)

    def forward(self, points: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (S, C) and centres (S, 2) in metres.

        Args:
            points: (S, 10, 7): x, y, dx, dy, type, x_pre, y_pre.
            valid: (S, 10) bool.
        """
        mask = valid.unsqueeze(-1)
        count = mask.sum(1).clamp(min=1)
        centre = (points[..., :2] * mask).sum(1) / count
        relative = torch.cat(
            [
                (points[..., :2] - centre[:, None]) / _POSITION_SCALE_M,
                points[..., 2:5],
                (points[..., 5:7] - centre[:, None]) / _POSITION_SCALE_M,
            ],
            dim=-1,
        )
        # ReLU comes last, so zeros of padded points never win the maximum.
        embedded = self.points(relative) * mask
        return self.project(embedded.max(dim=1).values), centre


class MapFusion(nn.Module):
    """(B, C, H, W) BEV features and map tokens -> (B, C, H, W) features that know the lanes.

    Per map cell, one pre-norm attention layer over six tokens, the BEV cell and its five nearest
    segments; the BEV token comes out. It runs on a grid ``stride`` times coarser; the change it
    makes is brought up bilinearly and added. Cells without a segment stay as they are, so a
    sample without map gives what the network gives without map. The attention of Q = K =
    [feature, position] is the paper's; here the position enters the values too, since segments are
    encoded around their own centres. Stride and layout are our choice.

    Args:
        args: ``model.args.map``.
        channels: C.
        grid: The BEV grid.
    """

    def __init__(self, args: MapConfig, channels: int, grid: BevGrid) -> None:
        super().__init__()
        check_heads(channels, args.heads)
        self._heads = args.heads
        self._stride = args.stride
        self._grid = grid
        self.segments = SegmentEncoder(channels)
        self.position = nn.Linear(2, channels)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(args.dropout)
        self.feed_forward = FeedForward(channels, args.ffn, args.dropout)

    def forward(self, features: Tensor, tokens: MapTokens) -> Tensor:
        """Return features with the map's contribution added.

        Raises:
            ValueError: When ``tokens.nearest`` does not fit the map and the stride.
        """
        stride = self._stride
        pooled = F.avg_pool2d(features, stride, ceil_mode=True) if stride > 1 else features
        if tokens.nearest.shape[:3] != (pooled.shape[0], *pooled.shape[2:]):
            raise ValueError(
                f"`tokens.nearest` must be {(pooled.shape[0], *pooled.shape[2:])} for the map "
                f"stride {stride}. Found {tuple(tokens.nearest.shape[:3])}."
            )
        if len(tokens.points) == 0:
            return features
        cells = cells_of(pooled)
        present = tokens.nearest >= 0
        change = self._attend(cells, self._lane_tokens(tokens), present) - cells
        change = map_of(change * present.any(-1, keepdim=True))
        if stride > 1:
            change = F.interpolate(change, scale_factor=stride, mode="bilinear")
        height, width = features.shape[-2:]
        return features + change[..., :height, :width]

    def _lane_tokens(self, tokens: MapTokens) -> Tensor:
        """Return (B, Hm, Wm, 5, C): each near segment, placed as seen from the cell."""
        encoded, centre = self.segments(tokens.points, tokens.valid)
        row = tokens.nearest.clamp(min=0)
        cells = self._cell_centres(tokens.nearest)
        offset = (centre[row] - cells.unsqueeze(-2)) / _POSITION_SCALE_M
        placed: Tensor = encoded[row] + self.position(offset)
        return placed

    def _cell_centres(self, nearest: Tensor) -> Tensor:
        cell_x, cell_y = (size * self._stride for size in self._grid.cell_m)
        rows, columns = nearest.shape[1:3]
        y = self._grid.range_m[1] + (torch.arange(rows, device=nearest.device) + 0.5) * cell_y
        x = self._grid.range_m[0] + (torch.arange(columns, device=nearest.device) + 0.5) * cell_x
        grid_x, grid_y = torch.meshgrid(x, y, indexing="xy")
        return torch.stack([grid_x, grid_y], dim=-1)

    def _attend(self, cells: Tensor, lanes: Tensor, present: Tensor) -> Tensor:
        tokens = self.norm(torch.cat([cells.unsqueeze(-2), lanes.to(cells.dtype)], dim=-2))
        query = self.query(tokens[..., :1, :])
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        visible = F.pad(present, (1, 0), value=True).unsqueeze(-1)
        weights = masked_softmax(head_scores(query, key, self._heads), visible, dim=-2)
        attended = weigh_values(self.dropout(weights), value).sum(-2)
        cells = cells + self.dropout(self.output(attended))
        fed: Tensor = cells + self.feed_forward(cells)
        return fed
