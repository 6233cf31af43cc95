"""Files of each layout from ``AgentFrame`` and points: what the readers beside this undo.

Labels keep the full precision of float64. Clouds keep float32; the intensity of a ``.pcd`` has 8
bit, as the data sets have it. What an ``AgentFrame`` does not know is left out (cameras, GPS) or
written as recordings that never filled it do (``ego_speed`` 0).
"""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.opv2v import mirrored_objects, mirrored_points, mirrored_pose
from turbotrain_plugin.data.formats.pcd import pcd_bytes
from turbotrain_plugin.data.formats.v2v4real import moved_objects
from turbotrain_plugin.geometry.poses import invert_rigid, matrix_to_pose
from turbotrain_plugin.structures import AgentFrame

__all__ = [
    "WRITERS",
    "OPV2VWriter",
    "SequenceWriter",
    "V2V4RealWriter",
    "V2XPnPSeqWriter",
]


class SequenceWriter(ABC):
    """Writes the two files of a frame."""

    cloud: ClassVar[str]
    """Suffix of clouds."""
    stem_step: ClassVar[int] = 1
    """File numbers between two frames of 10 Hz."""
    roadside_units: ClassVar[bool] = True
    """Whether the layout has roadside units."""

    def write_frame(
        self, scene_folder: Path, frame: AgentFrame, points: NDArray[np.float32] | None
    ) -> None:
        """Write ``<scene>/<agent>/<number>.yaml`` and the cloud; missing folders are made.

        Args:
            scene_folder: The scene.
            frame: Pose and labels, world frame.
            points: (P, 4) x, y, z, intensity in the agent's LiDAR frame; None writes no cloud.

        Raises:
            OSError: When a file cannot be written.
        """
        folder = scene_folder / str(frame.agent_id)
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{frame.frame * self.stem_step:06d}"
        (folder / f"{stem}.yaml").write_text(self.label_text(frame), encoding="utf-8")
        if points is not None:
            (folder / f"{stem}.{self.cloud}").write_bytes(self.cloud_bytes(points))

    @abstractmethod
    def label_text(self, frame: AgentFrame) -> str:
        """Return the label file of a frame."""

    @abstractmethod
    def cloud_bytes(self, points: NDArray[np.float32]) -> bytes:
        """Return the cloud file of points."""


class V2XPnPSeqWriter(SequenceWriter):
    """V2XPnP-Seq and V2X-Real: poses of six numbers, boxes in the world, float32 clouds."""

    cloud: ClassVar[str] = "bin"

    def label_text(self, frame: AgentFrame) -> str:
        """Return the label file of a frame."""
        pose = _list(matrix_to_pose(frame.world_SE3_lidar))
        return (
            f"ego_speed: 0.0\ninfra: {'true' if frame.is_infrastructure else 'false'}\n"
            f"lidar_pose: {pose}\ntrue_ego_pose: {pose}\n{_objects(frame, _values(frame))}"
        )

    def cloud_bytes(self, points: NDArray[np.float32]) -> bytes:
        """Return the cloud file of points."""
        return points.astype("<f4").tobytes()


class OPV2VWriter(SequenceWriter):
    """OPV2V and V2XSet: left-handed, the box offset in ``center``, file numbers step by two.

    ``obj_type`` is written although these data sets have none: hosts pass over it and take every
    object for a car, our reader keeps the class.
    """

    cloud: ClassVar[str] = "pcd"
    stem_step: ClassVar[int] = 2

    def label_text(self, frame: AgentFrame) -> str:
        """Return the label file of a frame."""
        pose = _list(mirrored_pose(matrix_to_pose(frame.world_SE3_lidar)))
        objects = _objects(frame, mirrored_objects(_values(frame)), on_ground=True)
        return (
            f"ego_speed: 0.0\nlidar_pose: {pose}\npredicted_ego_pos: {pose}\n"
            f"true_ego_pos: {pose}\n{objects}"
        )

    def cloud_bytes(self, points: NDArray[np.float32]) -> bytes:
        """Return the cloud file of points."""
        return pcd_bytes(mirrored_points(points))


