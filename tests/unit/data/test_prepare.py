"""Voxels of a sample, map cells, reconstruction points, and the stacking of samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from turbotrain_plugin.data.prepare import (
    PreparedSample,
    SampleMap,
    SamplePoints,
    SampleVoxels,
    collate,
    map_cells,
    map_tokens,
    reconstruction_points,
    sample_voxels,
)
from turbotrain_plugin.data.targets import SampleTargets
from turbotrain_plugin.data.voxelize import voxelize
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import MapSegments, Sample

GRID = BevGrid(range_m=(-8.0, -4.0, -2.0, 8.0, 4.0, 2.0), voxel_m=(0.5, 0.5, 0.5), stride=4)


def made_sample(agents: int = 2, frames: int = 3) -> Sample:
    """Clouds of 50 (agent + frame) points, so the first one is empty."""
    rng = np.random.default_rng(agents)
    points = [
        [
            (rng.uniform(-1.1, 1.1, size=(50 * (a + t), 4)) * (8, 4, 2, 1)).astype(np.float32)
            for t in range(frames)
        ]
        for a in range(agents)
    ]
    return Sample(
        scene="s",
        frame=7,
        agent_ids=tuple(range(1, agents + 1)),
        agent_types=np.arange(agents),
        frame_valid=np.ones((agents, frames), bool),
        ego_SE3_agent=np.tile(np.eye(4, dtype=np.float32), (agents, frames, 1, 1)),
        time_offset_s=np.zeros(agents, np.float32),
        world_SE3_ego=np.eye(4),
        points=points,
        truth=None,
        map=None,
    )


def test_map_index_is_agent_times_frames_plus_frame() -> None:
    sample = made_sample()
    voxels = sample_voxels(sample, GRID, 2, 1000, None)
    assert voxels.map_count == 6
    assert voxels.coordinates.dtype == np.int32
    for a in range(2):
        for t in range(3):
            rows = voxels.coordinates[:, 0] == a * 3 + t
            points, coordinates, counts = voxelize(sample.points[a][t], GRID, 2, 1000)
            np.testing.assert_array_equal(voxels.coordinates[rows, 1:], coordinates)
            np.testing.assert_array_equal(voxels.points[rows], points)
            np.testing.assert_array_equal(voxels.counts[rows], counts)
    assert 0 not in voxels.coordinates[:, 0]
    assert voxels.truncated_share == 0.0


def test_truncated_share_is_over_all_clouds() -> None:
    sample = made_sample()
    voxels = sample_voxels(sample, GRID, 100, 10, None)
    assert (np.bincount(voxels.coordinates[:, 0])[1:] == 10).all()
    in_range = sum(voxelize(c, GRID, 100, 10**6)[2].sum() for row in sample.points for c in row)
    assert voxels.truncated_share == pytest.approx(1 - voxels.counts.sum() / in_range)
    assert 0.5 < voxels.truncated_share < 1.0


def test_map_cells_are_blocks_of_bev_cells() -> None:
    assert (GRID.height, GRID.width) == (4, 8)
    np.testing.assert_allclose(map_cells(GRID, 1), GRID.cell_centres())
    blocks = GRID.cell_centres().reshape(2, 2, 4, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(map_cells(GRID, 2), blocks)
    assert map_cells(GRID, 3).shape == (2, 3, 2)  # rounded up


def segments_at(*x: float) -> MapSegments:
    points = np.zeros((len(x), 10, 7), np.float32)
    points[..., 0] = np.array(x)[:, None]
    points[..., 4] = np.arange(len(x))[:, None]
    return MapSegments(points, np.ones((len(x), 10), bool))


def test_map_tokens_hold_only_what_is_near() -> None:
    tokens = map_tokens(segments_at(900.0, -6.0, -500.0, 6.0), map_cells(GRID, 2), 1)
    assert tokens is not None
    assert tokens.points[:, 0, 0].tolist() == [-6.0, 6.0]
    assert tokens.nearest.shape == (2, 4, 1)
    assert tokens.nearest[0, :, 0].tolist() == [0, 0, 1, 1]


def test_map_with_too_few_segments_is_padded() -> None:
    tokens = map_tokens(segments_at(1.0, 5.0), map_cells(GRID, 2), 3)
    assert tokens is not None
    assert tokens.nearest[0, 0].tolist() == [0, 1, -1]
    assert map_tokens(segments_at(), map_cells(GRID, 2), 3) is None


def test_reconstruction_points_are_the_current_ones_in_range() -> None:
    sample = made_sample()
    found = reconstruction_points(sample, GRID)
    assert found.xyz.dtype == np.float32
    for a in range(2):
        cloud = sample.points[a][-1][:, :3]
        inside = (np.abs(cloud) < (8, 4, 2)).all(axis=1)
        np.testing.assert_array_equal(found.xyz[found.agent == a], cloud[inside])
    assert len(found.xyz) == len(found.agent)
    assert not found.age.any()


def test_reconstruction_points_of_several_frames_know_their_age() -> None:
    sample = made_sample()
    found = reconstruction_points(sample, GRID, frames=2)
    assert set(found.age.tolist()) == {0, 1}
    for a in range(2):
        for age in range(2):
            cloud = sample.points[a][-1 - age][:, :3]
            inside = (np.abs(cloud) < (8, 4, 2)).all(axis=1)
            chosen = (found.agent == a) & (found.age == age)
            np.testing.assert_array_equal(found.xyz[chosen], cloud[inside])


def prepared(
    agents: int, voxels: int, positives: int, *, map_segments: int | None = 2, seed: int = 0
) -> PreparedSample:
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    nearest = rng.integers(-1, map_segments or 1, size=(2, 2, 3))
    return PreparedSample(
        key=(f"s{seed}", seed, 1),
        agent_types=np.arange(agents),
        frame_valid=np.ones((agents, 2), bool),
        time_offset_s=np.zeros(agents, np.float32),
        ego_SE3_agent=floats(agents, 2, 4, 4),
        voxels=SampleVoxels(
            points=floats(voxels, 5, 4),
            coordinates=rng.integers(0, agents * 2, size=(voxels, 4)).astype(np.int32),
            counts=np.ones(voxels, np.int32),
            map_count=agents * 2,
            truncated_share=0.0,
        ),
        map=None
        if map_segments is None
        else SampleMap(floats(map_segments, 10, 7), np.ones((map_segments, 10), bool), nearest),
        targets=SampleTargets(
            labels=np.full((4, 8, 2), seed, np.int8),
            positive_index=rng.integers(0, 2, size=(positives, 3)),
            box_codes=floats(positives, 7),
            trajectories=floats(positives, 3, 2),
            trajectory_valid=np.ones((positives, 3), bool),
        ),
        reconstruction=SamplePoints(
            floats(voxels, 3), np.arange(voxels) % agents, np.arange(voxels) % 3
        ),
        truth=None,
    )


def test_collate_moves_every_index() -> None:
    one, two = prepared(2, 6, 1, map_segments=3), prepared(1, 4, 2, map_segments=2, seed=1)
    batch = collate([one, two])
    assert batch.record_len.tolist() == [2, 1]
    assert batch.agent_types.tolist() == [0, 1, 0]
    assert batch.frame_valid.shape == (3, 2)
    assert batch.ego_SE3_agent.shape == (3, 2, 4, 4)
    assert batch.keys == [("s0", 0, 1), ("s1", 1, 1)]
    # Voxels: sample two's maps come after the four maps of sample one.
    assert batch.voxels.map_count == 6
    coordinates = batch.voxels.coordinates.numpy()
    np.testing.assert_array_equal(coordinates[:6], one.voxels.coordinates)
    np.testing.assert_array_equal(coordinates[6:, 0], two.voxels.coordinates[:, 0] + 4)
    np.testing.assert_array_equal(coordinates[6:, 1:], two.voxels.coordinates[:, 1:])
    assert batch.map is not None
    assert batch.targets is not None
    assert batch.reconstruction is not None
    # Targets: the sample's number comes before row, column, anchor.
    assert batch.targets.positive_index[:, 0].tolist() == [0, 1, 1]
    assert two.targets is not None
    np.testing.assert_array_equal(batch.targets.positive_index[1:, 1:], two.targets.positive_index)
    assert batch.targets.labels.shape == (2, 4, 8, 2)
    assert (batch.targets.labels[1] == 1).all()
    # Reconstruction: agents are counted through the batch.
    assert batch.reconstruction.sample.tolist() == [0] * 6 + [1] * 4
    assert batch.reconstruction.agent.tolist() == [0, 1] * 3 + [2] * 4


def test_collate_map_rows_point_at_the_right_segments() -> None:
    samples = [prepared(1, 2, 1, map_segments=n, seed=n or 0) for n in (3, None, 2)]
    tokens = collate(samples).map
    assert tokens is not None
    assert (tokens.nearest[1] == -1).all()
    for row in (0, 2):
        part = samples[row].map
        assert part is not None
        known = part.nearest >= 0
        found = tokens.points.numpy()[tokens.nearest[row].numpy()[known]]
        np.testing.assert_array_equal(found, part.points[part.nearest[known]])
        assert (tokens.nearest[row].numpy()[~known] == -1).all()


def test_collate_dtypes_are_those_of_the_batch() -> None:
    batch = collate([prepared(2, 6, 1)])
    assert batch.map is not None
    assert batch.targets is not None
    assert batch.reconstruction is not None
    expected = {
        torch.int64: (
            batch.record_len,
            batch.agent_types,
            batch.targets.positive_index,
            batch.map.nearest,
            batch.reconstruction.sample,
            batch.reconstruction.agent,
        ),
        torch.int32: (batch.voxels.coordinates, batch.voxels.point_counts),
        torch.float32: (
            batch.time_offset_s,
            batch.ego_SE3_agent,
            batch.voxels.points,
            batch.map.points,
            batch.targets.box_codes,
            batch.targets.trajectories,
            batch.reconstruction.xyz,
        ),
        torch.bool: (batch.frame_valid, batch.map.valid, batch.targets.trajectory_valid),
        torch.int8: (batch.targets.labels,),
    }
    for dtype, tensors in expected.items():
        assert all(tensor.dtype == dtype for tensor in tensors)


def test_parts_that_a_sample_lacks() -> None:
    full, bare = prepared(1, 2, 1), replace(prepared(1, 2, 1), targets=None, reconstruction=None)
    batch = collate([full, replace(bare, map=None)])
    assert batch.targets is None
    assert batch.reconstruction is None
    assert batch.map is not None
    assert collate([replace(full, map=None)]).map is None


def test_collate_does_not_change_the_samples() -> None:
    samples = [prepared(2, 6, 1), prepared(1, 4, 2, seed=1)]
    before = [array.copy() for sample in samples for array in sample.arrays()]
    collate(samples)
    after = [array for sample in samples for array in sample.arrays()]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_collate_of_nothing() -> None:
    with pytest.raises(ValueError, match="`samples` must hold at least one sample"):
        collate([])
