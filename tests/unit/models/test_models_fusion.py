"""What every agent fusion must hold; a new line in ``FUSIONS`` is tested without a change here.

A fusion that by its design cannot hold one of the properties says so, with its reason, in EXEMPT.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from tests.helpers.made_fusions import (
    CHANNELS,
    HEIGHT,
    WIDTH,
    context_for,
    fusion_args,
    fusion_for,
    maps,
    rows,
)
from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion import FUSIONS, AgentLayout
from turbotrain_plugin.structures import FusionOutput

OF_MAPS = sorted(set(FUSIONS) - {"early", "late"})
"""Early fusion joins points before, late fusion objects behind: test_models_fusion_ends."""

EVERY = list(product(OF_MAPS, (1, 2)))
"""Depth 2 is the same again for fusions without layers."""

EXEMPT: dict[str, dict[str, str]] = {
    "what lies outside a view is unread": {
        "v2xpnp": "senders attend over windows of their whole map before anything is sent",
    },
    "padding is unread in training": {
        "ffnet": "its codec and its convolution normalise over whole maps, padded ones included",
    },
    "every parameter learns from the fused map alone": {
        "ffnet": "the flow network needs past frames; see test_ffnet",
        "cobevflow": "the confidence head needs labels; see test_cobevflow",
    },
    "neighbours matter": {"no_fusion": "it has none"},
}
"""Property -> fusion -> why not."""

CELL_BY_CELL = ("attfuse", "disconet", "fcooper", "v2xpnp")
"""After fusion they never carry anything from one cell to another."""

ONE_MAP = ("attfuse", "disconet", "fcooper", "v2vnet", "v2xpnp", "v2xvit")

PARAMETERS = {
    "attfuse": 0,
    "cobevflow": 257,
    "disconet": 70_233,
    "early": 0,
    "fcooper": 0,
    "ffnet": 4_288_528,
    "late": 0,
    "no_fusion": 0,
    "v2vnet": 6_554_880,
    "v2xpnp": 2_138_067,
    "v2xvit": 1_841_875,
}
"""At 256 channels. Where a count parts from the published one (CoBEVFlow's own confidence,
V2X-ViT's unused layer), the docstring of the class says why."""


def fusions_of(held: str) -> list[tuple[str, int]]:
    """Return the fusions and depths that must hold a property of EXEMPT."""
    return [(method, depth) for method, depth in EVERY if method not in EXEMPT[held]]


def in_both_modes(variants: list[tuple[str, int]]) -> list[tuple[str, int, bool]]:
    """Return the variants in evaluation and, where padding must be unread, in training."""
    trained = fusions_of("padding is unread in training")
    return [
        (*v, training)
        for v in variants
        for training in (False, True)
        if v in trained or not training
    ]


every_fusion = pytest.mark.parametrize(("method", "depth"), EVERY)
every_fusion_in_both_modes = pytest.mark.parametrize(
    ("method", "depth", "training"), in_both_modes(EVERY)
)


def total_loss(fused: FusionOutput) -> Tensor:
    return fused.features.square().sum() + sum(fused.auxiliary_losses.values())


# ---------------------------------------------------------------------------- shapes and sizes


@every_fusion
@pytest.mark.parametrize("record_len", [[1], [4], [2, 1, 3]])
def test_one_finite_map_per_sample(method: str, depth: int, record_len: list[int]) -> None:
    features = maps(sum(record_len)).requires_grad_()
    fused = fusion_for(method, depth)(features, context_for(record_len))
    assert fused.features.shape == (len(record_len), CHANNELS, HEIGHT, WIDTH)
    assert all(loss.shape == () for loss in fused.auxiliary_losses.values())
    total_loss(fused).backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


@every_fusion
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 11)])
def test_any_size_of_map_works(method: str, depth: int, size: tuple[int, int]) -> None:
    fusion = fusion_for(method, depth).eval()
    fused = fusion(maps(3, size=size), context_for([3], size=size))
    assert fused.features.shape == (1, CHANNELS, *size)
    assert torch.isfinite(fused.features).all()


@pytest.mark.parametrize("method", OF_MAPS)
def test_a_hundred_rows_work_with_the_default_windows(method: str) -> None:
    fusion = fusion_for(method, channels=16, args=FusionConfig(core_method=method)).eval()
    size = (100, 16)
    fused = fusion(maps(2, channels=16, size=size), context_for([2], size=size))
    assert fused.features.shape == (1, 16, *size)
    assert torch.isfinite(fused.features).all()


@pytest.mark.parametrize("method", sorted(PARAMETERS))
def test_published_size(method: str) -> None:
    assert set(PARAMETERS) == set(FUSIONS)
    ffn = 256 if method == "v2xvit" else 512
    fusion = FUSIONS[method](FusionConfig(core_method=method, ffn=ffn), 256)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == PARAMETERS[method]


# ------------------------------------------------------------------------------ who matters


@every_fusion
def test_samples_do_not_mix(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth).eval()
    features, context = maps(6), context_for([2, 1, 3], [0, 1, 0, 0, 0, 1])
    together = fusion(features, context).features
    for sample, index in enumerate(([0, 1], [2], [3, 4, 5])):
        alone = fusion(features[index], rows(context, index, [len(index)])).features
        torch.testing.assert_close(together[sample : sample + 1], alone)


@every_fusion_in_both_modes
def test_the_order_of_neighbours_does_not_matter(method: str, depth: int, training: bool) -> None:
    fusion = fusion_for(method, depth).train(training)
    features, context = maps(4), context_for([4], [0, 1, 0, 1])
    context.roi[1, :, :2] = False
    context.time_offset_s[2] = 0.1
    order = [0, 3, 1, 2]
    torch.testing.assert_close(
        fusion(features[order], rows(context, order, [4])).features,
        fusion(features, context).features,
    )


