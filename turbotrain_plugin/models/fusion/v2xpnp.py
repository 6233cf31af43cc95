"""V2XPnP's spatial fusion (arXiv:2412.01812): windows on each map, then attention over agents.

Its temporal part is shared by all models (``temporal``), its map part is ``map_encoder``. The
paper's code is not public: sizes, the scale of the scores and the order within a layer are ours.
"""

from __future__ import annotations

from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.agent_attention import AgentAttention
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout, check_positive
from turbotrain_plugin.models.fusion.windows import MultiScaleWindows
from turbotrain_plugin.models.layers import FeedForward, cells_of, map_of
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["V2XPnP"]


class V2XPnP(AgentFusion):
    """Self-spatial windows at each sender, then heterogeneous attention of the ego to all agents.

    At 256 channels and the default keys: 1.315 M + 0.823 M parameters.

    Args:
        args: ``model.args.fusion``.
        channels: C.

    Raises:
        UserError: When ``depth`` is below 1.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        self.windows = MultiScaleWindows(channels, args.windows, args.window_heads, args.dropout)
        self.window_feed_forward = FeedForward(channels, args.ffn, args.dropout)
        depth = check_positive("depth", args.depth)
        self.layers = nn.ModuleList(_AgentLayer(args, channels) for _ in range(depth))

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego's attended cells of (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        cells = self.refine(cells_of(features))
        agents, height, width, channels = cells.shape
        cells = cells.view(agents, height * width, channels)
        roi = context.roi.view(agents, height * width)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            cells = layer(cells, context.agent_types, roi, layout, ego_only=is_last)
        fused = map_of(cells.view(-1, height, width, channels))
        return FusionOutput(fused, {}, map_bytes(features))

    def refine(self, cells: Tensor) -> Tensor:
        """Return each agent's (sum A, H, W, C) cells after its own window attention."""
        cells = cells + self.windows(cells)
        refined: Tensor = cells + self.window_feed_forward(cells)
        return refined


class _AgentLayer(AgentAttention):
    """Heterogeneous attention over the agents of a cell, then feed-forward.

    As in the paper's formula only keys have a matrix per pair of types.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__(channels, args.heads, args.dropout, relates_values=False)
        self.feed_forward = FeedForward(channels, args.ffn, args.dropout)

    def forward(
        self, cells: Tensor, types: Tensor, roi: Tensor, layout: AgentLayout, *, ego_only: bool
    ) -> Tensor:
        """Return (receivers, cells, C) from (sum A, cells, C)."""
        kept = super().forward(cells, types, roi, layout, ego_only=ego_only)
        fed: Tensor = kept + self.feed_forward(kept)
        return fed
