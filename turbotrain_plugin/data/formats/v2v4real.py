"""V2V4Real: ``root/<split>/testoutput_CAV_data_<time>_<n>/{0,1}/<frame>.{yaml,pcd}`` at 10 Hz.

Two real cars, right-handed. Poses are 4 x 4 matrices, written as NumPy arrays (``numpy_yaml``);
boxes are in the LiDAR frame of the agent whose file they are in and are moved to the world here.

``ass_id`` is the id an object has in the files of both cars, -1 where only one saw it. Such an
object gets its own id + 1,000,000 x agent. (Our choice: hosts add 100 x agent, which meets other
ids as soon as there are a hundred of them.) An object without the key keeps its own id.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.label_values import (
    LabelledObjects,
    labelled_objects,
    make_frame,
    object_id,
)
from turbotrain_plugin.data.formats.numpy_yaml import NumpyLabelLoader
from turbotrain_plugin.data.formats.pcd import read_pcd
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.data.formats.yaml_text import read_labels
from turbotrain_plugin.geometry.poses import is_rigid, matrix_to_pose, pose_to_matrix
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["UNMATCHED_STEP", "V2V4RealReader", "moved_objects"]

_LOG = logging.getLogger(__name__)

UNMATCHED_STEP: Final = 1_000_000
"""Distance of the ids of two agents' unmatched objects."""
_RIGID: Final = 1e-5
_LARGEST: Final = 1e12


class V2V4RealReader(SequenceReader):
    """Reader of V2V4Real; see ``SequenceReader``."""

    clouds: ClassVar[tuple[str, ...]] = ("pcd",)
    labels_kept_as: ClassVar[str] = "v2v4real"

    @staticmethod
    def read_label_file(path: Path, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels of one label file."""
        content = read_labels(path, NumpyLabelLoader)
        world_SE3_lidar = _pose(content, path)
        own = labelled_objects(content, path)
        items = (content.get("vehicles") or {}).values()
        ids = [_scene_id(*pair, agent_id, path) for pair in zip(items, own.ids, strict=True)]
        moved = moved_objects(world_SE3_lidar, own.values)
        objects = _once(LabelledObjects(ids, moved, own.raw_types), path)
        return make_frame(agent_id, frame, world_SE3_lidar, objects)

    @staticmethod
    def read_cloud_file(path: Path) -> NDArray[np.float32]:
        """Return the points of a ``.pcd``."""
        return read_pcd(path)


def moved_objects(
    dst_SE3_src: NDArray[np.float64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (M, 9) values of ``LabelledObjects`` moved rigidly, angles turned in 3D."""
    moved = values.copy()
    for row in moved:
        yaw, roll, pitch = (math.degrees(angle) for angle in row[6:9])
        box = dst_SE3_src @ pose_to_matrix([*row[:3], roll, yaw, pitch])
        row[:3] = box[:3, 3]
        roll, yaw, pitch = (math.radians(angle) for angle in matrix_to_pose(box)[3:])
        row[6:9] = yaw, roll, pitch
    return moved


def _pose(content: Mapping[Any, Any], path: Path) -> NDArray[np.float64]:
    rows = content.get("lidar_pose")
    fits = (
        isinstance(rows, list)
        and len(rows) == 4
        and all(isinstance(row, list) and len(row) == 4 for row in rows)
        and all(type(v) in (int, float) and abs(v) < _LARGEST for row in rows for v in row)
    )
    if not fits:
        raise UserError(f"{path}: lidar_pose must be a 4 x 4 matrix of finite numbers.")
    matrix = np.array(rows, dtype=np.float64)
    if not is_rigid(matrix, _RIGID):
        raise UserError(
            f"{path}: lidar_pose must be a rotation and a translation, to 1e-5. Found "
            f"{np.array2string(matrix, precision=4, threshold=16)}."
        )
    return matrix


def _scene_id(item: Mapping[Any, Any], number: int, agent_id: int, path: Path) -> int:
    if "ass_id" not in item:
        return number
    shared = object_id(item["ass_id"], f"{path}: object {number}: ass_id")
    if shared != -1:
        return shared
    # The own id was checked; a sum of a few million more must fit 64 bits as well.
    return object_id(number + UNMATCHED_STEP * agent_id, f"{path}: object {number}: id")


def _once(objects: LabelledObjects, path: Path) -> LabelledObjects:
    """Return every id once, as its first object has it."""
    first = np.unique(objects.ids, return_index=True)[1]
    twice = len(objects.ids) - len(first)
    if not twice:
        return objects
    _LOG.warning("%s: left out %d object(s) with the id of another", path, twice)
    first.sort()
    return LabelledObjects(
        [objects.ids[i] for i in first.tolist()],
        objects.values[first],
        tuple(objects.raw_types[i] for i in first.tolist()),
    )
