"""AttFuse: F = (softmax(X X^T / sqrt(C)) X)_0, X the agents' rows of a cell (arXiv:2109.07644)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import (
    AgentFusion,
    AgentLayout,
    seen_cells,
    softmax_sum,
)
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["AttFuse"]


class AttFuse(AgentFusion):
    """Per cell, the ego's row asks and all rows answer; no parameters, one agent passes as it is.

    Only the ego's row of the A x A scores is formed, because no other is read. Departures: cells
    outside an agent's view are no keys, and fusion happens once, on the finished map (our choice;
    the authors' SECOND version fuses after each level of the 2-D network).
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:  # noqa: ARG002 - table's form
        super().__init__()
        self._scale = 1.0 / math.sqrt(channels)

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego's attended cells of (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        samples = [features[part] for part in layout.parts]
        products = [(maps * maps[:1]).sum(dim=1, keepdim=True) for maps in samples]
        scores = torch.cat(products) * self._scale
        fused = softmax_sum(features, scores, seen_cells(context, layout), layout)
        return FusionOutput(fused, {}, map_bytes(features))
