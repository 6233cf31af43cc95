"""What every agent fusion is: stacked agents' maps in, one map per sample out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["AgentFusion", "AgentLayout", "visible_maximum"]


class AgentFusion(nn.Module):
    """Interface of agent fusion.

    ``forward`` takes features (sum A, C, H, W) in the ego grid, ego first in each sample, and
    returns (B, C, H, W). One agent must work, agents that see nothing must change nothing, and
    the order of neighbours must not matter. ``message_bytes`` counts the uncompressed map.

    Attributes:
        needs_frames: Whether the network shall fill ``FusionContext.frames``.
    """

    needs_frames: ClassVar[bool] = False

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Fuse the agents of each sample."""
        raise NotImplementedError


def visible_maximum(features: Tensor, visible: Tensor, record_len: Tensor) -> Tensor:
    """Return the elementwise maximum over the agents of each sample, (B, C, H, W).

    Args:
        features: (sum A, C, H, W).
        visible: (sum A, 1, H, W) bool, who takes part; at least one agent at every cell.
        record_len: (B,) agents per sample.
    """
    hidden = features.masked_fill(~visible, float("-inf"))
    parts = torch.split(hidden, record_len.tolist())
    return torch.stack([part.max(dim=0).values for part in parts])


@dataclass(frozen=True, slots=True)
class AgentLayout:
    """Where the agents of a batch stand in the stack.

    Attributes:
        sample: (sum A,) int64, sample of each agent.
        slot: (sum A,) int64, position within its sample, 0 for the ego.
        ego: (B,) int64, index of each sample's ego.
        slots: Agents of the largest sample.
    """

    sample: Tensor
    slot: Tensor
    ego: Tensor
    slots: int

    @classmethod
    def of(cls, record_len: Tensor, total: int) -> AgentLayout:
        """Read the layout from the agents per sample (B,).

        Raises:
            ValueError: When a sample has no agent or the sum is not ``total``.
        """
        counts = record_len.tolist()
        if sum(counts) != total or min(counts, default=1) < 1:
            raise ValueError(
                f"`record_len` must be positive and sum to the {total} stacked agents. "
                f"Found {counts}."
            )
        device = record_len.device
        ego = record_len.cumsum(0) - record_len
        sample = torch.repeat_interleave(torch.arange(len(counts), device=device), record_len)
        return cls(
            sample=sample,
            slot=torch.arange(total, device=device) - ego[sample],
            ego=ego,
            slots=max(counts, default=0),
        )
