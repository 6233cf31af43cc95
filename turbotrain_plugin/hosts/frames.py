"""Frames of our readers as a host's own code takes them: pose, speed and boxes by name, points.

A host asks two functions for the two files of a frame. A ``FrameFile`` goes where it keeps their
paths; the functions know one when they see one. OpenCOOD and HEAL are written for CARLA's
left-handed axes (y to the right): what they get is mirrored there, as the OPV2V writer does, so
that weights trained on OPV2V fit. V2X-Real and CooPre read right-handed recordings as they are.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.disturb import FRAME_S
from turbotrain_plugin.data.files import read_bytes
from turbotrain_plugin.data.formats import OPV2VReader, ScenarioReader, SceneIndex, V2XPnPSeqReader
from turbotrain_plugin.data.formats.opv2v import mirrored_objects, mirrored_points, mirrored_pose
from turbotrain_plugin.geometry.poses import matrix_to_pose

__all__ = ["FrameFile", "HostFrames"]

_SPEED: Final = re.compile(
    rb"^ego_speed:[ \t]*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)[ \t]*\r?$", re.MULTILINE
)
_KMH: Final = 3.6
_LONGEST_STEP: Final = 10
"""Frames between two poses that a speed is taken from."""


@dataclass(frozen=True, slots=True)
class HostFrames:
    """Reads frames for a host.

    Attributes:
        reader: Of the files.
        labels: The same, mended where it was asked for.
        left_handed: Whether the host's axes are CARLA's.
        classes: Raw class names that are objects; empty: all.
    """

    reader: ScenarioReader
    labels: ScenarioReader
    left_handed: bool
    classes: tuple[str, ...] = ()

    @property
    def native(self) -> bool:
        """Whether the files are in the host's own layout: OPV2V's, or V2X-Real's."""
        return isinstance(self.reader, OPV2VReader if self.left_handed else V2XPnPSeqReader)

    def params(self, scene: SceneIndex, agent_id: int, frame: int) -> dict[str, Any]:
        """Return what a host reads from a label file; a new dictionary at every call.

        ``lidar_pose`` is x, y, z in metres and roll, yaw, pitch in degrees; of every object
        ``location`` is the centre of the box in metres, ``extent`` holds half sizes and ``angle``
        roll, yaw, pitch in degrees.
        """
        found = self.labels.read_frame(scene, agent_id, frame)
        pose = matrix_to_pose(found.world_SE3_lidar)
        values = np.concatenate([found.world_boxes, found.roll_pitch_rad], axis=1)
        if self.left_handed:
            pose, values = mirrored_pose(pose), mirrored_objects(values)
        angles = np.rad2deg(values[:, [7, 6, 8]]).tolist()
        centres, halves = values[:, :3].tolist(), (values[:, 3:6] / 2.0).tolist()
        objects = zip(
            found.object_ids.tolist(), centres, halves, angles, found.raw_types, strict=True
        )
        return {
            "lidar_pose": pose.tolist(),
            "true_ego_pos": pose.tolist(),
            "ego_speed": self.speed_kmh(scene, agent_id, frame),
            "vehicles": {
                number: {
                    "location": centre,
                    "center": [0.0, 0.0, 0.0],
                    "extent": half,
                    "angle": angle,
                    "obj_type": kind,
                }
                for number, centre, half, angle, kind in objects
                if not self.classes or kind in self.classes
            },
        }

    def points(self, scene: SceneIndex, agent_id: int, frame: int) -> NDArray[np.float32]:
        """Return (P, 4) x, y, z, intensity in the agent's LiDAR frame, the host's axes."""
        points = self.reader.read_points(scene, agent_id, frame)
        return mirrored_points(points) if self.left_handed else points

    def speed_kmh(self, scene: SceneIndex, agent_id: int, frame: int) -> float:
        """Return the agent's speed in km/h, as the hosts take ``ego_speed`` to be.

        Of files that the host could read itself it is the number there, as for the host. Elsewhere
        it is often 0 and its unit open, so that it is taken from the poses before and after.
        """
        if self.native:
            recorded = _SPEED.search(read_bytes(scene.file(agent_id, frame, "yaml")))
            if recorded is not None:
                return float(recorded[1])
        frames = scene.agents[agent_id].label_frames
        place = bisect_left(frames, frame)
        around = [
            one
            for one in frames[max(place - 1, 0) : place + 2]
            if abs(one - frame) <= _LONGEST_STEP
        ]
        first, last = around[0], around[-1]
        if first == last:
            return 0.0
        ends = [self.labels.read_frame(scene, agent_id, one) for one in (first, last)]
        way = ends[1].world_SE3_lidar[:3, 3] - ends[0].world_SE3_lidar[:3, 3]
        return float(np.linalg.norm(way)) / ((last - first) * FRAME_S) * _KMH


class FrameFile(str):
    """In place of the path of a label file or a cloud: a text, as the hosts expect.

    No such file exists, so that nothing of theirs finds another file beside it.
    """

    frames: HostFrames
    scene: SceneIndex
    agent_id: int
    frame: int

    def __new__(cls, frames: HostFrames, scene: SceneIndex, agent_id: int, frame: int) -> FrameFile:
        """Name a frame."""
        file = super().__new__(cls, scene.file(agent_id, frame, "frame"))
        file.frames, file.scene, file.agent_id, file.frame = frames, scene, agent_id, frame
        return file

    def params(self) -> dict[str, Any]:
        """Return the content of the label file."""
        return self.frames.params(self.scene, self.agent_id, self.frame)

    def points(self, *, zero_intensity: bool = False) -> NDArray[np.float32]:
        """Return the cloud."""
        points = self.frames.points(self.scene, self.agent_id, self.frame)
        if zero_intensity:
            points[:, 3] = 0.0
        return points
