"""What crosses the doors between rooms: plain dataclasses, no behaviour beyond shape and device.

Letters: B samples, A agents of one sample, T past frames incl. the current (oldest first, current
last), F future steps, M objects, P points, V voxels, C channels, H x W the BEV grid (H = y, W = x).
``sum A`` is the number of agents of all samples of a batch, stacked, the ego first in each sample.
A box is (x, y, z, length, width, height, yaw): centre and full sizes in metres, yaw in radians
counter-clockwise from +x. Everything is right-handed, x forward, y left, z up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.errors import UserError

__all__ = [
    "INFRASTRUCTURE",
    "VEHICLE",
    "AgentFrame",
    "Batch",
    "DetectedObjects",
    "FrameMaps",
    "FusionContext",
    "FusionOutput",
    "GroundTruth",
    "MapSegments",
    "MapTokens",
    "Predictions",
    "Reconstruction",
    "ReconstructionPoints",
    "Sample",
    "Targets",
    "TaskLosses",
    "UserError",
    "Voxels",
    "move_tensors",
]

VEHICLE: Final = 0
"""Agent type of a connected automated vehicle (CAV)."""
INFRASTRUCTURE: Final = 1
"""Agent type of a roadside unit."""


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """One agent at one time: pose and labels; its points are read apart, being large.

    Attributes:
        agent_id: Folder number; negative for roadside units.
        is_infrastructure: Whether the agent is a roadside unit.
        frame: Position on the 10 Hz grid of the scene.
        world_SE3_lidar: (4, 4) float64, LiDAR frame to world.
        object_ids: (M,) int64, unique in the scene.
        world_boxes: (M, 7) float64, full sizes.
        roll_pitch_rad: (M, 2) float64.
        raw_types: M class names as written in the file.
    """

    agent_id: int
    is_infrastructure: bool
    frame: int
    world_SE3_lidar: NDArray[np.float64]
    object_ids: NDArray[np.int64]
    world_boxes: NDArray[np.float64]
    roll_pitch_rad: NDArray[np.float64]
    raw_types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MapSegments:
    """Lane centre lines and boundaries cut into segments of 10 points.

    Attributes:
        points: (S, 10, 7) float32: x, y, dx, dy, type, x_pre, y_pre; zero where padded.
        valid: (S, 10) bool.
    """

    points: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Objects of one sample at the current time, in the ego LiDAR frame.

    Attributes:
        boxes: (M, 7) float32.
        object_ids: (M,) int64.
        futures: (M, F, 2) float32, centre x, y at +0.5 s ... in the ego frame of the current time.
        future_valid: (M, F) bool.
        past: (M, T, 2) float32, centre x, y of the history, current last.
        past_valid: (M, T) bool.
        point_counts: (M,) int64, current points of all kept agents inside the box.
    """

    boxes: NDArray[np.float32]
    object_ids: NDArray[np.int64]
    futures: NDArray[np.float32]
    future_valid: NDArray[np.bool_]
    past: NDArray[np.float32]
    past_valid: NDArray[np.bool_]
    point_counts: NDArray[np.int64]


@dataclass(slots=True)
class Sample:
    """One training window as numpy arrays, in the ego LiDAR frame of the current time.

    Attributes:
        scene: Scene name.
        frame: Current position on the 10 Hz grid.
        agent_ids: A agent folder numbers, ego first.
        agent_types: (A,) int64, ``VEHICLE`` or ``INFRASTRUCTURE``.
        frame_valid: (A, T) bool, False where the frame is missing.
        ego_SE3_agent: (A, T, 4, 4) float32, agent LiDAR at t to the current ego frame.
        time_offset_s: (A,) float32, age of the agent's newest frame (0 when synchronous).
        world_SE3_ego: (4, 4) float64 at the current time.
        points: A lists of T arrays (P, 4) float32: x, y, z in the ego frame, intensity (0).
        truth: Labels; None for unlabelled logs.
        map: Map segments in the ego frame; None without a map.
    """

    scene: str
    frame: int
    agent_ids: tuple[int, ...]
    agent_types: NDArray[np.int64]
    frame_valid: NDArray[np.bool_]
    ego_SE3_agent: NDArray[np.float32]
    time_offset_s: NDArray[np.float32]
    world_SE3_ego: NDArray[np.float64]
    points: list[list[NDArray[np.float32]]]
    truth: GroundTruth | None
    map: MapSegments | None


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
    """Unmasked points of the current frame, all agents, ego frame (what pretraining rebuilds).

    Attributes:
        xyz: (P, 3) float32.
        sample: (P,) int64, sample index.
        agent: (P,) int64, index into the stacked agents (sum A).
    """

    xyz: Tensor
    sample: Tensor
    agent: Tensor


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


