"""Temporal fusion: attention over the frames of one BEV cell (V2XPnP, arXiv:2412.01812)."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import TemporalConfig
from turbotrain_plugin.models.layers import (
    FeedForward,
    cells_of,
    check_heads,
    head_scores,
    map_of,
    masked_softmax,
    weigh_values,
)
from turbotrain_plugin.structures import UserError

__all__ = ["TemporalFusion"]

_FIRST_LOOK: Final = 3.0
"""Head start, in logits, of the frame a head looks at first: 0.91 of the weight among three."""


class TemporalFusion(nn.Module):
    """(N * T, C, H, W) -> (N, C, H, W), one map per agent.

    Per cell, X in R^(T x C) plus a learned embedding per frame runs through ``depth`` pre-norm
    layers; the current frame's row (or the mean over valid frames) is kept. That attention runs
    over the frames of a cell is the paper's; pre-norm, one layer and the sizes are our choice.
    With one layer and ``reduce: current`` only the current frame asks, which makes it linear in T.

    Args:
        args: ``model.args.temporal``.
        channels: C.
        frames: T, current frame last.

    Raises:
        UserError: When ``depth`` is below 1.
    """

    def __init__(self, args: TemporalConfig, channels: int, frames: int) -> None:
        super().__init__()
        if args.depth < 1:
            raise UserError(f"model.args.temporal.depth must be at least 1. Found {args.depth}.")
        self._reduce = args.reduce
        self.time_embedding = nn.Parameter(torch.zeros(frames, channels))
        nn.init.normal_(self.time_embedding, std=0.02)
        self.layers = nn.ModuleList(
            _TemporalLayer(args, channels, frames) for _ in range(args.depth)
        )

    def forward(self, features: Tensor, frame_valid: Tensor) -> Tensor:
        """Fuse the frames of each agent.

        Args:
            features: (N * T, C, H, W), agent-major.
            frame_valid: (N, T) bool; invalid frames change nothing. The current frame counts as
                valid in any case, so that no cell is left without a key.

        Returns:
            (N, C, H, W).

        Raises:
            ValueError: When the shapes do not agree.
        """
        agents, frames = frame_valid.shape
        if features.shape[0] != agents * frames or frames != len(self.time_embedding):
            raise ValueError(
                f"`features` must hold agents x {len(self.time_embedding)} maps. Found "
                f"{features.shape[0]} maps for `frame_valid` of {agents} x {frames}."
            )
        valid = frame_valid.clone()
        valid[:, -1] = True
        height, width = features.shape[-2:]
        cells = cells_of(features).view(agents, frames, height * width, -1)
        cells = cells + self.time_embedding.to(cells.dtype).unsqueeze(1)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            only_current = is_last and self._reduce == "current"
            cells = layer(cells, valid, only_current=only_current)
        return map_of(self._reduced(cells, valid).view(agents, height, width, -1))

    def _reduced(self, cells: Tensor, valid: Tensor) -> Tensor:
        if self._reduce == "current":
            return cells[:, -1]
        share = valid / valid.sum(1, keepdim=True)
        return (cells * share.to(cells.dtype)[:, :, None, None]).sum(1)


class _TemporalLayer(nn.Module):
    """Pre-norm self-attention over frames and feed-forward, per cell.

    Every head starts out looking at one frame (head h at frame T - 1 - h mod T) through a learned
    bias on its scores. Without it all heads start as the mean over frames, in which the way an
    object came cannot be told from where it is, and a trajectory head learns nothing for hundreds
    of steps. Our choice.
    """

    def __init__(self, args: TemporalConfig, channels: int, frames: int) -> None:
        super().__init__()
        check_heads(channels, args.heads)
        self._heads = args.heads
        head = torch.arange(args.heads)
        bias = torch.zeros(frames, 1, args.heads)
        bias[frames - 1 - head % frames, 0, head] = _FIRST_LOOK
        self.time_bias = nn.Parameter(bias)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.drop_attention = nn.Dropout(args.dropout)
        self.drop_output = nn.Dropout(args.dropout)
        self.feed_forward = FeedForward(channels, args.ffn, args.dropout)

    def forward(self, cells: Tensor, valid: Tensor, *, only_current: bool) -> Tensor:
        """Return (N, 1 or T, cells, C) from (N, T, cells, C) and (N, T) bool."""
        normed = self.norm(cells)
        key, value = self.key(normed), self.value(normed)
        asking = [cells.shape[1] - 1] if only_current else range(cells.shape[1])
        rows = [self._attend(normed[:, frame], key, value, valid) for frame in asking]
        attended = rows[0].unsqueeze(1) if only_current else torch.stack(rows, dim=1)
        kept = cells[:, -1:] if only_current else cells
        kept = kept + self.drop_output(self.output(attended))
        fed: Tensor = kept + self.feed_forward(kept)
        return fed

    def _attend(self, normed: Tensor, key: Tensor, value: Tensor, valid: Tensor) -> Tensor:
        query = self.query(normed).unsqueeze(1)
        scores = head_scores(query, key, self._heads)
        scores = scores + self.time_bias.to(scores.dtype)
        weights = self.drop_attention(masked_softmax(scores, valid[:, :, None, None], dim=1))
        return weigh_values(weights, value).sum(1)
