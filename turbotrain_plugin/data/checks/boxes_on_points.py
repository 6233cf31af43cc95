"""Are the boxes where the points are? Right frame, right place, right height."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.geometry.boxes import count_points, points_in_boxes, transform_boxes
from turbotrain_plugin.geometry.poses import invert_rigid, transform_points
from turbotrain_plugin.structures import AgentFrame

__all__ = ["BoxesOnPoints"]

F64 = NDArray[np.float64]

_NEAR_M: Final = 40.0
"""Boxes this near to the sensor are looked at; farther ones may have no point by chance."""
_LARGE_M: Final = 1.5
_BOXES: Final = 20
"""Boxes of an agent below which nothing is said."""
_FEW: Final = 0.2
_MANY: Final = 0.4
_HEIGHT_M: Final = 0.6
_GROUND_CELL_M: Final = 1.0
_GROUND_BESIDE_M: Final = 2.0
_GROUND_QUANTILE: Final = 0.2
_GROUND_PLACES: Final = 3
"""Places with points around a box that show how high the ground is there."""

_READINGS: Final = {
    "as-read": "",
    "in-lidar": "the file gives them in the agent's LiDAR frame, the format in the world",
    "in-world": "the file gives them in the world, the format in the agent's LiDAR frame",
    "mirrored": "y and yaw have the wrong sign, as in a left-handed world",
}


class BoxesOnPoints:
    """Counts, per agent, boxes that hold points as read and as common mistakes would have them."""

    def __init__(self) -> None:
        self._near: dict[int, Counter[str]] = defaultdict(Counter)
        self._held: dict[int, Counter[str]] = defaultdict(Counter)
        self._heights_m: dict[int, list[float]] = defaultdict(list)

    def add(self, labels: AgentFrame, points: NDArray[np.float32]) -> None:
        """Look at one frame of an agent.

        Args:
            labels: Pose and boxes.
            points: (P, 4) own LiDAR frame.
        """
        pose, agent_id = labels.world_SE3_lidar, labels.agent_id
        large = labels.world_boxes[labels.world_boxes[:, 3] >= _LARGE_M]
        world = transform_points(pose, points[:, :3].astype(np.float64))
        for name, boxes in _readings(pose, large).items():
            near = boxes[np.linalg.norm(boxes[:, :2] - pose[:2, 3], axis=1) < _NEAR_M]
            self._near[agent_id][name] += len(near)
            self._held[agent_id][name] += int((count_points(world, near) > 0).sum())
            if name == "as-read":
                self._heights_m[agent_id] += _heights_m(near, world)

    def report(self, notes: Notes) -> None:
        """Write what was found."""
        for agent_id in self._near:
            self._report_frame(agent_id, notes)
            heights = self._heights_m[agent_id]
            if len(heights) >= _BOXES and abs(np.median(heights)) > _HEIGHT_M:
                height = float(np.median(heights))
                side = "above" if height > 0 else "below"
                message = (
                    f"the bottom of the boxes lies {abs(height):.1f} m {side} the ground (median "
                    f"of {len(heights)})"
                )
                notes.add("box-height", agent_id, None, message)

    def _report_frame(self, agent_id: int, notes: Notes) -> None:
        near, held = self._near[agent_id], self._held[agent_id]
        shares = {name: held[name] / near[name] for name in near if near[name] >= _BOXES}
        best = max(shares, key=lambda name: shares[name], default="as-read")
        here = held["as-read"] / max(near["as-read"], 1)
        if here > _FEW:
            return
        if best != "as-read" and shares[best] > _MANY:
            message = (
                f"{here:.0%} of the boxes near the sensor hold points, but {shares[best]:.0%} if "
                f"{_READINGS[best]}"
            )
            notes.add("label-frame", agent_id, None, message)
        elif near["as-read"] >= _BOXES:
            message = f"{here:.0%} of the boxes within {_NEAR_M:g} m of the sensor hold points"
            notes.add("boxes-off-points", agent_id, None, message)


def _readings(pose: F64, boxes: F64) -> dict[str, F64]:
    """Return world boxes as read, and as they would be had the file been misunderstood."""
    return {
        "as-read": boxes,
        "in-lidar": transform_boxes(pose, boxes),
        "in-world": transform_boxes(invert_rigid(pose), boxes),
        "mirrored": boxes * [1, -1, 1, 1, 1, 1, -1],
    }


def _heights_m(boxes: F64, world: F64) -> list[float]:
    """Return the height of each box's bottom above the ground beside it, where that is seen."""
    if not len(boxes):
        return []
    free = world[points_in_boxes(world, boxes, 0.2) < 0]
    cell, row = np.unique(
        np.floor(free[:, :2] / _GROUND_CELL_M).astype(np.int64), axis=0, return_inverse=True
    )
    low = np.full(len(cell), np.inf)
    np.minimum.at(low, row.ravel(), free[:, 2])
    if not len(cell):
        return []
    tree = cKDTree((cell + 0.5) * _GROUND_CELL_M)
    heights = []
    for box in boxes:
        beside = tree.query_ball_point(box[:2], box[3] / 2 + _GROUND_BESIDE_M)
        if len(beside) >= _GROUND_PLACES:
            ground = float(np.quantile(low[beside], _GROUND_QUANTILE))
            heights.append(float(box[2] - box[5] / 2 - ground))
    return heights
