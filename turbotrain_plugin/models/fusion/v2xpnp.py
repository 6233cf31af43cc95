"""V2XPnP's spatial fusion (arXiv:2412.01812): windows on each map, then attention over agents.

Its temporal part is shared by all models (``temporal``), its map part is ``map_encoder``. The
paper's code is not public: sizes, the scale of the scores and the order within a layer are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout
from turbotrain_plugin.models.fusion.windows import MultiScaleWindows
from turbotrain_plugin.models.layers import (
    FeedForward,
    cells_of,
    check_heads,
    head_scores,
    map_of,
    masked_softmax,
    split_last,
    weigh_values,
)
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput, UserError

__all__ = ["V2XPnP"]

_TYPES = 2
"""Vehicle and infrastructure."""


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
        if args.depth < 1:
            raise UserError(f"model.args.fusion.depth must be at least 1. Found {args.depth}.")
        self.windows = MultiScaleWindows(channels, args.windows, args.window_heads, args.dropout)
        self.window_feed_forward = FeedForward(channels, args.ffn, args.dropout)
        self.layers = nn.ModuleList(_AgentLayer(args, channels) for _ in range(args.depth))

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego's attended cells of (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        cells = self.refine(cells_of(features))
        agents, height, width, channels = cells.shape
        cells = cells.view(agents, height * width, channels)
        roi = context.roi.view(agents, height * width)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            pairs = _ego_pairs(layout) if is_last else _all_pairs(layout)
            cells = layer(cells, context.agent_types, pairs, roi)
        fused = map_of(cells.view(-1, height, width, channels))
        return FusionOutput(fused, {}, map_bytes(features))

    def refine(self, cells: Tensor) -> Tensor:
        """Return each agent's (sum A, H, W, C) cells after its own window attention."""
        cells = cells + self.windows(cells)
        refined: Tensor = cells + self.window_feed_forward(cells)
        return refined


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Who listens to whom: R receivers, and one entry per (receiver, sender) pair.

    Attributes:
        receiver: (R,) agent index of each receiver.
        of_pair: (pairs,) row in ``receiver``.
        sender: (pairs,) agent index.
        slot: (pairs,) position of the sender within its sample.
        slots: Agents of the largest sample.
    """

    receiver: Tensor
    of_pair: Tensor
    sender: Tensor
    slot: Tensor
    slots: int


def _ego_pairs(layout: AgentLayout) -> _Pairs:
    everyone = torch.arange(len(layout.sample), device=layout.sample.device)
    return _Pairs(layout.ego, layout.sample, everyone, layout.slot, layout.slots)


def _all_pairs(layout: AgentLayout) -> _Pairs:
    everyone = torch.arange(len(layout.sample), device=layout.sample.device)
    same_sample = layout.sample[:, None] == layout.sample[None]
    receiver, sender = same_sample.nonzero(as_tuple=True)
    return _Pairs(everyone, receiver, sender, layout.slot[sender], layout.slots)


class _AgentLayer(nn.Module):
    """Per cell: out_i = sum_j softmax_j(q_i^T W_ij k_j / sqrt(d)) v_j, then feed-forward.

    Projections belong to the agent's type, W_ij to the pair of types (vehicle or roadside unit,
    four pairs, one matrix per head). As in the paper's formula only keys have such a matrix.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        self._heads = args.heads
        width = check_heads(channels, args.heads)
        self.norm = nn.LayerNorm(channels)
        self.query = _TypedLinear(channels)
        self.key = _TypedLinear(channels)
        self.value = _TypedLinear(channels)
        self.output = _TypedLinear(channels)
        self.relation = nn.Parameter(torch.empty(_TYPES * _TYPES, args.heads, width, width))
        for matrix in self.relation.data.flatten(0, 1):
            nn.init.xavier_uniform_(matrix)
        self.dropout = nn.Dropout(args.dropout)
        self.feed_forward = FeedForward(channels, args.ffn, args.dropout)

    def forward(self, cells: Tensor, types: Tensor, pairs: _Pairs, roi: Tensor) -> Tensor:
        """Return (R, cells, C).

        Args:
            cells: (sum A, cells, C).
            types: (sum A,) int64.
            pairs: Who listens to whom.
            roi: (sum A, cells) bool; what an agent cannot see is no key, save for itself.
        """
        normed = self.norm(cells)
        receiver_types = types[pairs.receiver]
        query = self.query(normed.index_select(0, pairs.receiver), receiver_types)
        key = self._keys(normed, types, pairs)
        scores = head_scores(query.index_select(0, pairs.of_pair), key, self._heads)
        visible = roi[pairs.sender] | (pairs.receiver[pairs.of_pair] == pairs.sender)[:, None]
        weights = _softmax_over_senders(scores, visible, pairs)
        value = self.value(normed, types).index_select(0, pairs.sender)
        message = torch.zeros_like(query).index_add(
            0, pairs.of_pair, weigh_values(weights, value).to(query.dtype)
        )
        kept = cells.index_select(0, pairs.receiver)
        kept = kept + self.dropout(self.output(message, receiver_types))
        fed: Tensor = kept + self.feed_forward(kept)
        return fed

    def _keys(self, normed: Tensor, types: Tensor, pairs: _Pairs) -> Tensor:
        """Return (pairs, cells, C) keys with the pair's relation matrix applied.

        The matrix acts on the key's projection, both linear, so their product is formed once and
        the cells pass through a single matrix.
        """
        sender_types = types[pairs.sender]
        edge = _TYPES * types[pairs.receiver][pairs.of_pair] + sender_types
        relation = self.relation[edge]
        channels = normed.shape[-1]
        projection = self.key.weight[sender_types].view(len(edge), self._heads, -1, channels)
        weight = torch.einsum("phoi,phic->phoc", relation, projection).flatten(1, 2)
        shift = split_last(self.key.bias[sender_types], self._heads)
        bias = torch.einsum("phoi,phi->pho", relation, shift).flatten(1, 2)
        return torch.baddbmm(
            bias.unsqueeze(1), normed.index_select(0, pairs.sender), weight.transpose(1, 2)
        )


class _TypedLinear(nn.Module):
    """A linear layer (C -> C) with weights per agent type."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(_TYPES, channels, channels))
        self.bias = nn.Parameter(torch.zeros(_TYPES, channels))
        for matrix in self.weight.data:
            nn.init.xavier_uniform_(matrix)

    def forward(self, cells: Tensor, types: Tensor) -> Tensor:
        """Return (N, cells, C) from (N, cells, C) and types (N,)."""
        weight = self.weight[types].transpose(1, 2)
        return torch.baddbmm(self.bias[types].unsqueeze(1), cells, weight)


def _softmax_over_senders(scores: Tensor, visible: Tensor, pairs: _Pairs) -> Tensor:
    """Return (pairs, cells, heads) weights that sum to 1 over the senders of a receiver."""
    padded_shape = (len(pairs.receiver), pairs.slots)
    padded = scores.new_zeros(*padded_shape, *scores.shape[1:])
    present = visible.new_zeros(*padded_shape, visible.shape[1])
    place = (pairs.of_pair, pairs.slot)
    padded = padded.index_put(place, scores)
    present = present.index_put(place, visible)
    return masked_softmax(padded, present.unsqueeze(-1), dim=1)[place]
