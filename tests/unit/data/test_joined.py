"""Joined clouds (early fusion) and single agents (late fusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.made_scenes import (
    MadeScene,
    junction_scene,
    lidar_points,
    world_SE3_lidar,
)
from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import CooperativeDataset, SampleKey
from turbotrain_plugin.data.joined import busiest_neighbour, join_agents, single_agent
from turbotrain_plugin.data.voxelize import inside_range, voxelize_cloud
from turbotrain_plugin.geometry.boxes import count_points

FRAME = 10


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_config(
        tmp_path_factory.mktemp("joined"),
        ["train_params.max_cav=4", "preprocess.args.max_voxel_test=2000"],
    )


def dataset(
    config: RunConfig, fusion: str, purpose: str = "evaluate", *, max_cav: int = 4
) -> CooperativeDataset:
    args = config.model.args
    changed = replace(
        config,
        model=replace(
            config.model, args=replace(args, fusion=replace(args.fusion, core_method=fusion))
        ),
        train_params=replace(config.train_params, max_cav=max_cav),
    )
    return CooperativeDataset(
        changed, [Path(config.root_dir[0]) / "train"], split="train", purpose=purpose
    )


def key_of(data: CooperativeDataset, frame: int = FRAME) -> SampleKey:
    """Return the key of the window whose current time is ``frame``."""
    found = [i for i in range(len(data)) if data.sample(SampleKey(0, i)).frame == frame]
    return SampleKey(0, found[0])


def points_in_ego(scene: MadeScene, order: Sequence[int], frame: int) -> NDArray[np.float64]:
    """Return the points that the agents recorded at ``frame``, moved by hand, agent by agent."""
    by_id = {agent.agent_id: agent for agent in scene.agents}
    ego = world_SE3_lidar(by_id[order[0]], FRAME)
    clouds = []
    for agent in (by_id[agent_id] for agent_id in order):
        own = lidar_points(scene, agent, frame)[:, :3].astype(np.float64)
        if agent.agent_id > 0:  # without its hits of its own body
            own = own[(abs(own[:, 0] - 0.5) > 2.45) | (abs(own[:, 1]) > 1.1)]
        matrix = np.linalg.inv(ego) @ world_SE3_lidar(agent, frame)
        clouds.append(own @ matrix[:3, :3].T + matrix[:3, 3])
    return np.concatenate(clouds)


# ------------------------------------------------------------------------------------------- early


def test_the_union_is_exact(config: RunConfig) -> None:
    """Against points moved from the files' scene by hand: none lost, none twice, every frame."""
    data = dataset(config, "early")
    sample = join_agents(data.sample(key_of(data)))
    scene = junction_scene("2023-03-17-15-53-02_1_0", frames=22)
    assert len(sample.points) == 1
    order = data.sample(key_of(data)).agent_ids
    assert set(order) == {1, 2, -1, -2}
    for step, frame in enumerate((FRAME - 10, FRAME - 5, FRAME)):
        expected = points_in_ego(scene, order, frame)
        np.testing.assert_allclose(sample.points[0][step][:, :3], expected, atol=1e-4)


def test_a_joined_sample_is_the_egos(config: RunConfig) -> None:
    data = dataset(config, "early")
    apart = data.sample(key_of(data))
    sample = join_agents(apart)
    assert len(apart.agent_ids) == 4
    assert sample.agent_ids == apart.agent_ids[:1]
    assert sample.agent_types.tolist() == [0]
    assert sample.ego_SE3_agent.shape == (1, 3, 4, 4)
    assert sample.time_offset_s.shape == (1,)
    assert sample.truth is apart.truth
    assert sum(map(len, sample.points[0])) == sum(len(c) for own in apart.points for c in own)


def test_a_frame_is_valid_when_any_agent_has_it(config: RunConfig) -> None:
    data = dataset(config, "early")
    apart = data.sample(key_of(data))
    apart.frame_valid[:, 0] = False
    apart.frame_valid[:, 1] = [False, False, True, False]
    assert join_agents(apart).frame_valid.tolist() == [[False, True, True]]


