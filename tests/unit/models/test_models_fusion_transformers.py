"""V2XPnP and V2X-ViT: types of agents, sizes of parts, delays."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from tests.helpers.made_fusions import CHANNELS, context_for, fusion_args, fusion_for, maps
from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion import FUSIONS, AgentLayout
from turbotrain_plugin.models.fusion.agent_attention import AgentAttention, TypedLinear
from turbotrain_plugin.models.fusion.v2xvit import DelayEncoding
from turbotrain_plugin.structures import UserError

TYPED = ["v2xpnp", "v2xvit"]


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def attention_for(*, relates_values: bool = True) -> AgentAttention:
    torch.manual_seed(0)
    attention = AgentAttention(CHANNELS, 2, 0.0, relates_values=relates_values)
    for parameter in attention.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return attention


def test_v2xpnp_has_the_published_size() -> None:
    fusion = FUSIONS["v2xpnp"](FusionConfig(), 256)
    by_name = {name: size_of(module) for name, module in fusion.named_children()}
    assert by_name["windows"] + by_name["window_feed_forward"] == 1_315_027
    assert by_name["layers"] == 823_040


@pytest.mark.parametrize("depth", [1, 3])
def test_v2xvit_lacks_only_the_unused_layer_of_the_released_model(depth: int) -> None:
    """1.843 M and 5.395 M there, before delays; its unused layer maps 259 to 256 channels."""
    args = FusionConfig(core_method="v2xvit", ffn=256, depth=depth, delay_encoding=False)
    unused = size_of(nn.Linear(256 + 3, 256))
    published = {1: 1.843e6, 3: 5.395e6}[depth]
    assert size_of(FUSIONS["v2xvit"](args, 256)) + unused == pytest.approx(published, abs=500)


@pytest.mark.parametrize("method", TYPED)
@pytest.mark.parametrize("who", [0, 1])
def test_types_are_treated_differently(method: str, who: int) -> None:
    fusion = fusion_for(method)
    features = maps(2)
    types = [0, 0]
    same = fusion(features, context_for([2], types)).features
    types[who] = 1
    other = fusion(features, context_for([2], types)).features
    assert not torch.allclose(same, other, atol=1e-4)


@pytest.mark.parametrize("method", TYPED)
def test_depth_zero_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"fusion.depth must be at least 1. Found 0"):
        fusion_for(method, depth=0)


# ---------------------------------------------------------------- heterogeneous, homogeneous


def homogeneous(attention: AgentAttention, cells: Tensor, kind: int) -> Tensor:
    """Return ordinary multi-head attention over the agents (A, cells, C) with one type's weights.

    The relation matrices are folded into block-diagonal weights of key and value.
    """

    def project(layer: TypedLinear, rows: Tensor, relation: Tensor | None = None) -> Tensor:
        weight, bias = layer.weight[kind], layer.bias[kind]
        if relation is not None:
            block = torch.block_diag(*relation[3 * kind])
            weight, bias = block @ weight, block @ bias
        return F.linear(rows, weight, bias)

    normed = attention.norm(cells).transpose(0, 1)
    query = project(attention.query, normed)
    key = project(attention.key, normed, attention.relation)
    value = project(attention.value, normed, attention.value_relation)
    split = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (query, key, value)]
    attended = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    return cells + project(attention.output, attended).transpose(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("relates_values", [False, True])
def test_equal_types_are_homogeneous_attention(kind: int, relates_values: bool) -> None:
    attention, cells = attention_for(relates_values=relates_values), torch.randn(3, 7, CHANNELS)
    layout = AgentLayout.of(torch.tensor([3]), 3)
    types, roi = torch.full((3,), kind), torch.ones(3, 7, dtype=torch.bool)
    expected = homogeneous(attention, cells, kind)
    for ego_only in (False, True):
        found = attention(cells, types, roi, layout, ego_only=ego_only)
        torch.testing.assert_close(found, expected[: len(found)], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_v2xvit_with_equal_weights_of_types_does_not_know_types(depth: int) -> None:
    fusion, features = fusion_for("v2xvit", depth), maps(3)
    for module in fusion.modules():
        if isinstance(module, TypedLinear):
            module.weight[1], module.bias[1] = module.weight[0], module.bias[0]
        if isinstance(module, AgentAttention):
            module.relation[1:] = module.relation[0]
            assert module.value_relation is not None
            module.value_relation[1:] = module.value_relation[0]
    torch.testing.assert_close(
        fusion(features, context_for([3], [0, 1, 1])).features,
        fusion(features, context_for([3])).features,
    )


@torch.no_grad()
def test_a_batch_of_mixed_types_is_its_samples_one_by_one() -> None:
    attention, cells = attention_for(), torch.randn(5, 4, CHANNELS)
    types, roi = torch.tensor([1, 0, 0, 1, 1]), torch.rand(5, 4) > 0.3
    both = AgentLayout.of(torch.tensor([2, 3]), 5)
    together = attention(cells, types, roi, both, ego_only=False)
    for part in both.parts:
        alone = AgentLayout.of(torch.tensor([part.stop - part.start]), part.stop - part.start)
        torch.testing.assert_close(
            attention(cells[part], types[part], roi[part], alone, ego_only=False), together[part]
        )


# ------------------------------------------------------------------------------ V2X-ViT alone


def test_the_last_layer_computes_the_egos_only() -> None:
    fusion = fusion_for("v2xvit", depth=2)
    seen: list[int] = []
    for layer in fusion.get_submodule("layers").children():
        layer.get_submodule("windows").register_forward_hook(
            lambda _module, inputs, _output: seen.append(len(inputs[0]))
        )
    fusion(maps(5), context_for([3, 2]))
    assert seen == [5, 2]


@torch.no_grad()
def test_delays_are_told_by_the_encoding_and_by_nothing_else() -> None:
    features, context = maps(2), context_for([2])
    late = replace(context, time_offset_s=torch.tensor([0.0, 0.3]))
    for told in (True, False):
        args = replace(fusion_args("v2xvit"), delay_encoding=told)
        fusion = fusion_for("v2xvit", args=args)
        on_time, delayed = fusion(features, context).features, fusion(features, late).features
        assert torch.equal(on_time, delayed) == (not told)


@torch.no_grad()
def test_delay_encoding_is_a_linear_layer_of_sinusoids_of_50_ms_steps() -> None:
    torch.manual_seed(0)
    encoding = DelayEncoding(6)
    steps = torch.tensor([0.0, 2.0, 5.0])
    rates = torch.tensor([1.0, 10000 ** (-2 / 6), 10000 ** (-4 / 6)])
    waves = torch.cat([torch.sin(steps[:, None] * rates), torch.cos(steps[:, None] * rates)], 1)
    expected = encoding.project(waves / 6**0.5)
    torch.testing.assert_close(encoding(steps * 0.05), expected)


@pytest.mark.parametrize("channels", [7, 8])
def test_delay_encoding_tells_delays_apart(channels: int) -> None:
    encoded = DelayEncoding(channels)(torch.tensor([0.0, 0.1, 0.2, 0.4]))
    assert encoded.shape == (4, channels)
    assert torch.cdist(encoded, encoded).fill_diagonal_(1.0).min() > 1e-2
