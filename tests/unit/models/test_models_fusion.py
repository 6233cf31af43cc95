"""What every agent fusion must hold, and what each one is."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion import FUSIONS, AgentFusion, AgentLayout
from turbotrain_plugin.structures import FusionContext, UserError

CHANNELS, HEIGHT, WIDTH = 8, 5, 6
COOPERATIVE = [("v2xpnp", 1), ("v2xpnp", 2), ("fcooper", 1), ("ffnet", 1), ("cobevflow", 1)]
VARIANTS = [*COOPERATIVE, ("no_fusion", 1)]


def fusion_for(method: str, depth: int = 1) -> AgentFusion:
    torch.manual_seed(0)
    args = FusionConfig(
        core_method=method,
        windows=(3, 4),
        window_heads=(4, 2),
        heads=2,
        ffn=16,
        depth=depth,
        dropout=0.0,
        codec=False,  # untrained, one channel wide, it would pass nothing on
    )
    # In evaluation, where batch normalisation does not tie the agents of a batch to one another.
    fusion: AgentFusion = FUSIONS[method](args, CHANNELS).eval()
    return fusion


def context_for(record_len: Sequence[int], types: Sequence[int] | None = None) -> FusionContext:
    total = sum(record_len)
    return FusionContext(
        record_len=torch.tensor(record_len),
        agent_types=torch.tensor([0] * total if types is None else types),
        roi=torch.ones(total, 1, HEIGHT, WIDTH, dtype=torch.bool),
        time_offset_s=torch.zeros(total),
        ego_SE3_agent=torch.eye(4).expand(total, 4, 4),
    )


def maps(agents: int) -> Tensor:
    return torch.randn(agents, CHANNELS, HEIGHT, WIDTH)


def rows(context: FusionContext, index: Sequence[int], record_len: Sequence[int]) -> FusionContext:
    chosen = list(index)
    return FusionContext(
        record_len=torch.tensor(record_len),
        agent_types=context.agent_types[chosen],
        roi=context.roi[chosen],
        time_offset_s=context.time_offset_s[chosen],
        ego_SE3_agent=context.ego_SE3_agent[chosen],
    )


@pytest.mark.parametrize(("method", "depth"), VARIANTS)
@pytest.mark.parametrize("record_len", [[1], [4], [2, 1, 3]])
def test_one_finite_map_per_sample(method: str, depth: int, record_len: list[int]) -> None:
    features = maps(sum(record_len)).requires_grad_()
    fused = fusion_for(method, depth)(features, context_for(record_len))
    assert fused.features.shape == (len(record_len), CHANNELS, HEIGHT, WIDTH)
    assert fused.auxiliary_losses == {}
    fused.features.square().sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(("method", "depth"), VARIANTS)
def test_samples_do_not_mix(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    features, context = maps(6), context_for([2, 1, 3], [0, 1, 0, 0, 0, 1])
    together = fusion(features, context).features
    for sample, index in enumerate(([0, 1], [2], [3, 4, 5])):
        alone = fusion(features[index], rows(context, index, [len(index)])).features
        torch.testing.assert_close(together[sample : sample + 1], alone)


@pytest.mark.parametrize(("method", "depth"), VARIANTS)
def test_the_order_of_neighbours_does_not_matter(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    features, context = maps(4), context_for([4], [0, 1, 0, 1])
    context.roi[1, :, :2] = False
    order = [0, 3, 1, 2]
    torch.testing.assert_close(
        fusion(features[order], rows(context, order, [4])).features,
        fusion(features, context).features,
    )


@pytest.mark.parametrize("method", sorted(FUSIONS))
def test_an_agent_that_sees_nothing_changes_nothing(method: str) -> None:
    fusion = fusion_for(method)
    features, context = maps(3), context_for([3], [0, 0, 1])
    context.roi[1] = False
    features[1] *= 100
    torch.testing.assert_close(
        fusion(features, context).features,
        fusion(features[[0, 2]], rows(context, [0, 2], [2])).features,
    )


def test_an_unseen_agent_changes_nothing_in_deeper_fusion_either() -> None:
    fusion = fusion_for("v2xpnp", depth=2)
    features, context = maps(3), context_for([3])
    context.roi[1] = False
    torch.testing.assert_close(
        fusion(features, context).features,
        fusion(features[[0, 2]], rows(context, [0, 2], [2])).features,
    )


@pytest.mark.parametrize(("method", "depth"), COOPERATIVE)
def test_a_visible_neighbour_does_matter_where_it_sees(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    features, context = maps(2) - 2.0, context_for([2])
    features[1] += 4.0
    context.roi[1, :, :, 3:] = False
    fused = fusion(features, context).features
    alone = fusion(features[:1], rows(context, [0], [1])).features
    changed = (fused - alone).abs().amax(1)[0] > 1e-3
    assert changed[:, :3].all()
    assert not changed[:, 3:].any()


@pytest.mark.parametrize(("method", "depth"), VARIANTS)
def test_the_ego_is_seen_even_where_no_one_sees(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    features, context = maps(2).requires_grad_(), context_for([2])
    blind = replace(context, roi=torch.zeros_like(context.roi))
    fused = fusion(features, blind).features
    alone = fusion(features[:1], rows(context, [0], [1])).features
    torch.testing.assert_close(fused, alone)
    fused.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize(("method", "depth"), VARIANTS)
def test_bfloat16_autocast_stays_close(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    features, context = maps(3), context_for([2, 1])
    context.roi[1, :, :2] = False
    with torch.autocast("cpu", torch.bfloat16):
        rough = fusion(features, context).features
    torch.testing.assert_close(
        rough.float(), fusion(features, context).features, atol=0.1, rtol=0.1
    )


@pytest.mark.parametrize("record_len", [[2], [4], [0, 3], []])
def test_wrong_record_len_is_refused(record_len: list[int]) -> None:
    with pytest.raises(ValueError, match="`record_len` must be positive and sum to the 3 stacked"):
        AgentLayout.of(torch.tensor(record_len, dtype=torch.int64), 3)


def test_layout_of_a_batch() -> None:
    layout = AgentLayout.of(torch.tensor([2, 1, 3]), 6)
    assert layout.sample.tolist() == [0, 0, 1, 2, 2, 2]
    assert layout.slot.tolist() == [0, 1, 0, 0, 1, 2]
    assert layout.ego.tolist() == [0, 2, 3]
    assert layout.slots == 3


# -------------------------------------------------------------------------------- one by one


@pytest.mark.parametrize("method", ["v2xpnp", "fcooper"])
def test_bytes_of_a_message(method: str) -> None:
    fused = fusion_for(method)(maps(2), context_for([2]))
    assert fused.message_bytes == CHANNELS * HEIGHT * WIDTH * 4


def test_no_fusion_sends_nothing_and_keeps_the_ego() -> None:
    features = maps(3)
    fused = fusion_for("no_fusion")(features, context_for([2, 1]))
    assert fused.message_bytes == 0
    assert torch.equal(fused.features, features[[0, 2]])


def test_fcooper_of_one_agent_is_the_identity() -> None:
    features = maps(2)
    assert torch.equal(fusion_for("fcooper")(features, context_for([1, 1])).features, features)


def test_fcooper_takes_negative_maxima_and_never_the_unseen_zero() -> None:
    features = torch.stack([torch.full((CHANNELS, HEIGHT, WIDTH), value) for value in (-2.0, -1.0)])
    context = context_for([2])
    context.roi[1, :, 0] = False
    fused = fusion_for("fcooper")(features, context).features
    assert (fused[0, :, 0] == -2.0).all()
    assert (fused[0, :, 1:] == -1.0).all()


def test_v2xpnp_has_the_published_size() -> None:
    fusion = FUSIONS["v2xpnp"](FusionConfig(), 256)
    by_name = {name: sum(p.numel() for p in m.parameters()) for name, m in fusion.named_children()}
    assert by_name["windows"] + by_name["window_feed_forward"] == 1_315_027
    assert by_name["layers"] == 823_040


@pytest.mark.parametrize("who", [0, 1])
def test_v2xpnp_treats_types_differently(who: int) -> None:
    fusion = fusion_for("v2xpnp")
    features = maps(2)
    types = [0, 0]
    same = fusion(features, context_for([2], types)).features
    types[who] = 1
    other = fusion(features, context_for([2], types)).features
    assert not torch.allclose(same, other, atol=1e-4)


def test_v2xpnp_every_parameter_learns() -> None:
    fusion = fusion_for("v2xpnp", depth=2)
    features = maps(6)
    context = context_for([3, 3], [0, 1, 0, 1, 0, 1])
    fusion(features, context).features.square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_v2xpnp_depth_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"fusion.depth must be at least 1. Found 0"):
        fusion_for("v2xpnp", depth=0)
