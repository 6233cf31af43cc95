"""No fusion, F-Cooper, AttFuse: fusion without parameters."""

import math

import pytest
import torch

from tests.helpers.made_fusions import CHANNELS, HEIGHT, WIDTH, context_for, fusion_for, maps


def test_no_fusion_sends_nothing_and_keeps_the_ego() -> None:
    features = maps(3)
    fused = fusion_for("no_fusion")(features, context_for([2, 1]))
    assert fused.message_bytes == 0
    assert torch.equal(fused.features, features[[0, 2]])


@pytest.mark.parametrize("method", ["fcooper", "attfuse"])
def test_one_agent_passes_as_it_is(method: str) -> None:
    features = maps(2)
    assert torch.equal(fusion_for(method)(features, context_for([1, 1])).features, features)


def test_fcooper_takes_negative_maxima_and_never_the_unseen_zero() -> None:
    features = torch.stack([torch.full((CHANNELS, HEIGHT, WIDTH), value) for value in (-2.0, -1.0)])
    context = context_for([2])
    context.roi[1, :, 0] = False
    fused = fusion_for("fcooper")(features, context).features
    assert (fused[0, :, 0] == -2.0).all()
    assert (fused[0, :, 1:] == -1.0).all()


def test_attfuse_weighs_by_the_scaled_product_with_the_ego() -> None:
    """Ego (2, 0, ...), neighbour (1, 3, 0, ...): scores 4 and 2, both over sqrt(C)."""
    features = torch.zeros(2, CHANNELS, HEIGHT, WIDTH)
    features[0, 0] = 2.0
    features[1, 0], features[1, 1] = 1.0, 3.0
    fused = fusion_for("attfuse")(features, context_for([2])).features[0]
    of_ego = 1.0 / (1.0 + math.exp((2.0 - 4.0) / math.sqrt(CHANNELS)))
    expected = torch.zeros(CHANNELS, HEIGHT, WIDTH)
    expected[0] = 2.0 * of_ego + 1.0 * (1.0 - of_ego)
    expected[1] = 3.0 * (1.0 - of_ego)
    torch.testing.assert_close(fused, expected)


def test_attfuse_of_equal_maps_is_that_map() -> None:
    same = maps(1)
    fused = fusion_for("attfuse")(same.repeat(3, 1, 1, 1), context_for([3])).features
    torch.testing.assert_close(fused, same)
