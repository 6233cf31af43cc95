"""What every agent fusion is: stacked agents' maps in, one map per sample out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from turbotrain_plugin.models.layers import masked_softmax
from turbotrain_plugin.structures import FusionContext, FusionOutput, UserError

__all__ = [
    "AgentFusion",
    "AgentLayout",
    "check_positive",
    "seen_cells",
    "softmax_sum",
    "visible_maximum",
]


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


@dataclass(frozen=True, slots=True)
class AgentLayout:
    """Where the agents of a batch stand in the stack.

    Attributes:
        sample: (sum A,) int64, sample of each agent.
        slot: (sum A,) int64, position within its sample, 0 for the ego.
        ego: (B,) int64, index of each sample's ego.
        parts: Where each sample's agents stand in the stack.
    """

    sample: Tensor
    slot: Tensor
    ego: Tensor
    parts: tuple[slice, ...]

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
            parts=tuple(
                slice(first, first + count)
                for first, count in zip(ego.tolist(), counts, strict=True)
            ),
        )


def seen_cells(context: FusionContext, layout: AgentLayout) -> Tensor:
    """Return (sum A, 1, H, W) bool: the cells an agent could see; the ego counts everywhere."""
    return context.roi | (layout.slot == 0).view(-1, 1, 1, 1)


def softmax_sum(features: Tensor, scores: Tensor, seen: Tensor, layout: AgentLayout) -> Tensor:
    """Return (B, C, H, W): per cell, F = sum_j softmax_j(score_j) F_j over the agents that see it.

    Args:
        features: (sum A, C, H, W).
        scores: (sum A, 1, H, W).
        seen: (sum A, 1, H, W) bool, True for every cell of the ego.
        layout: Which agents belong together.
    """
    fused = []
    for part in layout.parts:
        weights = masked_softmax(scores[part], seen[part], dim=0)
        fused.append((features[part] * weights.to(features.dtype)).sum(dim=0))
    return torch.stack(fused)


def visible_maximum(features: Tensor, seen: Tensor, layout: AgentLayout) -> Tensor:
    """Return (B, C, H, W): per cell, the elementwise maximum over the agents that see it.

    Args:
        features: (sum A, C, H, W).
        seen: (sum A, 1, H, W) bool; every cell is seen by an agent of its sample.
        layout: Which agents belong together.
    """
    hidden = features.masked_fill(~seen, float("-inf"))
    return torch.stack([hidden[part].max(dim=0).values for part in layout.parts])


def check_positive(name: str, value: int) -> int:
    """Return ``value`` of the key ``model.args.fusion.<name>``.

    Raises:
        UserError: When it is below 1.
    """
    if value < 1:
        raise UserError(f"model.args.fusion.{name} must be at least 1. Found {value}.")
    return value
