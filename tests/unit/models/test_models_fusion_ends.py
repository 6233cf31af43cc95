"""Early and late fusion: one agent's network before and behind which agents are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_fusions import CHANNELS, context_for, fusion_for, maps, rows
from tests.helpers.made_models import tiny_args
from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.models.fusion.early import POINT_BYTES
from turbotrain_plugin.structures import Batch, MapTokens, Predictions, Voxels

FRAMES = 3
ENDS = ("early", "late")


def network_for(fusion: str, neck: str = "post_fusion") -> CooperativeNetwork:
    """Return a network; its weights are the same for every fusion without parameters."""
    torch.manual_seed(0)
    return build_model(
        tiny_args(fusion=fusion, neck=neck),
        small_grid(),
        hist_frames=FRAMES,
        future_steps=6,
        anchors_per_cell=2,
    )


def batch_for(record_len: Sequence[int]) -> Batch:
    return make_batch(
        grid=small_grid(),
        record_len=record_len,
        hist_frames=FRAMES,
        seed=0,
        shape=MadeShape(voxels_per_map=80),
    )


def only_agent(batch: Batch, agent: int) -> Batch:
    """Return one agent of a batch, as the only one of its sample, which becomes the only one."""
    sample = int(torch.repeat_interleave(batch.record_len)[agent])
    owner = batch.voxels.coordinates[:, 0] // FRAMES
    keep = owner == agent
    coordinates = batch.voxels.coordinates[keep].clone()
    coordinates[:, 0] -= agent * FRAMES
    tokens = batch.map
    assert tokens is not None
    return replace(
        batch,
        record_len=torch.tensor([1]),
        agent_types=batch.agent_types[[agent]],
        frame_valid=batch.frame_valid[[agent]],
        time_offset_s=batch.time_offset_s[[agent]],
        ego_SE3_agent=batch.ego_SE3_agent[[agent]],
        voxels=Voxels(
            batch.voxels.points[keep], coordinates, batch.voxels.point_counts[keep], FRAMES
        ),
        map=MapTokens(tokens.points, tokens.valid, tokens.nearest[[sample]]),
    )


def assert_same(found: Predictions, expected: Predictions, row: int | None = None) -> None:
    for name in ("class_logits", "box_codes", "trajectories"):
        value = getattr(found, name)
        value = value if row is None else value[row : row + 1]
        torch.testing.assert_close(value, getattr(expected, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ENDS)
def test_there_is_nothing_to_learn(method: str) -> None:
    assert not list(fusion_for(method).parameters())


@pytest.mark.parametrize("method", ENDS)
@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
def test_one_agent_is_the_network_without_fusion(method: str, neck: str) -> None:
    batch = batch_for([1, 1])
    network, alone = network_for(method, neck), network_for("no_fusion", neck)
    assert_same(network(batch), alone(batch))
    found = task_losses(network(batch), batch, LossArgs()).total()
    torch.testing.assert_close(found, task_losses(alone(batch), batch, LossArgs()).total())
    found.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


# ------------------------------------------------------------------------------------------- early


def test_clouds_that_were_not_joined_are_refused() -> None:
    with pytest.raises(ValueError, match=r"joined with the data\. Found \[2, 1\]"):
        fusion_for("early")(maps(3), context_for([2, 1]))


def test_a_message_is_the_points_of_the_busiest_neighbour() -> None:
    fusion, context = fusion_for("early"), context_for([1, 1])
    features = maps(2)
    known = fusion(features, replace(context, sent_points=torch.tensor([700, 1200])))
    assert torch.equal(known.features, features)
    assert (known.message_bytes, known.side_bytes) == (0, 1200 * POINT_BYTES)
    assert fusion(features, context).side_bytes == 0
    batch = replace(batch_for([1]), sent_points=torch.tensor([1200]))
    assert network_for("early")(batch).message_bytes == 1200 * 4 * 4


# -------------------------------------------------------------------------------------------- late


def test_agents_stay_apart() -> None:
    features, context = maps(6), context_for([2, 1, 3])
    fused = fusion_for("late")(features, context)
    assert torch.equal(fused.features, features)
    assert fused.rows is not None
    assert fused.rows.tolist() == [2, 1, 3]
    assert (fused.message_bytes, fused.side_bytes) == (0, 0)


def test_an_agent_that_sees_nothing_has_no_say_but_the_ego_has() -> None:
    features, context = maps(5), context_for([3, 2])
    context.roi[[0, 1, 4]] = False
    context.roi[4, :, 0, 0] = True
    fused = fusion_for("late")(features, context)
    assert torch.equal(fused.features, features[[0, 2, 3, 4]])
    assert fused.rows is not None
    assert fused.rows.tolist() == [2, 2]
    without = fusion_for("late")(features[[0, 2, 3, 4]], rows(context, [0, 2, 3, 4], [2, 2]))
    assert torch.equal(without.features, fused.features)
    assert fused.features.shape[1] == CHANNELS


@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
@torch.no_grad()
def test_every_agent_says_what_it_would_say_alone(neck: str) -> None:
    """With the map of its own sample."""
    batch = batch_for([3, 2])
    network, alone = network_for("late", neck).eval(), network_for("no_fusion", neck).eval()
    together = network(batch)
    assert together.rows is not None
    assert together.rows.tolist() == [3, 2]
    for agent in range(5):
        assert_same(together, alone(only_agent(batch, agent)), row=agent)


def test_several_agents_cannot_be_taught_at_once() -> None:
    batch = batch_for([2])
    with pytest.raises(ValueError, match=r"must both be \(B, H, W, anchors\)"):
        task_losses(network_for("late")(batch), batch, LossArgs())
