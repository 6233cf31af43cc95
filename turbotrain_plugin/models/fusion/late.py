"""Late fusion: every agent detects and predicts alone; boxes and trajectories are joined.

D = NMS(union_j D_j), D_j = network(P_j) on agent j's own points in the ego frame. Agents send
objects, the least there is to send; what no agent recognises alone is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout, seen_cells
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["LateFusion"]


class LateFusion(AgentFusion):
    """Keep the agents apart: one map for each agent that sees anything, the ego always.

    No parameters. All agents share one network. It is trained on one agent of the sample at a
    time (``data/joined.py``), pretrained the same way, and evaluated on all of them: the outputs
    of a sample's agents are suppressed together (``evaluation/late.py``), where the bytes of a
    message are counted too.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:  # noqa: ARG002 - table's form
        super().__init__()

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the maps of (sum A, C, H, W) whose agents see, and how many each sample has."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        sees = seen_cells(context, layout).flatten(1).any(1)
        rows = torch.zeros_like(context.record_len).index_add(0, layout.sample, sees.long())
        return FusionOutput(features[sees], {}, 0, rows=rows)