class V2V4RealWriter(SequenceWriter):
    """V2V4Real: the pose as a NumPy matrix, boxes in the agent's LiDAR frame, ``ass_id``."""

    cloud: ClassVar[str] = "pcd"
    roadside_units: ClassVar[bool] = False

    def label_text(self, frame: AgentFrame) -> str:
        """Return the label file of a frame."""
        pose = frame.world_SE3_lidar
        own = moved_objects(invert_rigid(pose), _values(frame))
        return (
            f"ego_speed: 0.0\nlidar_pose: &id001 {_numpy_matrix(pose)}true_ego_pos: *id001\n"
            f"{_objects(frame, own, shared_ids=True)}"
        )

    def cloud_bytes(self, points: NDArray[np.float32]) -> bytes:
        """Return the cloud file of points."""
        return pcd_bytes(points)


WRITERS: Final[dict[str, type[SequenceWriter]]] = {
    "v2xpnp_seq": V2XPnPSeqWriter,
    "v2xreal": V2XPnPSeqWriter,
    "opv2v": OPV2VWriter,
    "v2xset": OPV2VWriter,
    "v2v4real": V2V4RealWriter,
}
"""Format name to its writer; the same names as ``FORMATS``."""


# ------------------------------------------------------------------------------------------- texts


def _values(frame: AgentFrame) -> NDArray[np.float64]:
    """Return (M, 9) x, y, z, length, width, height, yaw, roll, pitch."""
    return np.concatenate([frame.world_boxes, frame.roll_pitch_rad], axis=1)


def _objects(
    frame: AgentFrame,
    values: NDArray[np.float64],
    *,
    on_ground: bool = False,
    shared_ids: bool = False,
) -> str:
    """Return ``vehicles``; the location at the centre of the box, or at its bottom."""
    if not len(values):
        return "vehicles: {}\n"
    lines = ["vehicles:"]
    for object_id, row, kind in zip(
        frame.object_ids.tolist(), values, frame.raw_types, strict=True
    ):
        up = np.array([0.0, 0.0, row[5] / 2 if on_ground else 0.0])
        lines += [
            f"  {object_id}:",
            f"    angle: {_list(np.rad2deg(row[[7, 6, 8]]))}",
            *([f"    ass_id: {object_id}"] if shared_ids and object_id >= 0 else []),
            f"    center: {_list(up)}",
            f"    extent: {_list(row[3:6] / 2)}",
            f"    location: {_list(row[:3] - up)}",
            f"    obj_type: {json.dumps(kind, ensure_ascii=False)}",
        ]
    return "\n".join(lines) + "\n"


def _list(values: NDArray[np.float64]) -> str:
    # Never an exponent: plain YAML readers take 1e-05 for a text.
    return f"[{', '.join(np.format_float_positional(v, trim='0') for v in values)}]"


def _numpy_matrix(matrix: NDArray[np.float64]) -> str:
    """Return a (4, 4) matrix as Python's full dumper writes it, with the names of NumPy 1."""
    raw = base64.b64encode(np.ascontiguousarray(matrix, dtype="<f8").tobytes()).decode("ascii")
    text = "\n".join(f"    {raw[i : i + 76]}" for i in range(0, len(raw), 76))
    return (
        "!!python/object/apply:numpy.core.multiarray._reconstruct\n"
        "  args:\n  - !!python/name:numpy.ndarray ''\n  - !!python/tuple [0]\n"
        "  - !!binary |\n    Yg==\n"
        "  state: !!python/tuple\n  - 1\n  - !!python/tuple [4, 4]\n"
        "  - !!python/object/apply:numpy.dtype\n    args: [f8, false, true]\n"
        "    state: !!python/tuple [3, <, null, null, null, -1, -1, 0]\n"
        f"  - false\n  - !!binary |\n{text}\n"
    )
