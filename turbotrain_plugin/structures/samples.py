"""One agent at one time, and a window of several agents with its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
