"""OPV2V and V2XSet: ``root/<split>/<scenario>/<agent>/<frame>.{yaml,pcd}``, simulated in CARLA.

    root/{train,validate,test,...}/2021_08_16_22_26_54/{641,650,-1}/000068.yaml, 000068.pcd

Simulated at 20 Hz and saved at 10 Hz, so that file numbers step by two. The world and the LiDAR
frames are left-handed (y to the right); the reader mirrors y, which turns yaw and roll round:
with M = diag(1, -1, 1), R(roll, yaw, pitch) becomes M R M = R(-roll, -yaw, pitch).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.label_values import (
    LabelledObjects,
    labelled_objects,
    make_frame,
    numbers,
)
from turbotrain_plugin.data.formats.pcd import read_pcd
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.data.formats.yaml_text import read_labels
from turbotrain_plugin.geometry.poses import pose_to_matrix
from turbotrain_plugin.structures import AgentFrame

__all__ = ["OPV2VReader", "mirrored_objects", "mirrored_points", "mirrored_pose"]


def mirrored_pose(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (6,) x, y, z, roll, yaw, pitch in the mirrored frame: y, roll and yaw negated."""
    return pose * [1.0, -1.0, 1.0, -1.0, -1.0, 1.0]


def mirrored_objects(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (M, 9) values of ``LabelledObjects`` in the mirrored frame."""
    return values * [1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0]


def mirrored_points(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (P, 4) points in the mirrored frame."""
    return points * np.array([1.0, -1.0, 1.0, 1.0], dtype=np.float32)


class OPV2VReader(SequenceReader):
    """Reader of OPV2V and V2XSet; see ``SequenceReader``."""

    clouds: ClassVar[tuple[str, ...]] = ("pcd",)
    ticks: ClassVar[bool] = True
    labels_kept_as: ClassVar[str] = "opv2v"

    @staticmethod
    def read_label_file(path: Path, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels; objects are cars, there being no ``obj_type``."""
        content = read_labels(path)
        pose = mirrored_pose(np.array(numbers(content, "lidar_pose", 6, str(path))))
        found = labelled_objects(content, path)
        objects = LabelledObjects(found.ids, mirrored_objects(found.values), found.raw_types)
        return make_frame(agent_id, frame, pose_to_matrix(pose), objects)

    @staticmethod
    def read_cloud_file(path: Path) -> NDArray[np.float32]:
        """Return the points of a ``.pcd``, right-handed."""
        return mirrored_points(read_pcd(path))
