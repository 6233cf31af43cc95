"""Every fusion in whole networks: frames, agents, encoders, and gradients from the tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_models import second_grid, tiny_args
from turbotrain_plugin.config import LossArgs, ModelArgs
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.models import FUSIONS, CooperativeNetwork, build_model
from turbotrain_plugin.structures import Batch

OF_MAPS = sorted(set(FUSIONS) - {"early", "late"})
UP_TO_FOUR = (1, 2, 3, 4)


def network_for(args: ModelArgs, frames: int, grid: BevGrid | None = None) -> CooperativeNetwork:
    torch.manual_seed(0)
    return build_model(
        args, grid or small_grid(), hist_frames=frames, future_steps=6, anchors_per_cell=2
    )


def batch_for(
    record_len: tuple[int, ...], frames: int, grid: BevGrid | None = None, seed: int = 0
) -> Batch:
    shape = MadeShape(voxels_per_map=60)
    return make_batch(
        grid=grid or small_grid(),
        record_len=record_len,
        hist_frames=frames,
        seed=seed,
        shape=shape,
    )


def losses_of(network: CooperativeNetwork, batch: Batch) -> Tensor:
    return task_losses(network(batch), batch, LossArgs()).total()


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("fusion", OF_MAPS)
def test_one_to_four_agents_and_one_or_five_frames(fusion: str, frames: int) -> None:
    network = network_for(tiny_args(fusion=fusion), frames)
    batch = batch_for(UP_TO_FOUR, frames)
    losses_of(network, batch).backward()
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        predictions = network.eval()(batch)
    assert predictions.class_logits.shape == (4, 16, 16, 2)
    assert torch.isfinite(predictions.class_logits).all()
    assert predictions.trajectories is not None
    assert torch.isfinite(predictions.trajectories).all()


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize("fusion", ["early", "late"])
def test_one_agent_and_one_or_five_frames(fusion: str, frames: int) -> None:
    network, batch = network_for(tiny_args(fusion=fusion), frames), batch_for((1, 1), frames)
    losses_of(network, batch).backward()
    with torch.no_grad():
        assert torch.isfinite(network.eval()(batch).class_logits).all()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("fusion", OF_MAPS)
def test_every_fusion_learns_on_both_variants_of_second(fusion: str, residual: bool) -> None:
    pytest.importorskip("spconv.pytorch")
    grid, args = second_grid(), tiny_args(encoder="second", fusion=fusion, neck="pre_temporal")
    args = replace(args, encoder=replace(args.encoder, residual=residual))
    network, batch = network_for(args, 2, grid), batch_for((2, 1), 2, grid)
    before = network.encoder.stem[0].weight.detach().clone()  # type: ignore[index, union-attr]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    losses_of(network, batch).backward()
    optimizer.step()
    after = network.encoder.stem[0].weight  # type: ignore[index, union-attr]
    assert torch.isfinite(after).all()
    assert not torch.equal(after, before)


@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_every_parameter_gets_a_gradient_from_some_task(fusion: str, neck: str) -> None:
    """A number that is not zero; DiscoNet without the ReLU that may silence its weights."""
    args = tiny_args(fusion=fusion, neck=neck)
    args = replace(args, fusion=replace(args.fusion, last_relu=False))
    network = network_for(args, 3)
    record_len = (1, 1) if fusion in ("early", "late") else (3, 4)
    for seed in range(2):
        losses_of(network, batch_for(record_len, 3, seed=seed)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
