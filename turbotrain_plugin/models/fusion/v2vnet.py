"""V2VNet: rounds of messages between the agents' maps (arXiv:2008.07519).

Per round and agent i: m_ij = conv3x3([F_j ; F_i]), a_i = mean_j m_ij, F_i <- GRU([F_i ; a_i]);
after the last round a linear layer per cell reads the ego's map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import (
    AgentFusion,
    AgentLayout,
    check_positive,
    seen_cells,
)
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["ConvGRU", "V2VNet"]


class V2VNet(AgentFusion):
    """Graph network of the agents of a sample; 6.555 M parameters at 256 channels.

    All maps lie in the ego grid, so nothing is warped between agents, and the message is linear:
    mean_j m_ij = mean_j(W_1 F_j) + W_2 F_i + b. Each agent's share is computed once and a sample
    holds one sum, not A x A messages. The ego can run all agents' rounds on the maps it received,
    so each neighbour sends one map.

    Departures: the mean goes over the agents that see the cell (the authors' code counts blind
    ones as zeros), and a neighbour's map is zero outside its view. The state of the GRU is the
    agent's map, as in the paper; OpenCOOD starts every round at zero (``gru_state: zero``), which
    leaves the reset gate and the weights of the state, 2.949 M, without any gradient.

    Args:
        args: ``model.args.fusion``.
        channels: C.

    Raises:
        UserError: When ``rounds`` is below 1.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        self._channels = channels
        self._rounds = check_positive("rounds", args.rounds)
        self._keeps_state = args.gru_state == "map"
        self.message = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.gru = ConvGRU(2 * channels, channels)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the ego's map after all rounds, from (sum A, C, H, W)."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        seen = seen_cells(context, layout)
        maps = features.masked_fill(~seen, 0.0)
        for turn in range(self._rounds):
            heard = self._mean_sent(maps, seen, layout)
            if turn == self._rounds - 1:
                maps = maps.index_select(0, layout.ego)
            else:
                heard = heard.index_select(0, layout.sample)
            maps = self._update(maps, heard)
        return FusionOutput(self.output(maps), {}, map_bytes(features))

    def _mean_sent(self, maps: Tensor, seen: Tensor, layout: AgentLayout) -> Tensor:
        """Return (B, C, H, W): the senders' share of a message, averaged over who sees the cell."""
        sent = F.conv2d(maps, self.message.weight[:, : self._channels], padding=1)
        sent = sent.masked_fill(~seen, 0.0)
        shape = (len(layout.ego), *sent.shape[1:])
        total = sent.new_zeros(shape).index_add(0, layout.sample, sent)
        count = sent.new_zeros(shape[0], 1, *shape[2:])
        return total / count.index_add(0, layout.sample, seen.to(sent.dtype))

    def _update(self, maps: Tensor, heard: Tensor) -> Tensor:
        """Return the receivers' maps (N, C, H, W) after a round."""
        own_weight = self.message.weight[:, self._channels :]
        message = heard + F.conv2d(maps, own_weight, self.message.bias, padding=1)
        state = maps if self._keeps_state else torch.zeros_like(maps)
        updated: Tensor = self.gru(torch.cat([maps, message], dim=1), state)
        return updated


class ConvGRU(nn.Module):
    """h' = (1 - z) h + z n with z, r = sigmoid(conv([x ; h])) and n = tanh(conv([x ; r h])).

    Args:
        in_channels: Channels of x.
        channels: Channels of h.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(in_channels + channels, 2 * channels, 3, padding=1)
        self.candidate = nn.Conv2d(in_channels + channels, channels, 3, padding=1)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """Return the next state (N, C, H, W) from inputs (N, C_in, H, W) and state (N, C, H, W)."""
        gates = torch.sigmoid(self.gates(torch.cat([inputs, state], dim=1)))
        update, reset = gates.chunk(2, dim=1)
        candidate = torch.tanh(self.candidate(torch.cat([inputs, reset * state], dim=1)))
        return state + update * (candidate - state)
