"""Multi-scale window attention on one map (V2X-ViT, arXiv:2203.10638; V2XPnP's self-spatial part).

Three window attentions of different sizes run on the same map; split attention weighs them per
channel. Maps of any size work: they are padded to whole windows and padded cells are no keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.models.layers import check_heads

__all__ = ["MultiScaleWindows", "WindowAttention"]


class WindowAttention(nn.Module):
    """(N, H, W, C) -> same: attention within non-overlapping windows.

    A relative position bias is learned and shared by the heads.

    Args:
        channels: C.
        window: Side of a window in cells.
        heads: Number of heads; divides C.
        dropout: Dropout of the output.
    """

    def __init__(self, channels: int, window: int, heads: int, dropout: float) -> None:
        super().__init__()
        self._window = window
        self._heads = heads
        check_heads(channels, heads)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2))
        nn.init.normal_(self.bias, std=0.02)
        self.register_buffer("_bias_index", _relative_index(window), persistent=False)
        self._bias_index: Tensor

    def forward(self, cells: Tensor) -> Tensor:
        """Return attended cells; padding is added here and cropped again."""
        samples, height, width, channels = cells.shape
        window = self._window
        down, right = -height % window, -width % window
        if down or right:
            cells = F.pad(cells, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // window, (width + right) // window
        parts = self.query_key_value(cells).view(
            samples, rows, window, columns, window, 3, self._heads, -1
        )
        # -> (3, samples, rows, columns, heads, window, window, width of a head)
        query, key, value = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(-3, -2).unbind(0)
        bias = self._score_bias(height, width, rows, columns).to(query.dtype)
        attended = _attention(query, key, value, bias)
        merged = attended.unflatten(-2, (window, window)).permute(0, 1, 4, 2, 5, 3, 6)
        merged = merged.reshape(samples, rows * window, columns * window, channels)
        projected: Tensor = self.dropout(self.output(merged[:, :height, :width]))
        return projected

    def _score_bias(self, height: int, width: int, rows: int, columns: int) -> Tensor:
        """Return the bias, -inf at padded keys: (1 or rows, 1 or columns, 1, cells, cells)."""
        window = self._window
        bias = self.bias[self._bias_index]
        if rows * window == height and columns * window == width:
            return bias[None, None, None]
        row_inside = torch.arange(rows * window, device=bias.device).view(rows, window) < height
        column_inside = (
            torch.arange(columns * window, device=bias.device).view(columns, window) < width
        )
        inside = row_inside[:, None, :, None] & column_inside[None, :, None, :]
        keys = inside.flatten(-2)[:, :, None, None, :]
        return bias.masked_fill(~keys, float("-inf"))


class MultiScaleWindows(nn.Module):
    """(N, H, W, C) -> same: pre-norm window attentions joined by split attention; no residual.

    Args:
        channels: C.
        windows: Sides of the windows in cells.
        heads: Heads per window size.
        dropout: Dropout of each attention's output.
    """

    def __init__(
        self, channels: int, windows: tuple[int, ...], heads: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.scales = nn.ModuleList(
            WindowAttention(channels, window, count, dropout)
            for window, count in zip(windows, heads, strict=True)
        )
        self.squeeze = nn.Sequential(
            nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU()
        )
        self.excite = nn.Linear(channels, len(windows) * channels, bias=False)

    def forward(self, cells: Tensor) -> Tensor:
        """Return the weighted sum of the scales; the weights sum to 1 per map and channel."""
        normed = self.norm(cells)
        attended = [scale(normed) for scale in self.scales]
        pooled = sum(part.mean(dim=(1, 2)) for part in attended)
        logits = self.excite(self.squeeze(pooled)).unflatten(-1, (len(attended), -1))
        weights = torch.softmax(logits, dim=1)[:, :, None, None]
        mixed = weights[:, 0] * attended[0]
        for index, part in enumerate(attended[1:], start=1):
            mixed = torch.addcmul(mixed, weights[:, index], part)
        return mixed


def _attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return (..., cells, width) attention with an additive bias on the scores."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return torch.softmax(scores + bias, dim=-1).to(value.dtype) @ value


def _relative_index(window: int) -> Tensor:
    """Return (cells, cells) int64 rows of the bias table for each query and key."""
    steps = torch.arange(window)
    cell = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).view(-1, 2)
    offset = cell[:, None] - cell[None] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]
