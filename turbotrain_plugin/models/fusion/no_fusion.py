"""No fusion: the ego alone. The lower bound of every comparison."""

from __future__ import annotations

from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["NoFusion"]


class NoFusion(AgentFusion):
    """Keep the ego's map and send nothing."""

    def __init__(self, args: FusionConfig, channels: int) -> None:  # noqa: ARG002 - table's form
        super().__init__()

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego rows of (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        return FusionOutput(features[layout.ego], {}, 0)
