"""The balancer on the project's own network: what it finds there, and the sweep through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_models import tiny_args
from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.balancing.gradients import exact_gradients
from turbotrain_plugin.balancing.graph import leaves_of_tasks
from turbotrain_plugin.balancing.sweep import (
    _Sweep,
    low_memory_gradients,
    torch_starts_inside_graphs,
)
from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.models import build_model
from turbotrain_plugin.structures import Batch


@pytest.fixture
def batch() -> Batch:
    return make_batch(
        grid=small_grid(),
        record_len=[2, 1],
        hist_frames=3,
        seed=0,
        shape=MadeShape(voxels_per_map=60),
    )


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    args = tiny_args(fusion="v2xpnp")
    return build_model(args, small_grid(), hist_frames=3, future_steps=6, anchors_per_cell=2)


def losses_of(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return dict(task_losses(network(batch), batch, LossArgs()).tasks)


def test_everything_before_the_heads_is_shared(network: nn.Module, batch: Batch) -> None:
    balancer = GradientBalancer(
        torch.optim.SGD(network.parameters(), lr=0.0),
        named_parameters=network.named_parameters(),
    )
    balancer.backward(losses_of(network, batch))
    modules = {name.partition(".")[0] for name in balancer.shared_names}
    assert {"encoder", "neck", "temporal", "fusion"} <= modules
    assert not any("head" in module or "map" in module for module in modules)


@pytest.mark.skipif(not torch_starts_inside_graphs(), reason="torch cannot start inside a graph")
def test_the_sweep_gives_the_same_numbers(network: nn.Module, batch: Batch) -> None:
    found = []
    for source in (exact_gradients, low_memory_gradients):
        losses = losses_of(network, batch)
        found.append(source(losses, leaves_of_tasks(losses)))
    exact, swept = found
    for task, gradients in exact.items():
        assert set(swept[task]) == set(gradients)
        for leaf, gradient in gradients.items():
            torch.testing.assert_close(swept[task][leaf], gradient, rtol=1e-4, atol=1e-6)


def test_the_sweep_finds_several_pieces(network: nn.Module, batch: Batch) -> None:
    pieces = _Sweep(list(losses_of(network, batch).values())).pieces()
    assert 5 < len(pieces) < 30
    largest = max(len(piece.leaves) for piece in pieces)
    assert largest < sum(len(piece.leaves) for piece in pieces) / 2
