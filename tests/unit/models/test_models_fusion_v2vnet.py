"""V2VNet: its rounds, and what its state makes learnable."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.made_fusions import (
    CHANNELS,
    context_for,
    fusion_args,
    fusion_for,
    maps,
)
from turbotrain_plugin.models.fusion import AgentFusion
from turbotrain_plugin.structures import UserError


def v2vnet(*, rounds: int = 2, gru_state: str = "map") -> AgentFusion:
    args = replace(fusion_args("v2vnet"), rounds=rounds, gru_state=gru_state)
    return fusion_for("v2vnet", args=args)


def dead_weights(fusion: AgentFusion) -> int:
    """Return how many numbers among the parameters get no gradient at all."""
    fusion(maps(3), context_for([3])).features.square().sum().backward()
    return sum(int((p.grad == 0).sum()) for p in fusion.parameters() if p.grad is not None)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_with_the_map_as_state_every_single_weight_learns(rounds: int) -> None:
    assert dead_weights(v2vnet(rounds=rounds)) == 0


def test_a_state_of_zero_leaves_reset_gate_and_state_weights_without_gradient() -> None:
    reset_gate = CHANNELS * (3 * CHANNELS * 9 + 1)
    of_state = 2 * CHANNELS * CHANNELS * 9
    assert dead_weights(v2vnet(gru_state="zero")) == reset_gate + of_state
    channels = 256
    assert channels * (3 * channels * 9 + 1) + 2 * channels * channels * 9 == 2_949_376


@torch.no_grad()
def test_a_round_carries_three_cells_far() -> None:
    """One by the message, two by the GRU, whose reset gate stands before its candidate."""
    features, context = maps(2, size=(3, 14)), context_for([2], size=(3, 14))
    other = features.clone()
    other[1, :, :, 0] += 1.0
    reach = []
    for rounds in (1, 2):
        fusion = v2vnet(rounds=rounds)
        changed = (fusion(other, context).features - fusion(features, context).features).abs()
        reach.append(int((changed.amax((0, 1, 2)) > 0).nonzero().max()))
    assert reach == [3, 6]


@torch.no_grad()
def test_the_mean_is_over_agents_that_see_the_cell() -> None:
    """Two equal neighbours weigh more than one, and a blind third one weighs nothing."""
    fusion = v2vnet(rounds=1)
    features, context = maps(2)[[0, 1, 1, 1]], context_for([4])
    context.roi[3] = False
    with_blind = fusion(features, context).features
    without = fusion(features[:3], context_for([3])).features
    torch.testing.assert_close(with_blind, without)
    assert not torch.allclose(without, fusion(features[:2], context_for([2])).features, atol=1e-4)


def test_no_round_is_refused() -> None:
    with pytest.raises(UserError, match=r"fusion.rounds must be at least 1. Found 0"):
        v2vnet(rounds=0)
