"""DiscoNet: F = sum_j w_j F_j with one learned weight per agent and cell (arXiv:2111.00643).

w_j = softmax_j g([F_j ; F_0]), where g is a network of 1x1 convolutions 2C-128-32-8-1 and the ego
is among the j. Distillation, where a teacher T reads the joined clouds of all agents: per cell
KL(softmax_c T || softmax_c F) over the channels c.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import (
    AgentFusion,
    AgentLayout,
    seen_cells,
    softmax_sum,
)
from turbotrain_plugin.models.layers import BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, cells_of
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput

__all__ = ["DiscoNet", "divergence"]

_WIDTHS: Final = (128, 32, 8)


class DiscoNet(AgentFusion):
    """Weighted mean of the agents that see a cell; 0.070 M parameters at 256 channels.

    The teacher's map comes with the context (``taught``, made in ``engine/teacher.py``); without
    one there is no such loss. As in the authors' code, the divergence is a mean over all values of
    the map, channels included. They distil three maps of the decoder too; ours the fused one alone,
    as HEAL does.

    The ReLU behind the last layer is the authors'. It can leave all scores at 0, where no gradient
    passes and the weights stay equal: 4 of 200 random starts did. ``last_relu: false`` drops it.

    Departure: g runs on the cells an agent sees and on no others. Its batch normalisations would
    else learn the statistics of padding.

    Args:
        args: ``model.args.fusion``.
        channels: C.
    """

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        self._channels = channels
        self._distil_weight = args.distill.weight
        self.compare = nn.Linear(2 * channels, _WIDTHS[0], bias=False)
        self.judge = nn.Sequential(
            _norm_relu(_WIDTHS[0]),
            nn.Linear(_WIDTHS[0], _WIDTHS[1], bias=False),
            _norm_relu(_WIDTHS[1]),
            nn.Linear(_WIDTHS[1], _WIDTHS[2], bias=False),
            _norm_relu(_WIDTHS[2]),
            # The softmax ignores what all agents share, so only the ReLU gives a bias any effect.
            nn.Linear(_WIDTHS[2], 1, bias=args.last_relu),
            nn.ReLU() if args.last_relu else nn.Identity(),
        )

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the weighted sum of each sample's agents of (sum A, C, H, W).

        With a teacher also the loss ``distillation``.
        """
        layout = AgentLayout.of(context.record_len, features.shape[0])
        seen = seen_cells(context, layout)
        scores = self.scores(features, seen, layout)
        fused = softmax_sum(features, scores, seen, layout)
        losses = {}
        if context.taught is not None:
            losses["distillation"] = self._distil_weight * divergence(context.taught, fused)
        return FusionOutput(fused, losses, map_bytes(features))

    def scores(self, features: Tensor, seen: Tensor, layout: AgentLayout) -> Tensor:
        """Return g([F_j ; F_0]), (sum A, 1, H, W), 0 where an agent does not see the cell.

        The first layer is linear, so its two halves are applied apart: once per agent and once per
        ego, in place of once per pair on twice the channels.
        """
        cells = cells_of(features)
        of_agent, of_ego = self.compare.weight.split(self._channels, dim=1)
        ego = F.linear(cells.index_select(0, layout.ego), of_ego)
        hidden = F.linear(cells, of_agent) + ego.index_select(0, layout.sample)
        rows = seen.flatten().nonzero().squeeze(1)
        judged = self.judge(hidden.flatten(0, 2).index_select(0, rows)).squeeze(1)
        scores: Tensor = judged.new_zeros(seen.numel()).index_copy(0, rows, judged)
        return scores.view(seen.shape)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax_c(teacher) || softmax_c(student)), summed over c, over B C H W, a scalar.

    Args:
        teacher: (B, C, H, W), no gradient.
        student: (B, C, H, W).

    Raises:
        ValueError: When the shapes differ.
    """
    if teacher.shape != student.shape:
        raise ValueError(
            f"`teacher` must have the student's shape {tuple(student.shape)}. "
            f"Found {tuple(teacher.shape)}."
        )
    wanted = F.log_softmax(teacher.detach().float(), dim=1)
    found = F.log_softmax(student.float(), dim=1)
    return F.kl_div(found, wanted, reduction="sum", log_target=True) / found.numel()


def _norm_relu(width: int) -> nn.Sequential:
    """Return batch normalisation and ReLU of rows (cells, width)."""
    norm = nn.BatchNorm1d(width, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    return nn.Sequential(norm, nn.ReLU(inplace=True))
