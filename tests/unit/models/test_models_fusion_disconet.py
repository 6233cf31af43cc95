"""DiscoNet: its weights, its normalisation, its switch, its teacher."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_fusions import HEIGHT, WIDTH, context_for, fusion_args, fusion_for, maps
from turbotrain_plugin.config import DistillConfig
from turbotrain_plugin.models.fusion import AgentLayout
from turbotrain_plugin.models.fusion.disconet import DiscoNet, divergence
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


# ------------------------------------------------------------------------------------ distillation


def test_divergence_against_plain_python() -> None:
    teacher, student = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    total = 0.0
    for sample, row, column in product(range(2), range(2), range(2)):
        t = [math.exp(v) for v in teacher[sample, :, row, column].tolist()]
        s = [math.exp(v) for v in student[sample, :, row, column].tolist()]
        p, q = [v / sum(t) for v in t], [v / sum(s) for v in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = total / student.numel()
    assert divergence(teacher, student).item() == pytest.approx(expected, rel=1e-5)


def test_divergence_from_oneself_is_zero_and_grows_with_distance() -> None:
    teacher, step = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    far = [divergence(teacher, teacher + size * step).item() for size in (0.0, 0.1, 0.5, 1.0)]
    assert far[0] == pytest.approx(0.0, abs=1e-7)
    assert far == sorted(far)
    assert far[1] > 1e-5


def test_only_the_student_is_moved() -> None:
    teacher = torch.randn(1, 4, 3, 3, requires_grad=True)
    student = torch.randn(1, 4, 3, 3, requires_grad=True)
    divergence(teacher, student).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_maps_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student's shape \(1, 4, 3, 3\)\. Found \(1, 4, 3, 2\)"):
        divergence(torch.zeros(1, 4, 3, 2), torch.zeros(1, 4, 3, 3))


def test_the_fused_map_is_taught_and_the_weight_weighs() -> None:
    features, context = maps(3), context_for([2, 1])
    taught = replace(context, taught=maps(2))
    losses = {}
    for weight in (1.0, 8.0):
        args = replace(fusion_args("disconet"), distill=DistillConfig(weight=weight))
        fused = fusion_for("disconet", args=args)(features, taught)
        losses[weight] = fused.auxiliary_losses["distillation"].item()
        assert taught.taught is not None
        plain = divergence(taught.taught, fused.features).item()
        assert losses[weight] == pytest.approx(weight * plain, rel=1e-6)
    assert losses[1.0] > 0
    assert not disconet()(features, context).auxiliary_losses


def test_learning_from_a_teacher_brings_the_maps_together() -> None:
    """The student's agents hold halves of the teacher's map; the right weights give it back."""
    torch.manual_seed(1)
    whole, context = 3 * maps(1), context_for([2])
    features = torch.cat([whole, whole])
    features[0, :, :, : WIDTH // 2] = 0.0
    features[1, :, :, WIDTH // 2 :] = 0.0
    fusion = disconet(last_relu=False)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = fusion(features, replace(context, taught=whole)).auxiliary_losses["distillation"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
