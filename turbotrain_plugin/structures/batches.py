"""What a network and its losses read: the samples of a batch, stacked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from turbotrain_plugin.structures.samples import GroundTruth


@dataclass(slots=True)
class Voxels:
    """Voxelised points of all (agent, frame) maps of a batch; map index = agent * T + frame.

    Attributes:
        points: (V, P, 4) float32, x, y, z in the ego frame and intensity, zero padded.
        coordinates: (V, 4) int32: map index, z, y, x.
        point_counts: (V,) int32, filled slots.
        map_count: Number of maps, sum A * T.
    """

    points: Tensor
    coordinates: Tensor
    point_counts: Tensor
    map_count: int


@dataclass(slots=True)
class MapTokens:
    """Map segments of a batch and, for every (strided) BEV cell, its nearest ones.

    Attributes:
        points: (S, 10, 7) float32 in the ego frame of its sample (all samples stacked).
        valid: (S, 10) bool.
        nearest: (B, Hm, Wm, 5) int64, rows of ``points``; -1 where fewer segments exist.
    """

    points: Tensor
    valid: Tensor
    nearest: Tensor


@dataclass(slots=True)
class Targets:
    """Anchor and trajectory targets. N positive anchors over the batch.

    Attributes:
        labels: (B, H, W, anchors) int8: 1 positive, 0 negative, -1 between the thresholds.
        positive_index: (N, 4) int64: sample, row, column, anchor.
        box_codes: (N, 7) float32 residuals x, y, z, h, w, l, yaw.
        trajectories: (N, F, 2) float32, metres from the matched box centre at t = 0, ego axes.
        trajectory_valid: (N, F) bool.
    """

    labels: Tensor
    positive_index: Tensor
    box_codes: Tensor
    trajectories: Tensor
    trajectory_valid: Tensor


@dataclass(slots=True)
class ReconstructionPoints:
    """Unmasked points of all agents in the current ego frame (what pretraining rebuilds).

    Attributes:
        xyz: (P, 3) float32.
        sample: (P,) int64, sample index.
        agent: (P,) int64, index into the stacked agents (sum A).
        age: (P,) int64, frames ago, 0 for the current frame.
    """

    xyz: Tensor
    sample: Tensor
    agent: Tensor
    age: Tensor


@dataclass(slots=True)
class Batch:
    """What a model eats: the agents of all samples stacked, the ego first in each sample.

    Attributes:
        record_len: (B,) int64, agents per sample.
        agent_types: (sum A,) int64.
        frame_valid: (sum A, T) bool.
        time_offset_s: (sum A,) float32.
        ego_SE3_agent: (sum A, T, 4, 4) float32.
        voxels: Points of every agent and frame on the voxel grid.
        map: Map tokens or None.
        targets: Supervision or None (unlabelled or evaluation only).
        reconstruction: Raw current points, only for pretraining.
        truth: One entry a sample (None for unlabelled logs).
        keys: (scene, frame, ego id) of each sample, for messages.
        sent_points: (B,) int64, points of the busiest neighbour if clouds were joined, else None.
        joined: The same samples with joined clouds, for a teacher; None without one.
    """

    record_len: Tensor
    agent_types: Tensor
    frame_valid: Tensor
    time_offset_s: Tensor
    ego_SE3_agent: Tensor
    voxels: Voxels
    map: MapTokens | None
    targets: Targets | None
    reconstruction: ReconstructionPoints | None
    truth: list[GroundTruth | None]
    keys: list[tuple[str, int, int]]
    sent_points: Tensor | None = None
    joined: Batch | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return move_tensors(self, torch.device(device))


_T = TypeVar("_T")


def move_tensors(value: _T, device: torch.device) -> _T:
    """Return ``value`` with the tensors inside dataclasses, lists, tuples and mappings moved."""
    moved: Any = value
    if isinstance(value, Tensor):
        # Nobody waits for a copy towards the CPU: it could be read before it is there.
        moved = value.to(device, non_blocking=device.type != "cpu")
    elif is_dataclass(value) and not isinstance(value, type):
        moved = type(value)(
            **{f.name: move_tensors(getattr(value, f.name), device) for f in fields(value)}
        )
    elif isinstance(value, Mapping):
        moved = {key: move_tensors(item, device) for key, item in value.items()}
    elif isinstance(value, list):
        moved = [move_tensors(item, device) for item in value]
    return cast(_T, moved)
