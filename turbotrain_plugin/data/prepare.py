"""A raw ``Sample`` to what a batch is made of, and a batch of these: numpy in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.data.targets import SampleTargets
from turbotrain_plugin.data.vector_map import nearest_segments
from turbotrain_plugin.data.voxelize import VoxelCloud, inside_range, voxelize_cloud
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import (
    Batch,
    GroundTruth,
    MapSegments,
    MapTokens,
    ReconstructionPoints,
    Sample,
    Targets,
    Voxels,
)

__all__ = [
    "PreparedSample",
    "SampleMap",
    "SamplePoints",
    "SampleVoxels",
    "collate",
    "map_cells",
    "map_tokens",
    "reconstruction_points",
    "sample_voxels",
]


@dataclass(frozen=True, slots=True)
class SampleVoxels:
    """Voxels of all (agent, frame) clouds of a sample; map index = agent * T + frame.

    Attributes:
        points: (V, P, 4) float32.
        coordinates: (V, 4) int32: map index, z, y, x.
        counts: (V,) int32.
        map_count: A * T.
        truncated_share: Share of the points in range lost to the voxel limit.
    """

    points: NDArray[np.float32]
    coordinates: NDArray[np.int32]
    counts: NDArray[np.int32]
    map_count: int
    truncated_share: float


@dataclass(frozen=True, slots=True)
class SampleMap:
    """The map segments that some cell of a sample refers to.

    Attributes:
        points: (S, 10, 7) float32.
        valid: (S, 10) bool.
        nearest: (Hm, Wm, count) int64 rows of ``points``, -1 where fewer segments exist.
    """

    points: NDArray[np.float32]
    valid: NDArray[np.bool_]
    nearest: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SamplePoints:
    """What pretraining rebuilds: (P, 3) float32 points in range, (P,) agent and frames ago."""

    xyz: NDArray[np.float32]
    agent: NDArray[np.int64]
    age: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """One sample, ready to be stacked.

    Attributes:
        key: Scene, current 10 Hz position, ego id.
        agent_types: (A,) int64.
        frame_valid: (A, T) bool.
        time_offset_s: (A,) float32.
        ego_SE3_agent: (A, T, 4, 4) float32.
        voxels: Voxelised clouds.
        map: Map segments and the nearest ones of every map cell, or None.
        targets: Supervision, or None.
        reconstruction: Only for pretraining.
        truth: Objects, None for unlabelled logs.
        sent_points: (1,) int64 points of the busiest neighbour where clouds are joined, else None.
        joined: The sample with joined clouds, for a teacher, or None.
    """

    key: tuple[str, int, int]
    agent_types: NDArray[np.int64]
    frame_valid: NDArray[np.bool_]
    time_offset_s: NDArray[np.float32]
    ego_SE3_agent: NDArray[np.float32]
    voxels: SampleVoxels
    map: SampleMap | None
    targets: SampleTargets | None
    reconstruction: SamplePoints | None
    truth: GroundTruth | None
    sent_points: NDArray[np.int64] | None = None
    joined: PreparedSample | None = None

    def arrays(self) -> list[NDArray[Any]]:
        """Return every array of the sample in a fixed order, for comparison and hashing."""
        return list(_arrays(self))


def sample_voxels(
    sample: Sample,
    grid: BevGrid,
    max_points: int,
    max_voxels: int,
    rng: np.random.Generator | None,
) -> SampleVoxels:
    """Voxelise every cloud of a sample, agent by agent, oldest frame first."""
    clouds: list[VoxelCloud] = [
        voxelize_cloud(cloud, grid, max_points, max_voxels, rng)
        for frames in sample.points
        for cloud in frames
    ]
    counts = [len(cloud.counts) for cloud in clouds]
    index = np.repeat(np.arange(len(clouds), dtype=np.int32), counts)
    zyx = np.concatenate([cloud.coordinates for cloud in clouds])
    in_range = sum(cloud.in_range for cloud in clouds)
    kept = sum(cloud.in_kept_voxels for cloud in clouds)
    return SampleVoxels(
        points=np.concatenate([cloud.points for cloud in clouds]),
        coordinates=np.concatenate([index[:, None], zyx], axis=1),
        counts=np.concatenate([cloud.counts for cloud in clouds]),
        map_count=len(clouds),
        truncated_share=1.0 - kept / in_range if in_range else 0.0,
    )


def map_cells(grid: BevGrid, stride: int) -> NDArray[np.float64]:
    """Return (Hm, Wm, 2) centres of the map cells: blocks of ``stride`` x ``stride`` BEV cells.

    Hm and Wm are H and W over ``stride``, rounded up; the last block may reach beyond the range.
    """
    cell_x, cell_y = (size * stride for size in grid.cell_m)
    x = grid.range_m[0] + (np.arange(-(-grid.width // stride)) + 0.5) * cell_x
    y = grid.range_m[1] + (np.arange(-(-grid.height // stride)) + 0.5) * cell_y
    return np.stack(np.meshgrid(x, y), axis=-1)


def map_tokens(segments: MapSegments, cells: NDArray[np.float64], count: int) -> SampleMap | None:
    """Return the ``count`` nearest segments of every cell, without the segments nobody is near.

    A map of a whole district shrinks to the lanes around the grid; None when it has no segment.
    """
    if len(segments.points) == 0:
        return None
    nearest = nearest_segments(cells, segments, count)
    used = np.unique(nearest[nearest >= 0])
    row = np.full(len(segments.points) + 1, -1)  # the last entry serves the index -1
    row[used] = np.arange(len(used))
    return SampleMap(segments.points[used], segments.valid[used], row[nearest])


def reconstruction_points(sample: Sample, grid: BevGrid, frames: int = 1) -> SamplePoints:
    """Return the points of all kept agents inside the range, before any voxel limit.

    Args:
        sample: The sample.
        grid: Its range.
        frames: How many of the latest frames; 1 is the current one alone.
    """
    chosen = [
        (agent, age, clouds[-1 - age])
        for agent, clouds in enumerate(sample.points)
        for age in range(frames)
    ]
    kept = [cloud[inside_range(cloud, grid.range_m), :3] for _, _, cloud in chosen]
    lengths = [len(cloud) for cloud in kept]
    agents = np.array([agent for agent, _, _ in chosen], np.int64)
    ages = np.array([age for _, age, _ in chosen], np.int64)
    return SamplePoints(np.concatenate(kept), agents.repeat(lengths), ages.repeat(lengths))


def collate(samples: Sequence[PreparedSample]) -> Batch:
    """Stack samples: agents and voxels in one row of samples, indices moved accordingly.

    ``map`` is None when no sample has a map, ``targets`` and ``reconstruction`` are None unless
    every sample has them.
    """
    if not samples:
        raise ValueError("`samples` must hold at least one sample. Found none.")
    return Batch(
        record_len=torch.tensor([len(sample.agent_types) for sample in samples]),
        agent_types=_stack(sample.agent_types for sample in samples),
        frame_valid=_stack(sample.frame_valid for sample in samples),
        time_offset_s=_stack(sample.time_offset_s for sample in samples),
        ego_SE3_agent=_stack(sample.ego_SE3_agent for sample in samples),
        voxels=_collate_voxels([sample.voxels for sample in samples]),
        map=_collate_maps([sample.map for sample in samples]),
        targets=_collate_targets(samples),
        reconstruction=_collate_points(samples),
        truth=[sample.truth for sample in samples],
        keys=[sample.key for sample in samples],
        sent_points=_collate_sent(samples),
        joined=_collate_joined(samples),
    )


def _stack(arrays: Any) -> Tensor:  # noqa: ANN401 - an iterable of arrays of one dtype
    return torch.from_numpy(np.concatenate(list(arrays)))


def _starts(lengths: Sequence[int]) -> NDArray[np.int64]:
    """Return where each part begins when parts of these lengths are joined."""
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def _collate_voxels(voxels: list[SampleVoxels]) -> Voxels:
    coordinates = np.concatenate([part.coordinates for part in voxels])
    starts = _starts([part.map_count for part in voxels])
    coordinates[:, 0] += np.repeat(starts, [len(part.counts) for part in voxels]).astype(np.int32)
    return Voxels(
        points=_stack(part.points for part in voxels),
        coordinates=torch.from_numpy(coordinates),
        point_counts=_stack(part.counts for part in voxels),
        map_count=sum(part.map_count for part in voxels),
    )


def _collate_maps(maps: list[SampleMap | None]) -> MapTokens | None:
    present = [part for part in maps if part is not None]
    if not present:
        return None
    nearest = np.full((len(maps), *present[0].nearest.shape), -1, np.int64)
    start = 0
    for row, part in enumerate(maps):
        if part is not None:
            nearest[row] = np.where(part.nearest >= 0, part.nearest + start, -1)
            start += len(part.points)
    return MapTokens(
        points=_stack(part.points for part in present),
        valid=_stack(part.valid for part in present),
        nearest=torch.from_numpy(nearest),
    )


def _collate_targets(samples: Sequence[PreparedSample]) -> Targets | None:
    targets = [sample.targets for sample in samples if sample.targets is not None]
    if len(targets) < len(samples):
        return None
    owner = np.repeat(np.arange(len(targets)), [len(part.positive_index) for part in targets])
    index = np.concatenate([part.positive_index for part in targets])
    return Targets(
        labels=torch.from_numpy(np.stack([part.labels for part in targets])),
        positive_index=torch.from_numpy(np.concatenate([owner[:, None], index], axis=1)),
        box_codes=_stack(part.box_codes for part in targets),
        trajectories=_stack(part.trajectories for part in targets),
        trajectory_valid=_stack(part.trajectory_valid for part in targets),
    )


def _collate_points(samples: Sequence[PreparedSample]) -> ReconstructionPoints | None:
    points = [sample.reconstruction for sample in samples if sample.reconstruction is not None]
    if len(points) < len(samples):
        return None
    lengths = [len(part.xyz) for part in points]
    starts = _starts([len(sample.agent_types) for sample in samples])
    agent = np.concatenate([part.agent for part in points]) + np.repeat(starts, lengths)
    return ReconstructionPoints(
        xyz=_stack(part.xyz for part in points),
        sample=torch.from_numpy(np.repeat(np.arange(len(points)), lengths)),
        agent=torch.from_numpy(agent),
        age=_stack(part.age for part in points),
    )


def _collate_sent(samples: Sequence[PreparedSample]) -> Tensor | None:
    sent = [sample.sent_points for sample in samples if sample.sent_points is not None]
    return _stack(sent) if len(sent) == len(samples) else None


def _collate_joined(samples: Sequence[PreparedSample]) -> Batch | None:
    joined = [sample.joined for sample in samples if sample.joined is not None]
    return collate(joined) if len(joined) == len(samples) else None


def _arrays(value: Any) -> list[NDArray[Any]]:  # noqa: ANN401 - nested dataclasses of arrays
    found: list[NDArray[Any]] = []
    for item in fields(value):
        part = getattr(value, item.name)
        if isinstance(part, np.ndarray):
            found.append(part)
        elif hasattr(part, "__dataclass_fields__"):
            found += _arrays(part)
    return found
