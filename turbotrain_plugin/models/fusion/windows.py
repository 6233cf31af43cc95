"""Multi-scale window attention on one map (V2X-ViT, arXiv:2203.10638; V2XPnP's self-spatial part).

Three window attentions of different sizes run on the same map; split attention weighs them per
channel. Maps of any size work: they are padded to whole windows and padded cells are no keys.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.models.layers import check_heads, split_last

__all__ = ["MultiScaleWindows", "WindowAttention"]

_HIDDEN_SCORE: Final = -1e4
"""exp of it is 0 in every format, and every format holds it."""


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
        window, heads = self._window, self._heads
        down, right = -height % window, -width % window
        if down or right:
            cells = F.pad(cells, (0, 0, 0, right, 0, down))
        rows, columns = (height + down) // window, (width + right) // window
        parts = self.query_key_value(cells).view(
            samples, rows, window, columns, window, 3, heads, channels // heads
        )
        # -> 3 x (windows * heads, cells of a window, width of a head)
        parts = parts.permute(5, 0, 1, 3, 6, 2, 4, 7)
        query, key, value = parts.reshape(3, -1, window * window, channels // heads)
        query = query * query.shape[-1] ** -0.5
        if down or right:
            hidden = _padded_cells((height, width), (rows, columns), window, query)
            hidden = hidden[:, None].expand(samples, -1, heads, -1).reshape(-1, window**2, 1)
            query, key = F.pad(query, (0, 1), value=1.0), torch.cat([key, hidden], dim=-1)
        scores = torch.baddbmm(self._score_bias().to(query.dtype), query, key.transpose(1, 2))
        attended = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
        attended = attended.view(samples, rows, columns, heads, window, window, -1)
        merged = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(*cells.shape)
        projected: Tensor = self.dropout(self.output(merged[:, :height, :width]))
        return projected

    def _score_bias(self) -> Tensor:
        """Return (1, cells, cells), the learned bias of every query and key of a window."""
        return self.bias[self._bias_index].unsqueeze(0)


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
        logits = split_last(self.excite(self.squeeze(pooled)), len(attended))
        weights = torch.softmax(logits, dim=1)[:, :, None, None]
        mixed: Tensor = weights[:, 0] * attended[0]
        for index, part in enumerate(attended[1:], start=1):
            mixed = torch.addcmul(mixed, weights[:, index], part)
        return mixed


def _padded_cells(
    size: tuple[int, int], windows: tuple[int, int], window: int, like: Tensor
) -> Tensor:
    """Return (windows, cells of a window): a large negative number where a cell is padding.

    Joined to the keys as one more feature, which queries meet with 1, it masks padded keys without
    a mask of the scores' size; scores are the largest tensors of the network.
    """
    inside = [
        torch.arange(count * window, device=like.device).view(count, window) < extent
        for extent, count in zip(size, windows, strict=True)
    ]
    visible = inside[0][:, None, :, None] & inside[1][None, :, None, :]
    hidden = like.new_zeros(visible.shape).masked_fill(~visible, _HIDDEN_SCORE)
    return hidden.view(-1, window * window)


def _relative_index(window: int) -> Tensor:
    """Return (cells, cells) int64 rows of the bias table for each query and key."""
    steps = torch.arange(window)
    cell = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).view(-1, 2)
    offset = cell[:, None] - cell[None] + window - 1
    return offset[..., 0] * (2 * window - 1) + offset[..., 1]
