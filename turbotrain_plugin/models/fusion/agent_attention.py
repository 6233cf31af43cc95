"""Heterogeneous attention over the agents of a cell (V2X-ViT, arXiv:2203.10638; V2XPnP).

Per cell and head: out_i = sum_j softmax_j(q_i^T W_att^ij k_j / sqrt(d)) W_msg^ij v_j, where W^ij
belongs to the pair of types (vehicle or roadside unit).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.models.fusion.base import AgentLayout
from turbotrain_plugin.models.layers import (
    check_heads,
    head_scores,
    masked_softmax,
    split_last,
    weigh_values,
)

__all__ = ["AgentAttention", "TypedLinear"]

_TYPES: Final = 2
"""Vehicle and infrastructure."""


class AgentAttention(nn.Module):
    """(sum A, cells, C) -> (receivers, cells, C): pre-norm attention with its residual.

    Projections belong to the agent's type. What a sender offers depends on the receiver's type
    only, so at most two maps of keys and two of values exist per sender, never one per pair.

    Args:
        channels: C.
        heads: Number of heads; divides C.
        dropout: Dropout of the output.
        relates_values: Whether W_msg exists (V2X-ViT) or values pass as they are (V2XPnP).
    """

    def __init__(self, channels: int, heads: int, dropout: float, *, relates_values: bool) -> None:
        super().__init__()
        self._heads = heads
        width = check_heads(channels, heads)
        self.norm = nn.LayerNorm(channels)
        self.query = TypedLinear(channels)
        self.key = TypedLinear(channels)
        self.value = TypedLinear(channels)
        self.output = TypedLinear(channels)
        self.relation = _relation(heads, width)
        self.value_relation = _relation(heads, width) if relates_values else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, cells: Tensor, types: Tensor, roi: Tensor, layout: AgentLayout, *, ego_only: bool
    ) -> Tensor:
        """Return the receivers' cells: of the egos (B) or of all agents.

        Args:
            cells: (sum A, cells, C).
            types: (sum A,) int64.
            roi: (sum A, cells) bool; what an agent cannot see is no key, save for itself.
            layout: Where the agents stand.
            ego_only: Whether only the egos listen, as in the last layer.
        """
        normed = self.norm(cells)
        kinds = types.tolist()
        listening = [slice(p.start, p.start + 1) if ego_only else p for p in layout.parts]
        heard = []
        for part, receivers in zip(layout.parts, listening, strict=True):
            offers: dict[int, tuple[Tensor, Tensor]] = {}
            queries = self.query(normed[receivers], types[receivers])
            for row, kind in enumerate(kinds[receivers]):
                if kind not in offers:
                    offers[kind] = self._offer(normed[part], types[part], kind)
                key, value = offers[kind]
                visible = roi[part].clone()
                visible[row] = True
                scores = head_scores(queries[row], key, self._heads)
                weights = masked_softmax(scores, visible.unsqueeze(-1), dim=0)
                heard.append(weigh_values(weights, value).sum(dim=0))
        kept, kept_types = (cells[layout.ego], types[layout.ego]) if ego_only else (cells, types)
        attended: Tensor = kept + self.dropout(self.output(torch.stack(heard), kept_types))
        return attended

    def _offer(self, normed: Tensor, types: Tensor, receiver: int) -> tuple[Tensor, Tensor]:
        """Return (A, cells, C) keys and values of a sample's agents for one type of receiver."""
        edge = _TYPES * receiver + types
        key = self.key(normed, types, then=self.relation[edge])
        if self.value_relation is None:
            return key, self.value(normed, types)
        return key, self.value(normed, types, then=self.value_relation[edge])


class TypedLinear(nn.Module):
    """A linear layer (C -> C) with weights per agent type."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(_TYPES, channels, channels))
        self.bias = nn.Parameter(torch.zeros(_TYPES, channels))
        for matrix in self.weight.data:
            nn.init.xavier_uniform_(matrix)

    def forward(self, cells: Tensor, types: Tensor, then: Tensor | None = None) -> Tensor:
        """Return (N, cells, C) from (N, cells, C) and types (N,).

        ``then`` (N, heads, width, width) is applied to each head of the result. Both maps are
        linear, so their product is formed once and the cells pass through a single matrix.
        """
        weight, bias = self.weight[types], self.bias[types]
        if then is not None:
            rows = weight.view(*then.shape[:3], -1)
            weight = torch.einsum("nhoi,nhic->nhoc", then, rows).flatten(1, 2)
            bias = torch.einsum("nhoi,nhi->nho", then, split_last(bias, then.shape[1])).flatten(1)
        return torch.baddbmm(bias.unsqueeze(1), cells, weight.transpose(1, 2))


def _relation(heads: int, width: int) -> nn.Parameter:
    """Return (pairs of types, heads, width, width) matrices."""
    relation = nn.Parameter(torch.empty(_TYPES * _TYPES, heads, width, width))
    for matrix in relation.data.flatten(0, 1):
        nn.init.xavier_uniform_(matrix)
    return relation
