"""DiscoNet: its weights, its normalisation, its switch."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tests.helpers.made_fusions import HEIGHT, WIDTH, context_for, fusion_args, fusion_for, maps
from turbotrain_plugin.models.fusion import AgentLayout
from turbotrain_plugin.models.fusion.disconet import DiscoNet
from turbotrain_plugin.structures import FusionContext


def disconet(*, last_relu: bool = True) -> DiscoNet:
    fusion = fusion_for("disconet", args=replace(fusion_args("disconet"), last_relu=last_relu))
    assert isinstance(fusion, DiscoNet)
    return fusion


def weights_of(fusion: DiscoNet, context: FusionContext) -> Tensor:
    """Return (agents, H, W), read off maps whose channel j is 1 for agent j and 0 for others."""
    agents = int(context.record_len[0])
    features = maps(agents)
    features[:, :agents] = torch.eye(agents)[:, :, None, None]
    fused: Tensor = fusion(features, context).features
    return fused[0, :agents]


@torch.no_grad()
def test_weights_sum_to_one_over_the_agents_that_see_a_cell() -> None:
    context = context_for([4])
    context.roi[1, :, :2] = False
    context.roi[2, :, :, 4:] = False
    weights = weights_of(disconet().eval(), context)
    torch.testing.assert_close(weights.sum(0), torch.ones(HEIGHT, WIDTH))
    assert (weights[1, :2] == 0).all()
    assert (weights[2, :, 4:] == 0).all()
    assert (weights[[0, 3]] > 0).all()
    assert (weights[1, 2:] > 0).all()
    assert weights[0].std() > 1e-4


@torch.no_grad()
def test_the_last_relu_can_silence_the_weights_and_can_be_left_out() -> None:
    context = context_for([2])
    for last_relu in (True, False):
        fusion = disconet(last_relu=last_relu).eval()
        silent = fusion.judge[5]
        assert isinstance(silent, nn.Linear)
        silent.weight.fill_(-100.0)
        weights = weights_of(fusion, context)
        assert torch.equal(weights, torch.full_like(weights, 0.5)) == last_relu


def test_without_the_last_relu_every_parameter_learns_too() -> None:
    fusion = disconet(last_relu=False)
    fusion(maps(6), context_for([3, 3])).features.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


def test_statistics_are_of_seen_cells_only() -> None:
    features, context = maps(3), context_for([3])
    context.roi[1] = False
    context.roi[2, :, 1:] = False
    statistics = []
    for hidden in (0.0, 1000.0):
        fusion = disconet().train()
        features[1] = hidden
        features[2, :, 1:] = hidden
        fusion(features, context)
        statistics.append({name: value.clone() for name, value in fusion.named_buffers()})
    for name, value in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], value)


@torch.no_grad()
def test_scores_compare_with_the_own_ego() -> None:
    """Another ego changes the scores of its sample's agents and of no others."""
    fusion = disconet(last_relu=False).eval()
    features, seen = maps(4), torch.ones(4, 1, HEIGHT, WIDTH, dtype=torch.bool)
    layout = AgentLayout.of(torch.tensor([2, 2]), 4)
    before = fusion.scores(features, seen, layout)
    features[2] += 1.0
    changed = (fusion.scores(features, seen, layout) - before).abs().amax((1, 2, 3)) > 1e-5
    assert changed.tolist() == [False, False, True, True]
