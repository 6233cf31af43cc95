"""Early fusion: the agents' points are one cloud per frame before the network begins.

P_t = union_j M_j,t P_j,t, where M_j,t moves agent j's points of frame t into the ego frame of the
current time (Cooper, arXiv:1905.05265). Everything a neighbour saw arrives; it sends the most.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["POINT_BYTES", "EarlyFusion"]

POINT_BYTES: Final = 16
"""x, y, z and intensity as float32."""


class EarlyFusion(AgentFusion):
    """One agent's network on joined clouds; no parameters, nothing left to fuse.

    The clouds are joined where samples are made (``data/joined.py``), because the limits on voxels
    and points per voxel then hold for the union. Pretraining masks columns of the joined cloud, so
    a column is hidden from all agents alike, as in CooPre. A message is the current points in the
    range; its size is the busiest neighbour's.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:  # noqa: ARG002 - table's form
        super().__init__()

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return (B, C, H, W) as they are.

        Raises:
            ValueError: When a sample holds more than one agent: its clouds were not joined.
        """
        if len(features) != len(context.record_len):
            raise ValueError(
                "`context.record_len` must be 1 throughout: early fusion reads clouds that were "
                f"joined with the data. Found {context.record_len.tolist()}."
            )
        sent = context.sent_points
        points = 0 if sent is None or not len(sent) else int(sent.max())
        return FusionOutput(features, {}, 0, points * POINT_BYTES)