def test_the_network_reads_voxels_of_the_union(config: RunConfig) -> None:
    data = dataset(config, "early")
    key = key_of(data)
    prepared, union = data[key], join_agents(data.sample(key))
    limits = config.preprocess.args
    assert prepared.voxels.map_count == 3
    assert prepared.frame_valid.shape == (1, 3)
    for frame in range(3):
        voxels = voxelize_cloud(
            union.points[0][frame],
            data.grid,
            limits.max_points_per_voxel,
            limits.max_voxel_test,
            None,
        )
        of_frame = prepared.voxels.coordinates[:, 0] == frame
        read = prepared.voxels.coordinates[of_frame, 1:]
        assert sorted(read.tolist()) == sorted(voxels.coordinates.tolist())
        assert len(read) > 100
        assert prepared.voxels.counts[of_frame].sum() == voxels.counts.sum()


def test_one_agent_alone_is_read_as_without_fusion(config: RunConfig) -> None:
    for purpose in ("evaluate", "train", "pretrain"):
        early = dataset(config, "early", purpose, max_cav=1)
        alone = dataset(config, "no_fusion", purpose, max_cav=1)
        key = SampleKey(1, 3)
        assert early[key].sent_points == [0]
        for one, other in zip(
            replace(early[key], sent_points=None).arrays(), alone[key].arrays(), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_a_message_counts_the_current_points_in_range_of_the_busiest(config: RunConfig) -> None:
    data = dataset(config, "early")
    sample = data.sample(key_of(data))
    limits = data.grid.range_m
    counts = [int(inside_range(own[-1], limits).sum()) for own in sample.points]
    assert data[key_of(data)].sent_points == [max(counts[1:])]
    assert min(counts[1:]) > 100
    assert busiest_neighbour(single_agent(sample, 0), limits) == [0]
    far = replace(
        sample,
        points=[own if i == 0 else [c + 900 for c in own] for i, own in enumerate(sample.points)],
    )
    assert busiest_neighbour(far, limits) == [0]


def test_pretraining_rebuilds_the_union(config: RunConfig) -> None:
    early, apart = dataset(config, "early", "pretrain"), dataset(config, "fcooper", "pretrain")
    key = SampleKey(1, 3)
    one, other = early[key].reconstruction, apart[key].reconstruction
    assert one is not None
    assert other is not None
    np.testing.assert_array_equal(one.xyz, other.xyz)
    assert not one.agent.any()
    assert other.agent.any()


# -------------------------------------------------------------------------------------------- late


def test_training_sees_one_agent_and_evaluation_all(config: RunConfig) -> None:
    for purpose, agents in (("train", 1), ("pretrain", 1), ("evaluate", 4)):
        data = dataset(config, "late", purpose)
        assert {len(data[SampleKey(0, i)].agent_types) for i in range(len(data))} == {agents}


def drawn(data: CooperativeDataset, epoch: int) -> list[int]:
    return [data.sample(SampleKey(epoch, i)).agent_ids[0] for i in range(len(data))]


def test_every_agent_gets_its_turn_and_the_draw_repeats(config: RunConfig) -> None:
    data = dataset(config, "late", "train")
    epochs = [drawn(data, epoch) for epoch in range(4)]
    assert {agent for epoch in epochs for agent in epoch} == {1, 2, -1, -2}
    assert epochs[0] != epochs[1]
    assert drawn(dataset(config, "late", "train"), 1) == epochs[1]


def test_the_agent_learns_what_its_own_points_hit_in_the_egos_frame(config: RunConfig) -> None:
    late, all_agents = dataset(config, "late", "train"), dataset(config, "fcooper", "train")
    fewer = 0
    for key in (SampleKey(epoch, index) for epoch in range(4) for index in range(len(late))):
        one, team = late.sample(key), all_agents.sample(key)
        number = team.agent_ids.index(one.agent_ids[0])
        for mine, theirs in zip(one.points[0], team.points[number], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(one.ego_SE3_agent[0], team.ego_SE3_agent[number])
        assert one.truth is not None
        assert team.truth is not None
        hits = count_points(one.points[0][-1], team.truth.boxes)
        assert one.truth.object_ids.tolist() == team.truth.object_ids[hits > 0].tolist()
        fewer += len(one.truth.boxes) < len(team.truth.boxes)
    assert fewer > 0


def test_other_fusions_read_all_agents_apart(config: RunConfig) -> None:
    prepared = dataset(config, "v2xpnp", "train")[SampleKey(0, 0)]
    assert prepared.sent_points is None
    assert len(prepared.agent_types) == 4
