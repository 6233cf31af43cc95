"""No fusion holds a map for every pair of agents where one per agent does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import fusion_memory
from benchmarks.fusion_memory import METHODS, Setup, growth, peaks
from turbotrain_plugin.models.fusion import FUSIONS
from turbotrain_plugin.structures import FusionContext, FusionOutput

SETUP = Setup(
    channels=16, height=16, width=16, windows=(4, 8), window_heads=(4, 2), heads=2, ffn=16
)
LINEAR = 1.06
"""Growth of a fusion that holds nothing per pair but scores; 9 / 7 with maps of pairs."""


def test_every_fusion_of_maps_is_measured() -> None:
    assert set(METHODS) == set(FUSIONS) - {"early", "late"}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_peak_grows_with_the_agents(method: str, training: bool) -> None:
    found = peaks(SETUP, method, training=training)
    assert growth(found) <= LINEAR
    assert found[3] <= 2.3 * found[1]


class OfPairs(nn.Module):
    """What must not be: a map for every pair."""

    def forward(self, features: torch.Tensor, context: FusionContext) -> FusionOutput:
        assert context.frames is not None
        pairs = features[:, None] * features[None]
        return FusionOutput(pairs.mean(1)[:1], {}, 0)


@pytest.mark.parametrize("training", [False, True])
def test_maps_of_pairs_are_noticed(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_memory, "FUSIONS", {"pairs": lambda *_: OfPairs()})
    found = peaks(SETUP, "pairs", training=training)
    assert growth(found) > 1.15
    assert found[3] > 2.3 * found[1]