@every_fusion_in_both_modes
def test_an_agent_that_sees_nothing_changes_nothing(
    method: str, depth: int, training: bool
) -> None:
    """In training, too: a padded agent must not enter the statistics of a normalisation."""
    fusion = fusion_for(method, depth).train(training)
    features, context = maps(3), context_for([3], [0, 0, 1])
    context.roi[1] = False
    features[1] *= 100
    torch.testing.assert_close(
        fusion(features, context).features,
        fusion(features[[0, 2]], rows(context, [0, 2], [2])).features,
    )


@pytest.mark.parametrize(
    ("method", "depth", "training"),
    in_both_modes(fusions_of("what lies outside a view is unread")),
)
def test_what_a_neighbour_holds_outside_its_view_changes_nothing(
    method: str, depth: int, training: bool
) -> None:
    fusion = fusion_for(method, depth).train(training)
    features, context = maps(3), context_for([3], [0, 1, 0])
    context.roi[1, :, 2:] = False
    context.roi[2, :, :, :3] = False
    other = features.clone()
    other[1, :, 2:] = 50.0
    other[2, :, :, :3] = -50.0
    torch.testing.assert_close(fusion(other, context).features, fusion(features, context).features)


@every_fusion_in_both_modes
def test_the_ego_is_seen_even_where_no_one_sees(method: str, depth: int, training: bool) -> None:
    fusion = fusion_for(method, depth).train(training)
    features, context = maps(2).requires_grad_(), context_for([2])
    blind = replace(context, roi=torch.zeros_like(context.roi))
    fused = fusion(features, blind).features
    alone = fusion(features[:1], rows(context, [0], [1])).features
    torch.testing.assert_close(fused, alone)
    fused.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def changed_cells(method: str, depth: int) -> Tensor:
    """Return (H, W) bool: where a neighbour that sees the left half changes the ego's map."""
    fusion = fusion_for(method, depth).eval()
    features, context = maps(2), context_for([2])
    context.roi[1, :, :, 3:] = False
    fused = fusion(features, context).features
    alone = fusion(features[:1], rows(context, [0], [1])).features
    changed: Tensor = (fused - alone).abs().amax(1)[0] > 1e-4
    return changed


@pytest.mark.parametrize(("method", "depth"), fusions_of("neighbours matter"))
def test_a_neighbour_matters_where_it_sees(method: str, depth: int) -> None:
    assert changed_cells(method, depth)[:, :3].float().mean() > 0.8


@pytest.mark.parametrize(("method", "depth"), list(product(CELL_BY_CELL, (1, 2))))
def test_a_neighbour_matters_only_where_it_sees(method: str, depth: int) -> None:
    assert not changed_cells(method, depth)[:, 3:].any()


# ------------------------------------------------------------------------ learning and cost


@pytest.mark.parametrize(
    ("method", "depth"), fusions_of("every parameter learns from the fused map alone")
)
def test_every_parameter_learns(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth)
    context = context_for([3, 3], [0, 1, 0, 1, 0, 1])
    total_loss(fusion(maps(6).requires_grad_(), context)).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_fusion
def test_bfloat16_autocast_stays_close(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth).eval()
    features, context = maps(3), context_for([2, 1])
    context.roi[1, :, :2] = False
    with torch.autocast("cpu", torch.bfloat16):
        rough = fusion(features, context).features
    torch.testing.assert_close(
        rough.float(), fusion(features, context).features, atol=0.1, rtol=0.1
    )


def kept_bytes(method: str, depth: int, agents: int) -> int:
    """Return the bytes that the backward pass of one sample keeps."""
    fusion = fusion_for(method, depth, channels=32)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    types = [index % 2 for index in range(agents)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused = fusion(maps(agents, channels=32).requires_grad_(), context_for([agents], types))
    assert fused.features.requires_grad
    return sum(kept.values())


@every_fusion
def test_memory_grows_with_agents_and_not_with_their_pairs(method: str, depth: int) -> None:
    """Scores of pairs are small (a number per head); maps of pairs would show."""
    few, more, most = (kept_bytes(method, depth, agents) for agents in (3, 6, 9))
    assert most - more <= 1.2 * (more - few)


@every_fusion
def test_bytes_of_a_message_do_not_depend_on_who_listens(method: str, depth: int) -> None:
    fusion = fusion_for(method, depth).eval()
    sent = [fusion(maps(n), context_for([n])).message_bytes for n in (2, 4)]
    assert sent[0] == sent[1]


@pytest.mark.parametrize("method", ONE_MAP)
def test_bytes_of_one_map(method: str) -> None:
    fused = fusion_for(method)(maps(2), context_for([2]))
    assert fused.message_bytes == CHANNELS * HEIGHT * WIDTH * 4


# ----------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("record_len", [[2], [4], [0, 3], []])
def test_wrong_record_len_is_refused(record_len: list[int]) -> None:
    with pytest.raises(ValueError, match="`record_len` must be positive and sum to the 3 stacked"):
        AgentLayout.of(torch.tensor(record_len, dtype=torch.int64), 3)


def test_layout_of_a_batch() -> None:
    layout = AgentLayout.of(torch.tensor([2, 1, 3]), 6)
    assert layout.sample.tolist() == [0, 0, 1, 2, 2, 2]
    assert layout.slot.tolist() == [0, 1, 0, 0, 1, 2]
    assert layout.ego.tolist() == [0, 2, 3]
    assert layout.parts == (slice(0, 2), slice(2, 3), slice(3, 6))


def test_the_small_settings_cannot_be_met_by_whole_windows() -> None:
    for window in fusion_args("v2xpnp").windows:
        assert HEIGHT % window or WIDTH % window