@dataclass(slots=True)
class FrameMaps:
    """Every agent's maps of single frames, as they are before temporal fusion, in the ego grid.

    Attributes:
        maps: (sum A, T, C, H, W), current frame last.
        valid: (sum A, T) bool.
        interval_s: Seconds between two frames.
        cell_m: Size of a cell along x and y.
    """

    maps: Tensor
    valid: Tensor
    interval_s: float
    cell_m: tuple[float, float]


@dataclass(slots=True)
class FusionContext:
    """What an agent-fusion module knows beside the features.

    Attributes:
        record_len: (B,) int64.
        agent_types: (sum A,) int64.
        roi: (sum A, 1, H, W) bool, cells the agent could see (its grid warped to the ego's).
        time_offset_s: (sum A,) float32.
        ego_SE3_agent: (sum A, 4, 4) float32 at the current time.
        frames: The frames behind the features; None unless the fusion asks (``needs_frames``).
        labels: (B, H, W, anchors) int8 as in ``Targets``; None where nothing is supervised.
        sent_points: (B,) int64 as in ``Batch``.
        taught: (B, C, H, W), a teacher's map in place of the fused one; None without teacher.
    """

    record_len: Tensor
    agent_types: Tensor
    roi: Tensor
    time_offset_s: Tensor
    ego_SE3_agent: Tensor
    frames: FrameMaps | None = None
    labels: Tensor | None = None
    sent_points: Tensor | None = None
    taught: Tensor | None = None


@dataclass(slots=True)
class FusionOutput:
    """What agent fusion returns.

    Attributes:
        features: (B, C, H, W); with ``rows``, (sum of rows, C, H, W).
        auxiliary_losses: Extra scalar losses by name.
        message_bytes: Bytes of features one neighbour sends per frame, before ``Compressor``.
        side_bytes: Bytes it sends beside them, which ``Compressor`` does not touch.
        rows: (B,) int64, maps per sample, ego's first, if agents stay apart (late); else None.
    """

    features: Tensor
    auxiliary_losses: dict[str, Tensor]
    message_bytes: int
    side_bytes: int = 0
    rows: Tensor | None = None


@dataclass(slots=True)
class Predictions:
    """Raw head outputs.

    Attributes:
        class_logits: (B, H, W, anchors).
        box_codes: (B, H, W, anchors, 7), residuals x, y, z, h, w, l, yaw.
        trajectories: (B, H, W, anchors, F, 2) metres from the centre, or None.
        auxiliary_losses: Extra scalar losses of fusion modules (they join the detection task).
        message_bytes: Bytes one neighbour sends per frame.
        rows: (B,) int64 as in ``FusionOutput``: the outputs are one per row in place of B.
    """

    class_logits: Tensor
    box_codes: Tensor
    trajectories: Tensor | None
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)
    message_bytes: int = 0
    rows: Tensor | None = None


@dataclass(slots=True)
class DetectedObjects:
    """Decoded objects of one sample, by falling score.

    Attributes:
        boxes: (N, 7) float32, ego frame.
        scores: (N,) float32 in [0, 1].
        trajectories: (N, F, 2) float32, absolute x, y in the ego frame; None without prediction.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    trajectories: NDArray[np.float32] | None


@dataclass(slots=True)
class TaskLosses:
    """Ordered task name -> scalar loss, plus named parts for the log.

    Attributes:
        tasks: What is optimised, for instance ``detection`` and ``prediction``.
        parts: Detached components, for instance ``cls``, ``reg``; only logged.
    """

    tasks: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return the plain sum of the tasks."""
        return torch.stack([loss.reshape(()) for loss in self.tasks.values()]).sum()


@dataclass(slots=True)
class Reconstruction:
    """Outputs and targets of masked reconstruction.

    Attributes:
        points: (B, H, W, 20, 3) normalised predictions in cell units, or None when switched off.
        occupancy: (B, H, W, bins) logits, or None when switched off.
        region: (B, H, W) bool, cells the point loss is taken over.
        masked: (V,) bool, voxels hidden from the encoder.
    """

    points: Tensor | None
    occupancy: Tensor | None
    region: Tensor
    masked: Tensor


_T = TypeVar("_T")


def move_tensors(value: _T, device: torch.device) -> _T:
    """Return ``value`` with the tensors inside dataclasses, lists, tuples and mappings moved."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = type(value)(
            **{f.name: move_tensors(getattr(value, f.name), device) for f in fields(value)}
        )
    elif isinstance(value, Mapping):
        moved = {key: move_tensors(item, device) for key, item in value.items()}
    elif isinstance(value, list):
        moved = [move_tensors(item, device) for item in value]
    return cast(_T, moved)
