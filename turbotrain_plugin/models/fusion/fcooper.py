"""F-Cooper: the elementwise maximum of the agents' maps (arXiv:1909.06459)."""

from __future__ import annotations

from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import (
    AgentFusion,
    AgentLayout,
    seen_cells,
    visible_maximum,
)
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["FCooper"]


class FCooper(AgentFusion):
    """F = max_j F_j over the agents that see the cell; no parameters.

    Departure from the paper: cells outside an agent's view are left out of the maximum. Its maps
    are ReLU outputs, where zeros cannot win; maps after temporal attention are signed.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:  # noqa: ARG002 - table's form
        super().__init__()

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the maximum over the agents of each sample of (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        fused = visible_maximum(features, seen_cells(context, layout), layout)
        return FusionOutput(fused, {}, map_bytes(features))
