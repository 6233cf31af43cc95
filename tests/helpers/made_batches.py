"""Random but valid batches, made without files, to test models, losses and the engine on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import (
    INFRASTRUCTURE,
    VEHICLE,
    Batch,
    GroundTruth,
    MapTokens,
    ReconstructionPoints,
    Targets,
    Voxels,
)

ANCHOR_LWH = (3.9, 1.6, 1.56)
ANCHOR_Z = -1.0
ANCHOR_YAWS = (0.0, math.pi / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeShape:
    """Sizes of a made batch.

    Attributes:
        future_steps: F.
        voxels_per_map: Voxels of every valid (agent, frame) map, at most.
        max_points: P, point slots per voxel.
        objects: Objects per sample.
        map_stride: BEV cells per map token cell; 0 for a batch without map.
        map_segments: Segments per sample; fewer than 5 leave padding (-1).
    """

    future_steps: int = 6
    voxels_per_map: int = 200
    max_points: int = 5
    objects: int = 6
    map_stride: int = 2
    map_segments: int = 12


def small_grid(cells: int = 16, *, stride: int = 2, voxel_z: float = 8.0) -> BevGrid:
    """Return a square grid of ``cells`` x ``cells`` BEV cells of 0.8 m around the origin."""
    half = cells * 0.4
    voxel = 0.8 / stride
    return BevGrid((-half, -half, -5.0, half, half, 3.0), (voxel, voxel, voxel_z), stride)


def make_batch(
    *,
    grid: BevGrid,
    record_len: Sequence[int],
    hist_frames: int,
    seed: int,
    shape: MadeShape | None = None,
) -> Batch:
    """Make a batch: unique voxels, points inside them, consistent targets, futures and map.

    Vehicles first, the last agent of a sample with three or more is a roadside unit. Every agent
    that is not an ego lacks its oldest frame when there are two or more frames.
    """
    shape = shape or MadeShape()
    rng = np.random.default_rng(seed)
    truth = [_make_truth(grid, hist_frames, shape, rng) for _ in record_len]
    frame_valid = _frame_valid(record_len, hist_frames)
    sample_of_agent = np.repeat(np.arange(len(record_len)), record_len)
    voxels = _make_voxels(grid, frame_valid, shape, rng)
    types = [
        INFRASTRUCTURE if agent == count - 1 and count > 2 else VEHICLE
        for count in record_len
        for agent in range(count)
    ]
    return Batch(
        record_len=torch.tensor(list(record_len), dtype=torch.int64),
        agent_types=torch.tensor(types, dtype=torch.int64),
        frame_valid=torch.from_numpy(frame_valid),
        time_offset_s=torch.zeros(len(types)),
        ego_SE3_agent=torch.from_numpy(_make_poses(record_len, hist_frames, rng)),
        voxels=voxels,
        map=_make_map(grid, len(record_len), shape, rng) if shape.map_stride else None,
        targets=_make_targets(grid, truth),
        reconstruction=_points(voxels, sample_of_agent, hist_frames),
        truth=list(truth),
        keys=[("made", 10 * index, 1) for index in range(len(record_len))],
    )


def _frame_valid(record_len: Sequence[int], hist_frames: int) -> NDArray[np.bool_]:
    valid = np.ones((sum(record_len), hist_frames), dtype=bool)
    is_ego = np.concatenate([np.arange(count) == 0 for count in record_len])
    if hist_frames > 1:
        valid[~is_ego, 0] = False
    return valid


def _make_poses(
    record_len: Sequence[int], hist_frames: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    poses = np.tile(np.eye(4, dtype=np.float32), (sum(record_len), hist_frames, 1, 1))
    first = 0
    for count in record_len:
        for agent in range(first + 1, first + count):
            yaw = rng.uniform(-math.pi, math.pi)
            cos, sin = math.cos(yaw), math.sin(yaw)
            poses[agent, :, :2, :2] = [[cos, -sin], [sin, cos]]
            poses[agent, :, :2, 3] = rng.uniform(-2.0, 2.0, size=2)
        first += count
    return poses


def _make_truth(
    grid: BevGrid, hist_frames: int, shape: MadeShape, rng: np.random.Generator
) -> GroundTruth:
    count, steps = shape.objects, shape.future_steps
    low, high = np.array(grid.range_m[:2]), np.array(grid.range_m[3:5])
    centre = rng.uniform(low, high, size=(count, 2))
    yaw = rng.uniform(-math.pi, math.pi, size=count)
    speed = rng.uniform(0.0, 8.0, size=count)
    velocity = speed[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    size = np.array(ANCHOR_LWH) * rng.uniform(0.8, 1.2, size=(count, 3))
    z = np.full((count, 1), ANCHOR_Z) + rng.normal(0.0, 0.2, size=(count, 1))
    future_s = 0.5 * np.arange(1.0, steps + 1.0)
    past_s = 0.5 * np.arange(1.0 - hist_frames, 1.0)
    future_valid = np.ones((count, steps), dtype=bool)
    future_valid[::3, steps // 2 :] = False  # some objects leave
    return GroundTruth(
        boxes=np.concatenate([centre, z, size, yaw[:, None]], axis=1).astype(np.float32),
        object_ids=np.arange(count, dtype=np.int64),
        futures=_moved(centre, velocity, future_s),
        future_valid=future_valid,
        past=_moved(centre, velocity, past_s),
        past_valid=np.ones((count, hist_frames), dtype=bool),
        point_counts=np.full(count, 10, dtype=np.int64),
    )


def _moved(
    centre: NDArray[np.float64], velocity: NDArray[np.float64], times_s: NDArray[Any]
) -> NDArray[np.float32]:
    moved: NDArray[np.float32] = (
        centre[:, None] + velocity[:, None] * times_s[None, :, None]
    ).astype(np.float32)
    return moved


def _make_voxels(
    grid: BevGrid, frame_valid: NDArray[np.bool_], shape: MadeShape, rng: np.random.Generator
) -> Voxels:
    nx, ny, nz = grid.voxel_counts
    coordinates = []
    for index, valid in enumerate(frame_valid.reshape(-1)):
        if not valid:
            continue
        count = min(shape.voxels_per_map, nx * ny * nz)
        flat = rng.choice(nx * ny * nz, size=count, replace=False)
        zyx = np.stack(np.unravel_index(flat, (nz, ny, nx)), axis=-1)
        coordinates.append(np.concatenate([np.full((count, 1), index), zyx], axis=1))
    stacked = np.concatenate(coordinates).astype(np.int32)
    counts = rng.integers(1, shape.max_points + 1, size=len(stacked)).astype(np.int32)
    size = np.array(grid.voxel_m)
    # A hair inside the voxel, so that float32 rounding cannot move a point to its neighbour.
    inside = rng.uniform(0.01, 0.99, size=(len(stacked), shape.max_points, 3))
    points = np.zeros((len(stacked), shape.max_points, 4), dtype=np.float32)
    points[..., :3] = np.array(grid.range_m[:3]) + (stacked[:, None, :0:-1] + inside) * size
    points[np.arange(shape.max_points)[None] >= counts[:, None]] = 0.0
    return Voxels(
        points=torch.from_numpy(points),
        coordinates=torch.from_numpy(stacked),
        point_counts=torch.from_numpy(counts),
        map_count=frame_valid.size,
    )


def _make_map(grid: BevGrid, samples: int, shape: MadeShape, rng: np.random.Generator) -> MapTokens:
    rows = -(-grid.height // shape.map_stride)
    columns = -(-grid.width // shape.map_stride)
    count = shape.map_segments
    points = np.zeros((samples * count, 10, 7), dtype=np.float32)
    valid = np.ones((samples * count, 10), dtype=bool)
    low, high = np.array(grid.range_m[:2]), np.array(grid.range_m[3:5])
    for row in range(samples * count):
        yaw = rng.uniform(-math.pi, math.pi)
        direction = np.array([math.cos(yaw), math.sin(yaw)])
        xy = rng.uniform(low, high) + np.arange(10)[:, None] * direction
        used = int(rng.integers(5, 11))
        points[row, :, :2], points[row, :, 2:4], points[row, :, 4] = xy, direction, 1 + row % 5
        points[row, :, 5:7] = np.concatenate([xy[:1], xy[:-1]])
        points[row, used:], valid[row, used:] = 0.0, False
    nearest = np.full((samples, rows, columns, 5), -1, dtype=np.int64)
    known = min(5, count)
    for sample in range(samples):
        draws = rng.random((rows, columns, count)).argsort(axis=-1)[..., :known]
        nearest[sample, ..., :known] = draws + sample * count
    return MapTokens(torch.from_numpy(points), torch.from_numpy(valid), torch.from_numpy(nearest))


def _make_targets(grid: BevGrid, truth: Sequence[GroundTruth]) -> Targets:
    """Give every object the anchor of its own cell whose yaw is nearer; the rest is negative."""
    labels = torch.zeros(len(truth), grid.height, grid.width, len(ANCHOR_YAWS), dtype=torch.int8)
    centres = grid.cell_centres()
    index: list[tuple[int, int, int, int]] = []
    codes, futures, valid = [], [], []
    for sample, objects in enumerate(truth):
        for row, box in enumerate(objects.boxes):
            y, x = np.unravel_index(
                int(((centres - box[:2]) ** 2).sum(-1).argmin()), centres.shape[:2]
            )
            anchor = int(abs(math.sin(box[6])) > math.sqrt(0.5))
            if labels[sample, y, x, anchor]:
                continue
            labels[sample, y, x, anchor] = 1
            index.append((sample, int(y), int(x), anchor))
            codes.append(_encode(box, centres[y, x], ANCHOR_YAWS[anchor]))
            futures.append(objects.futures[row] - box[:2])
            valid.append(objects.future_valid[row])
    return Targets(
        labels=labels,
        positive_index=torch.tensor(index, dtype=torch.int64).reshape(-1, 4),
        box_codes=torch.from_numpy(np.array(codes, dtype=np.float32).reshape(-1, 7)),
        trajectories=torch.from_numpy(np.array(futures, dtype=np.float32)),
        trajectory_valid=torch.from_numpy(np.array(valid, dtype=bool)),
    )


def _encode(box: NDArray[np.float32], cell: NDArray[np.float32], yaw: float) -> list[float]:
    length, width, height = ANCHOR_LWH
    diagonal = math.hypot(length, width)
    return [
        float(box[0] - cell[0]) / diagonal,
        float(box[1] - cell[1]) / diagonal,
        float(box[2] - ANCHOR_Z) / height,
        math.log(box[5] / height),
        math.log(box[4] / width),
        math.log(box[3] / length),
        float(box[6]) - yaw,
    ]


def _points(
    voxels: Voxels, sample_of_agent: NDArray[np.int64], hist_frames: int
) -> ReconstructionPoints:
    """Return the points of all frames; those of the past have an age above 0."""
    map_index = voxels.coordinates[:, 0].to(torch.int64)
    slots = torch.arange(voxels.points.shape[1])
    used = slots[None] < voxels.point_counts[:, None]
    agent = (map_index // hist_frames)[:, None].expand_as(used)[used]
    age = hist_frames - 1 - (map_index % hist_frames)[:, None].expand_as(used)[used]
    return ReconstructionPoints(
        xyz=voxels.points[used][:, :3],
        sample=torch.from_numpy(sample_of_agent)[agent],
        agent=agent,
        age=age,
    )
