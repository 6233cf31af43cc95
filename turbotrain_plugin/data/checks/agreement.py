"""Do two agents see the same world? Height of the ground, and places of what stands on it.

Ground that both see must have one height: this shows wrong signs of roll and pitch, and of heights.
Walls, poles and trunks that both see must stand in one place: this shows wrong signs of the yaw,
mirrored clouds, and poses that are metres off. Where two agents disagree, the usual mistakes are
tried on one of them or on both; a mistake that explains everything is named.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.geometry.boxes import points_in_boxes
from turbotrain_plugin.geometry.poses import matrix_to_pose, pose_to_matrix, transform_points

__all__ = ["Agreement", "View", "ground_gap_m", "static_gap"]

F64 = NDArray[np.float64]

_CELL_M: Final = 1.0
_RADIUS_M: Final = 40.0
"""Two agents are compared where both sensors are this near."""
_MATCH_M: Final = 3.0
_PLACES: Final = 20
"""Shared places of the ground below which nothing is said."""
_GROUND_GAP_M: Final = 0.5
"""Median height difference above which two agents do not agree on the ground."""
_STANDING_CELL_M: Final = 4.0
_STANDING_M: Final = 0.8
"""Height above the lowest point around from which a point is not ground."""
_BOX_MARGIN_M: Final = 0.3
_STANDING: Final = 50
_NEAR_M: Final = 0.5
_STATIC_GAP: Final = 0.75
"""Share of shared standing points without a partner above which two agents do not agree.

