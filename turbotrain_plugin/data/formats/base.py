"""What every on-disk layout looks like from outside: scenes, their frames, and how to read them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.vector_map import VectorMap
from turbotrain_plugin.structures import AgentFrame

__all__ = ["AgentFrames", "ScenarioReader", "SceneIndex"]


@dataclass(frozen=True, slots=True)
class AgentFrames:
    """Which frames of an agent exist, as positions on the 10 Hz grid of the scene, sorted.

    Attributes:
        cloud_frames: Frames with a point cloud and labels; only these can be inputs.
        label_frames: Frames with labels, with or without a cloud; futures are read from these.
    """

    cloud_frames: tuple[int, ...]
    label_frames: tuple[int, ...]

    def has_cloud(self, frame: int) -> bool:
        """Return whether the frame has a point cloud and labels."""
        return _contains(self.cloud_frames, frame)

    def newest_cloud(self, frame: int) -> int | None:
        """Return the last frame up to ``frame`` that has a point cloud, None before the first."""
        place = bisect_right(self.cloud_frames, frame)
        return self.cloud_frames[place - 1] if place else None

    def has_labels(self, frame: int) -> bool:
        """Return whether the frame has labels."""
        return _contains(self.label_frames, frame)


@dataclass(frozen=True, slots=True)
class SceneIndex:
    """One recording of several agents.

    Attributes:
        name: Scene name, unique in its split.
        split: ``train``, ``validate``, ``test``, or the folder's own name where it says neither.
        folder: Where the agent folders are.
        root: Folder that holds the splits and the map.
        agents: Agent id (negative: roadside unit) to its frames; vehicles first, then roadside
            units, each by rising absolute id. Agents need not have the same frames.
        stem_step: File numbers between two frames of 10 Hz.
        stem_offset: File number of frame 0.
    """

    name: str
    split: str
    folder: Path
    root: Path
    agents: Mapping[int, AgentFrames]
    stem_step: int = 1
    stem_offset: int = 0

    def file(self, agent_id: int, frame: int, suffix: str) -> Path:
        """Return where a file of an agent's frame is or would be, such as ``1/000068.yaml``."""
        stem = self.stem_offset + self.stem_step * frame
        return self.folder / str(agent_id) / f"{stem:06d}.{suffix}"

    @property
    def has_infrastructure(self) -> bool:
        """Return whether a roadside unit took part."""
        return any(agent_id < 0 for agent_id in self.agents)


class ScenarioReader(Protocol):
    """Reads one on-disk layout. To add a layout, write this class and a line in ``FORMATS``."""

    @property
    def scenes(self) -> tuple[SceneIndex, ...]:
        """All scenes, sorted by split folder and name."""
        ...

    def read_frame(self, scene: SceneIndex, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels of one of the agent's ``label_frames``.

        Raises:
            UserError: When the label file is damaged.
        """
        ...

    def read_points(self, scene: SceneIndex, agent_id: int, frame: int) -> NDArray[np.float32]:
        """Return (P, 4) x, y, z, intensity in the agent's own LiDAR frame, finite rows only.

        Raises:
            UserError: When the cloud is missing or damaged.
        """
        ...

    def read_map(self, scene: SceneIndex) -> VectorMap | None:
        """Return the vector map of the scene's area; None where the root has none.

        Raises:
            UserError: When the map file is damaged or unsafe.
        """
        ...


def _contains(frames: tuple[int, ...], frame: int) -> bool:
    place = bisect_left(frames, frame)
    return place < len(frames) and frames[place] == frame
