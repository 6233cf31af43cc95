"""Faults put on purpose into a copy of a clean root, of any format that can be written.

planted = Planted(shutil.copytree(clean, tmp_path / "root"))
planted.edit(lambda frame, points: (moved(frame), points), agents=[1], frames=[10, 15])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats import FORMATS, SceneIndex, SequenceReader
from turbotrain_plugin.data.formats.folders import scene_folders, split_folders
from turbotrain_plugin.data.formats.writers import WRITERS
from turbotrain_plugin.geometry.poses import matrix_to_pose, pose_to_matrix
from turbotrain_plugin.structures import AgentFrame

Cloud = NDArray[np.float32]
F64 = NDArray[np.float64]
Change = Callable[[AgentFrame, Cloud], tuple[AgentFrame, Cloud]]


@dataclass(frozen=True)
class Planted:
    """A root of one scene, to be spoilt."""

    root: Path
    format: str = "v2xpnp_seq"

    @property
    def reader(self) -> type[SequenceReader]:
        return FORMATS[self.format]

    @cached_property
    def scene(self) -> SceneIndex:
        """The scene as it was before anything was planted."""
        (folder,) = [one for split in split_folders(self.root) for one in scene_folders(split)]
        return self.reader.index(folder)

    @property
    def folder(self) -> Path:
        return self.scene.folder

    @property
    def frames(self) -> list[int]:
        """Frames of any agent."""
        return sorted({f for agent in self.scene.agents.values() for f in agent.cloud_frames})

    def label(self, agent_id: int, frame: int) -> Path:
        return self.scene.file(agent_id, frame, "yaml")

    def cloud(self, agent_id: int, frame: int) -> Path:
        return self.reader.cloud_file(self.scene, agent_id, frame)

    def remove(self, agent_id: int, *frames: int) -> None:
        """Remove labels and clouds."""
        for frame in frames:
            self.label(agent_id, frame).unlink()
            self.cloud(agent_id, frame).unlink()

    def edit(
        self,
        change: Change,
        agents: Collection[int] | None = None,
        frames: Collection[int] | None = None,
    ) -> None:
        """Read, change and write the frames of some agents (None: all)."""
        writer = WRITERS[self.format]()
        for agent_id, found in self.scene.agents.items():
            for number in found.cloud_frames:
                if (agents is None or agent_id in agents) and (frames is None or number in frames):
                    label, cloud = self.label(agent_id, number), self.cloud(agent_id, number)
                    frame = self.reader.read_label_file(label, agent_id, number)
                    points = self.reader.read_cloud_file(cloud)
                    new, new_points = change(frame, points)
                    if new is not frame:
                        label.write_text(writer.label_text(new), encoding="utf-8")
                    if new_points is not points:
                        cloud.write_bytes(writer.cloud_bytes(new_points))

    def edit_text(self, agent_id: int, frame: int, old: str, new: str) -> None:
        """Replace the first ``old`` of a label file."""
        path = self.label(agent_id, frame)
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{path} holds no {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")


def on_boxes(change: Callable[[F64], F64]) -> Change:
    """Return an edit of the (M, 7) world boxes."""

    def edit(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        return dataclasses.replace(frame, world_boxes=change(frame.world_boxes.copy())), points

    return edit


def on_object(object_id: int, change: Callable[[F64], F64]) -> Change:
    """Return an edit of one object's (7,) world box, where it is labelled."""

    def edit(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        boxes = frame.world_boxes.copy()
        for row in np.flatnonzero(frame.object_ids == object_id).tolist():
            boxes[row] = change(boxes[row])
        return dataclasses.replace(frame, world_boxes=boxes), points

    return edit


def on_pose(change: Callable[[F64], F64]) -> Change:
    """Return an edit of the (4, 4) pose; boxes stay where they are in the world."""

    def edit(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        return dataclasses.replace(frame, world_SE3_lidar=change(frame.world_SE3_lidar)), points

    return edit


def on_points(change: Callable[[Cloud], Cloud]) -> Change:
    """Return an edit of the (P, 4) cloud."""
    return lambda frame, points: (frame, change(points.copy()))


def without_objects(frame: AgentFrame) -> AgentFrame:
    return dataclasses.replace(
        frame,
        object_ids=frame.object_ids[:0],
        world_boxes=frame.world_boxes[:0],
        roll_pitch_rad=frame.roll_pitch_rad[:0],
        raw_types=(),
    )


def renamed(frame: AgentFrame, number: int, kind: str) -> AgentFrame:
    pairs = zip(frame.object_ids.tolist(), frame.raw_types, strict=True)
    return dataclasses.replace(
        frame, raw_types=tuple(kind if one == number else old for one, old in pairs)
    )


def with_twin(frame: AgentFrame, number: int) -> AgentFrame:
    """Return a frame in which the object has a second id 0.4 m beside it."""
    (rows,) = np.nonzero(frame.object_ids == number)
    return dataclasses.replace(
        frame,
        object_ids=np.concatenate([frame.object_ids, frame.object_ids[rows] + 5000]),
        world_boxes=np.concatenate(
            [frame.world_boxes, frame.world_boxes[rows] + [0.4, 0, 0, 0, 0, 0, 0]]
        ),
        roll_pitch_rad=np.concatenate([frame.roll_pitch_rad, frame.roll_pitch_rad[rows]]),
        raw_types=frame.raw_types + tuple(frame.raw_types[row] for row in rows.tolist()),
    )


def half_turn(box: F64) -> F64:
    return np.concatenate([box[:6], box[6:] + np.pi])


def shifted(pose: F64, x_m: float = 0.0, z_m: float = 0.0) -> F64:
    moved = pose.copy()
    moved[:3, 3] += [x_m, 0, z_m]
    return moved


def turned(pose: F64, roll_deg: float) -> F64:
    return pose_to_matrix(matrix_to_pose(pose) + np.array([0, 0, 0, roll_deg, 0, 0]))
