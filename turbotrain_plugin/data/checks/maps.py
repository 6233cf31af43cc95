"""Does the map belong to the recording? Distance and height of agents and moving vehicles."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.data.checks.labels import Frames
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.data.map_files import DRIVING, VectorMap, read_map
from turbotrain_plugin.structures import UserError

__all__ = ["MapCheck"]

F64 = NDArray[np.float64]

_AGENT_M: Final = 30.0
"""Roadside units stand up to 20 m from the nearest lane, and maps miss some roads."""
_LANE_M: Final = 6.0
"""Distance of a moving vehicle to the nearest centre line: a lane and a half."""
_MOVED_M: Final = 3.0
_VEHICLE_M: Final = 3.0
_VEHICLES: Final = 4
_HEIGHT_M: Final = (0.5, 5.0)
"""LiDAR of a vehicle above the lane."""


class MapCheck:
    """Compares scenes with their maps; every map file is read once."""

    def __init__(self) -> None:
        self._lanes: dict[Path, F64 | None] = {}
        self._without: set[Path] = set()

    def check(
        self, scene: SceneIndex, reader: type[SequenceReader], frames: Frames, notes: Notes
    ) -> None:
        """Check one scene; layouts without maps have nothing to check."""
        if not reader.has_maps:
            return
        try:
            path = reader.map_file(scene)
        except UserError as error:
            notes.add("bad-map", None, None, str(error))
            return
        if path is None:
            if scene.root not in self._without:
                self._without.add(scene.root)
                notes.add("map-missing", None, None, f"{scene.root / 'map'} holds no map")
            return
        if path not in self._lanes:
            self._lanes[path] = self._read(path, notes)
        lanes = self._lanes[path]
        if lanes is not None and frames:
            tree = cKDTree(lanes[:, :2])
            _check_agents(tree, lanes, frames, notes)
            _check_objects(tree, frames, notes)

    def _read(self, path: Path, notes: Notes) -> F64 | None:
        try:
            lanes = _centre_lines(read_map(path))
        except UserError as error:
            notes.add("bad-map", None, None, str(error))
            return None
        if not len(lanes):
            notes.add("bad-map", None, None, f"{path}: holds no lane for vehicles")
            return None
        return lanes


def _centre_lines(found: VectorMap) -> F64:
    lines = [lane.polyline for lane in found.lanes if lane.type == DRIVING]
    return np.concatenate([np.zeros((0, 3)), *lines])


def _check_agents(tree: cKDTree, lanes: F64, frames: Frames, notes: Notes) -> None:
    for agent_id in dict.fromkeys(agent for agent, _ in frames):
        places = np.array(
            [one.world_SE3_lidar[:3, 3] for (agent, _), one in frames.items() if agent == agent_id]
        )
        distance, row = (np.asarray(found) for found in tree.query(places[:, :2]))
        median = float(np.median(distance))
        if median > _AGENT_M:
            message = f"the agent is {median:.0f} m from the nearest lane (median)"
            notes.add("agent-off-map", agent_id, None, message)
            continue
        height = float(np.median(places[:, 2] - lanes[row, 2]))
        low, high = _HEIGHT_M
        if agent_id >= 0 and np.ptp(lanes[:, 2]) > 0 and not low <= height <= high:
            message = f"the vehicle's LiDAR is {height:.1f} m above the lane (median)"
            notes.add("map-height", agent_id, None, message)


def _check_objects(tree: cKDTree, frames: Frames, notes: Notes) -> None:
    tracks: dict[int, list[F64]] = {}
    for labels in frames.values():
        for object_id, box in zip(labels.object_ids.tolist(), labels.world_boxes, strict=True):
            if box[3] >= _VEHICLE_M:
                tracks.setdefault(object_id, []).append(box[:2])
    moved = [
        np.array(track)
        for track in tracks.values()
        if np.linalg.norm(np.ptp(np.array(track), axis=0)) > _MOVED_M
    ]
    off = [track for track in moved if np.median(tree.query(track)[0]) > _LANE_M]
    if len(moved) >= _VEHICLES and 2 * len(off) > len(moved):
        message = (
            f"{len(off)} of {len(moved)} moving vehicles are more than {_LANE_M:g} m from every "
            "centre line"
        )
        notes.add("objects-off-map", None, None, message)