Measured on made scenes: at most 0.65 with right poses (walls seen by one agent alone), at least 0.8
with a wrong sign of yaw, a mirrored cloud or 10 degrees too much."""
_MOST_POINTS: Final = 20_000
_TRIED: Final = 3
"""Frames of a pair on which mistakes are tried."""


class View(NamedTuple):
    """What an agent sees at one time.

    Attributes:
        agent_id: Agent.
        world_SE3_lidar: (4, 4).
        xyz: (P, 3) float64, own LiDAR frame.
        boxes: (M, 7) labelled objects, world frame.
    """

    agent_id: int
    world_SE3_lidar: F64
    xyz: F64
    boxes: F64


def _yaw_negated(view: View) -> View:
    pose = matrix_to_pose(view.world_SE3_lidar) * [1, 1, 1, 1, -1, 1]
    return view._replace(world_SE3_lidar=pose_to_matrix(pose))


def _tilt_negated(view: View) -> View:
    pose = matrix_to_pose(view.world_SE3_lidar) * [1, 1, 1, -1, 1, -1]
    return view._replace(world_SE3_lidar=pose_to_matrix(pose))


def _mirrored(view: View) -> View:
    return view._replace(xyz=view.xyz * [1, -1, 1])


def _turned(view: View) -> View:
    return view._replace(xyz=view.xyz * [-1, -1, 1])


_MISTAKES: Final[Mapping[str, Callable[[View], View]]] = {
    "the sign of yaw is turned round": _yaw_negated,
    "the signs of roll and pitch are turned round": _tilt_negated,
    "the y axis of the cloud is mirrored": _mirrored,
    "the sensor is turned by 180 degrees": _turned,
}


# --------------------------------------------------------------------------------------- measures


def ground_gap_m(a: F64, b: F64) -> float | None:
    """Return by how much two clouds disagree on the height of the ground.

    Takes the lowest point of every metre of each cloud, meets each of ``a`` with the nearest of
    ``b`` within 3 m, and returns the median height difference: what stands on the ground, and the
    few points below it, do not move a median.

    Args:
        a: (P, 3) world points.
        b: (Q, 3) world points.

    Returns:
        Metres; None when fewer than 20 places are shared.
    """
    low_a, low_b = _lowest(a), _lowest(b)
    if not len(low_a) or not len(low_b):
        return None
    found = cKDTree(low_b[:, :2]).query(low_a[:, :2], distance_upper_bound=_MATCH_M)
    distance, row = np.asarray(found[0]), np.asarray(found[1])
    shared = np.isfinite(distance)
    if shared.sum() < _PLACES:
        return None
    return float(np.median(np.abs(low_a[shared, 2] - low_b[row[shared], 2])))


def static_gap(a: F64, b: F64) -> float | None:
    """Return the share of standing points of two clouds without a partner within 0.5 m.

    Seen from above: beams of two sensors hit a wall at different heights.

    Args:
        a: (P, 3) world points, labelled objects taken out.
        b: (Q, 3) world points, likewise.

    Returns:
        In [0, 1]; None when one of them has fewer than 50 standing points.
    """
    a, b = _standing(a), _standing(b)
    if min(len(a), len(b)) < _STANDING:
        return None
    found = [
        np.asarray(cKDTree(there[:, :2]).query(here[:, :2], distance_upper_bound=_NEAR_M)[0])
        for here, there in ((a, b), (b, a))
    ]
    return float(1.0 - np.isfinite(np.concatenate(found)).mean())


def _lowest(points: F64) -> F64:
    """Return the lowest point of every occupied square of ``_CELL_M``."""
    cell = np.floor(points[:, :2] / _CELL_M).astype(np.int64)
    order = np.lexsort((points[:, 2], cell[:, 1], cell[:, 0]))
    cell = cell[order]
    first = np.ones(len(cell), dtype=np.bool_)
    first[1:] = (cell[1:] != cell[:-1]).any(axis=1)
    lowest: F64 = points[order][first]
    return lowest


def _standing(points: F64) -> F64:
    if not len(points):
        return points
    cell = np.floor(points[:, :2] / _STANDING_CELL_M).astype(np.int64)
    square = np.unique(cell, axis=0, return_inverse=True)[1].ravel()
    low = np.full(square.max() + 1, np.inf)
    np.minimum.at(low, square, points[:, 2])
    standing: F64 = points[points[:, 2] > low[square] + _STANDING_M]
    return standing


def _gaps(a: View, b: View, boxes: F64) -> tuple[float | None, float | None]:
    """Return ``ground_gap_m`` and ``static_gap`` of two views, where both sensors are near."""
    places = [view.world_SE3_lidar[:2, 3] for view in (a, b)]
    clouds = []
    for view in (a, b):
        world = transform_points(view.world_SE3_lidar, view.xyz)
        for place in places:
            world = world[np.linalg.norm(world[:, :2] - place, axis=1) < _RADIUS_M]
        clouds.append(world[:: 1 + len(world) // _MOST_POINTS])
    free = [cloud[points_in_boxes(cloud, boxes, _BOX_MARGIN_M) < 0] for cloud in clouds]
    return ground_gap_m(*clouds), static_gap(*free)


# ------------------------------------------------------------------------------------ over a scene


class _Verdict(NamedTuple):
    """A mistake that puts a pair right: whose (None: both agents'), and which."""

    agent_id: int | None
    mistake: str


class Agreement:
    """Gathers the gaps between the agents of a scene, frame by frame.

    Attributes:
        ground_gaps_m: Of every pair and frame compared.
    """

    def __init__(self) -> None:
        self.ground_gaps_m: list[float] = []
        self._ground: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._static: dict[tuple[int, int], list[float]] = defaultdict(list)
        self._cures: dict[tuple[int, int], Counter[_Verdict]] = defaultdict(Counter)
        self._tried: Counter[tuple[int, int]] = Counter()

    def add(self, views: Sequence[View]) -> None:
        """Compare the agents of one frame."""
        boxes = np.concatenate([view.boxes for view in views]) if views else np.zeros((0, 7))
        for a, b in combinations(views, 2):
            pair = (a.agent_id, b.agent_id)
            ground, static = _gaps(a, b, boxes)
            if ground is not None:
                self._ground[pair].append(ground)
                self.ground_gaps_m.append(ground)
            if static is not None:
                self._static[pair].append(static)
            if _wrong(ground, static) and self._tried[pair] < _TRIED:
                self._tried[pair] += 1
                self._cures[pair].update(_cures(a, b, boxes))

    def report(self, notes: Notes) -> None:
        """Write one finding per agent that is at fault, the one most pairs disagree with first."""
        bad = {pair: what for pair in self._ground | self._static if (what := self._what(pair))}
        while bad:
            verdict, pairs = self._blame(list(bad))
            said = "; ".join(f"agents {a} and {b}: {bad[a, b]}" for a, b in pairs)
            if verdict.mistake:
                who = "all agents" if verdict.agent_id is None else f"agent {verdict.agent_id}"
                message = f"the scene fits together when, of {who}, {verdict.mistake} ({said})"
                notes.add("pose-convention", verdict.agent_id, None, message)
            else:
                kind = "poses-disagree" if "standing" in said else "ground-gap"
                notes.add(kind, verdict.agent_id, None, f"the poses are doubtful: {said}")
            for pair in pairs:
                del bad[pair]

    def _what(self, pair: tuple[int, int]) -> str:
        """Return what a pair disagrees on, nothing where it agrees."""
        said = []
        if self._ground[pair] and (gap := float(np.median(self._ground[pair]))) > _GROUND_GAP_M:
            said.append(f"the ground of two agents differs by {gap:.2f} m in height (median)")
        if self._static[pair] and (gap := float(np.median(self._static[pair]))) > _STATIC_GAP:
            said.append(f"{gap:.0%} of what is standing there is seen by one of them only")
        return ", ".join(said)

    def _blame(self, bad: Sequence[tuple[int, int]]) -> tuple[_Verdict, Sequence[tuple[int, int]]]:
        """Return who is at fault with what, and the bad pairs this explains."""
        cures: Counter[_Verdict] = Counter()
        for pair in bad:
            held = {
                one for one, count in self._cures[pair].items() if 2 * count > self._tried[pair]
            }
            cures.update(held)
        if cures:
            verdict = max(cures, key=lambda one: (cures[one], one.agent_id is not None))
            pairs = [pair for pair in bad if self._cures[pair][verdict]]
            return verdict, pairs
        counts = Counter(agent_id for pair in bad for agent_id in pair)
        agent_id = max(sorted(counts), key=lambda one: counts[one])
        return _Verdict(agent_id, ""), [pair for pair in bad if agent_id in pair]


def _wrong(ground: float | None, static: float | None) -> bool:
    return (ground or 0.0) > _GROUND_GAP_M or (static or 0.0) > _STATIC_GAP


def _cures(a: View, b: View, boxes: F64) -> list[_Verdict]:
    """Return the mistakes that explain why two views disagree."""
    cures = []
    for mistake, put_right in _MISTAKES.items():
        for agent_id, views in (
            (a.agent_id, (put_right(a), b)),
            (b.agent_id, (a, put_right(b))),
            (None, (put_right(a), put_right(b))),
        ):
            ground, static = _gaps(*views, boxes)
            if static is not None and not _wrong(ground, static):
                cures.append(_Verdict(agent_id, mistake))
    return cures
