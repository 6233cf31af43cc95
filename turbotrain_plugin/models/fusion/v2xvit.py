"""V2X-ViT: attention over agents, then over windows, ``depth`` times (arXiv:2203.10638).

Per layer: x <- x + HMSA(x) over the agents of a cell (``agent_attention``), x <- x + MSwin(x) over
each agent's map (``windows``), x <- x + FFN(x). The result is the ego's map.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.agent_attention import AgentAttention
from turbotrain_plugin.models.fusion.base import (
    AgentFusion,
    AgentLayout,
    check_positive,
    seen_cells,
)
from turbotrain_plugin.models.fusion.windows import MultiScaleWindows
from turbotrain_plugin.models.layers import FeedForward, cells_of, map_of
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["DelayEncoding", "V2XViT"]

_DELAY_STEP_S: Final = 0.05
_LONGEST_PERIOD: Final = 10000.0


class V2XViT(AgentFusion):
    """The ego's map after ``depth`` layers over all agents; the last layer computes the ego only.

    At 256 channels, ``ffn: 256`` and the default windows: 1.776 M parameters per layer and 0.066 M
    of delay encoding, 1.842 M at depth 1 and 5.394 M at depth 3. The released model has 1.843 M and
    5.395 M before its delay encoding, because it declares a linear layer of 0.067 M that it never
    uses, and 0.09 M in that encoding, because its sinusoids are a table of 100 x 256 parameters.

    Departures: delays are seconds and not rounded to steps. As after the released warp, a
    neighbour's map is zero outside its view.

    Args:
        args: ``model.args.fusion``.
        channels: C.

    Raises:
        UserError: When ``depth`` is below 1.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        depth = check_positive("depth", args.depth)
        self.delay = DelayEncoding(channels) if args.delay_encoding else None
        self.layers = nn.ModuleList(_Layer(args, channels) for _ in range(depth))

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego's cells after all layers, from (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        cells = cells_of(features)
        if self.delay is not None:
            cells = cells + self.delay(context.time_offset_s)[:, None, None]
        cells = cells.masked_fill(~cells_of(seen_cells(context, layout)), 0.0)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            cells = layer(cells, context, layout, ego_only=is_last)
        return FusionOutput(map_of(cells), {}, map_bytes(features))


class _Layer(nn.Module):
    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        self.attention = AgentAttention(channels, args.heads, args.dropout, relates_values=True)
        self.windows = MultiScaleWindows(channels, args.windows, args.window_heads, args.dropout)
        self.feed_forward = FeedForward(channels, args.ffn, args.dropout)

    def forward(
        self, cells: Tensor, context: FusionContext, layout: AgentLayout, *, ego_only: bool
    ) -> Tensor:
        """Return (receivers, H, W, C) from (sum A, H, W, C); see ``AgentAttention``."""
        kept = self.attention(
            cells.flatten(1, 2),
            context.agent_types,
            context.roi.flatten(1),
            layout,
            ego_only=ego_only,
        ).unflatten(1, cells.shape[1:3])
        kept = kept + self.windows(kept)
        fed: Tensor = kept + self.feed_forward(kept)
        return fed


class DelayEncoding(nn.Module):
    """Linear(p(dt)): p holds sin and cos of dt / 50 ms / 10000^(2c / C), divided by sqrt(C).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels
        self.project = nn.Linear(channels, channels)
        steps = torch.arange(0, channels, 2)
        rates = _LONGEST_PERIOD ** (-steps / channels) / _DELAY_STEP_S
        self.register_buffer("_rates", rates, persistent=False)
        self._rates: Tensor

    def forward(self, delay_s: Tensor) -> Tensor:
        """Return (N, C) encodings of delays (N,) in seconds."""
        angles = delay_s[:, None] * self._rates
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, : self._channels]
        encoded: Tensor = self.project(waves / math.sqrt(self._channels))
        return encoded
