"""Temporal fusion: which frames matter, and which must not."""

from typing import Any

import pytest
import torch

from turbotrain_plugin.config import TemporalConfig
from turbotrain_plugin.models.temporal import TemporalFusion
from turbotrain_plugin.structures import UserError

VARIANTS = [
    TemporalConfig(heads=4, ffn=16, dropout=0.0, depth=depth, reduce=reduce)
    for depth in (1, 2)
    for reduce in ("current", "mean")
]


def fusion_for(args: TemporalConfig, frames: int = 3, channels: int = 8) -> TemporalFusion:
    torch.manual_seed(0)
    return TemporalFusion(args, channels, frames)


def test_parameter_count_at_full_width() -> None:
    fusion = TemporalFusion(TemporalConfig(), 256, 5)
    assert sum(p.numel() for p in fusion.parameters()) == 528_424


@pytest.mark.parametrize("args", VARIANTS)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_one_map_per_agent(args: TemporalConfig, frames: int) -> None:
    fusion = fusion_for(args, frames)
    fused = fusion(torch.randn(2 * frames, 8, 4, 5), torch.ones(2, frames, dtype=torch.bool))
    assert fused.shape == (2, 8, 4, 5)


@pytest.mark.parametrize("args", VARIANTS)
def test_invalid_frames_change_nothing(args: TemporalConfig) -> None:
    fusion = fusion_for(args)
    features = torch.randn(6, 8, 4, 5)
    valid = torch.tensor([[False, True, True], [True, False, True]])
    other = features.clone()
    other[[0, 4]] = 100 * torch.randn(2, 8, 4, 5)
    torch.testing.assert_close(fusion(other, valid), fusion(features, valid))


@pytest.mark.parametrize("args", VARIANTS)
def test_valid_frames_do_matter(args: TemporalConfig) -> None:
    fusion = fusion_for(args)
    features = torch.randn(3, 8, 4, 5)
    valid = torch.ones(1, 3, dtype=torch.bool)
    other = features.clone()
    other[0] += 1.0 * torch.randn(8, 4, 5)
    assert not torch.allclose(fusion(other, valid), fusion(features, valid), atol=1e-4)


@pytest.mark.parametrize("args", VARIANTS)
def test_no_valid_frame_at_all_falls_back_to_the_current_one(args: TemporalConfig) -> None:
    fusion = fusion_for(args)
    features = torch.randn(3, 8, 4, 5, requires_grad=True)
    none = fusion(features, torch.zeros(1, 3, dtype=torch.bool))
    current = fusion(features, torch.tensor([[False, False, True]]))
    torch.testing.assert_close(none, current)
    none.sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_the_callers_mask_is_not_written_to() -> None:
    valid = torch.zeros(1, 3, dtype=torch.bool)
    fusion_for(VARIANTS[0])(torch.randn(3, 8, 2, 2), valid)
    assert not valid.any()


def test_frames_are_told_apart_by_their_time() -> None:
    fusion = fusion_for(VARIANTS[0])
    features = torch.randn(3, 8, 4, 5)
    swapped = features[[1, 0, 2]]
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert not torch.allclose(fusion(swapped, valid), fusion(features, valid), atol=1e-5)


def test_without_embedding_and_bias_the_past_has_no_order() -> None:
    fusion = fusion_for(VARIANTS[0])
    torch.nn.init.zeros_(fusion.time_embedding)
    layer: Any = fusion.layers[0]
    torch.nn.init.zeros_(layer.time_bias)
    features = torch.randn(3, 8, 4, 5)
    valid = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(fusion(features[[1, 0, 2]], valid), fusion(features, valid))


def test_cells_and_agents_do_not_mix() -> None:
    fusion = fusion_for(VARIANTS[0])
    features = torch.randn(6, 8, 4, 5)
    valid = torch.ones(2, 3, dtype=torch.bool)
    other = features.clone()
    other[:3, :, 1, 2] += 1.0 + torch.rand(3, 8)
    changed = (fusion(other, valid) - fusion(features, valid)).abs().amax(1) > 1e-4
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, 1, 2] = True
    assert torch.equal(changed, expected)


def test_wrong_numbers_of_maps_are_refused() -> None:
    fusion = fusion_for(VARIANTS[0])
    with pytest.raises(ValueError, match=r"`features` must hold agents x 3 maps. Found 4 maps"):
        fusion(torch.randn(4, 8, 2, 2), torch.ones(2, 2, dtype=torch.bool))


def test_depth_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"temporal.depth must be at least 1. Found 0"):
        fusion_for(TemporalConfig(depth=0))


def test_every_head_starts_out_looking_at_a_frame_of_its_own() -> None:
    """Equal frames but one: the heads that look at it change, and the others hardly do."""
    fusion = fusion_for(TemporalConfig(heads=4, ffn=8, dropout=0.0), frames=3)
    layer: Any = fusion.layers[0]
    bias = layer.time_bias[:, 0]
    assert bias.argmax(0).tolist() == [2, 1, 0, 2]
    weights = torch.softmax(bias, dim=0)
    assert weights.max(0).values.min() > 0.9
