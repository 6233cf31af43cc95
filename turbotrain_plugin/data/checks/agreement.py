"""Do two agents see the same world? Height of the ground, and places of what stands on it.

Ground that both see must have one height: this shows wrong signs of roll and pitch, and of heights.
A wall that one agent sees must stop the rays of the other: this shows wrong signs of the yaw,
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
from turbotrain_plugin.geometry.poses import (
    invert_rigid,
    matrix_to_pose,
    pose_to_matrix,
    transform_points,
)

__all__ = ["Agreement", "View", "ground_gap_m", "seen_through"]

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
_RAYS: Final = 30
"""Points with a ray beside them below which nothing is said."""
_NEAREST_M: Final = 3.0
_NEIGHBOURS: Final = 4
_RAY_RAD: Final = np.deg2rad(1.0)
_AGREE_M: Final = 0.5
_SEEN_THROUGH: Final = 0.5
"""Share of standing points seen through above which two agents do not agree.

Measured on made scenes: at most 0.33 with right poses; 0.62 and more, mostly above 0.9, with a
wrong sign of yaw, a mirrored cloud or a yaw 10 degrees off; 0.67 in the middle for 2 m aside."""
_MOST_POINTS: Final = 20_000
"""Points of a cloud that are compared; larger ones are thinned."""
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


def seen_through(a: View, b: View, boxes: F64) -> float | None:
    """Return the share of standing points of either agent that the other one sees through.

    A point counts where the other sensor has a ray within a degree of it: it agrees when a ray ends
    there, it is seen through when all rays go on behind it. A ray that ends before it says nothing.

    Args:
        a: One agent.
        b: The other.
        boxes: (M, 7) labelled objects, world frame; what is in them may move and is left out.

    Returns:
        In [0, 1]; None when fewer than 30 points count.
    """
    counts = np.zeros(2, dtype=np.int64)
    for seeing, seen in ((a, b), (b, a)):
        counts += _agreeing_and_through(seeing, _standing(seen, boxes))
    agreeing, through = counts.tolist()
    return through / (agreeing + through) if agreeing + through >= _RAYS else None


def _agreeing_and_through(seeing: View, world: F64) -> NDArray[np.int64]:
    """Return how many world points an agent sees where they are, and how many it sees through."""
    rays, range_m = _angles(seeing.xyz)
    points, away_m = _angles(transform_points(invert_rigid(seeing.world_SE3_lidar), world))
    comparable = (away_m > _NEAREST_M) & (away_m < _RADIUS_M)
    points, away_m = points[comparable], away_m[comparable]
    if not len(points) or not len(rays):
        return np.zeros(2, dtype=np.int64)
    found = cKDTree(rays).query(points, k=_NEIGHBOURS, distance_upper_bound=_RAY_RAD)
    near, row = np.isfinite(found[0]), np.minimum(found[1], len(rays) - 1)
    behind_m = np.where(near, range_m[row] - away_m[:, None], np.nan)
    agreeing = (np.abs(behind_m) < _AGREE_M).any(axis=1)
    through = near.any(axis=1) & ~agreeing & ~(behind_m < 0).any(axis=1)
    return np.array([agreeing.sum(), through.sum()])


def _angles(xyz: F64) -> tuple[F64, F64]:
    """Return (P, 2) azimuth and elevation in rad, and (P,) range."""
    range_m = np.linalg.norm(xyz, axis=1)
    elevation = np.arcsin(xyz[:, 2] / np.maximum(range_m, 1e-6))
    return np.stack([np.arctan2(xyz[:, 1], xyz[:, 0]), elevation], axis=1), range_m


def _lowest(points: F64) -> F64:
    """Return the lowest point of every occupied square of ``_CELL_M``."""
    cell = np.floor(points[:, :2] / _CELL_M).astype(np.int64)
    order = np.lexsort((points[:, 2], cell[:, 1], cell[:, 0]))
    cell = cell[order]
    first = np.ones(len(cell), dtype=np.bool_)
    first[1:] = (cell[1:] != cell[:-1]).any(axis=1)
    lowest: F64 = points[order][first]
    return lowest


def _standing(view: View, boxes: F64) -> F64:
    """Return an agent's world points that are on no labelled object and not on the ground."""
    points = transform_points(view.world_SE3_lidar, view.xyz)
    points = points[points_in_boxes(points, boxes, _BOX_MARGIN_M) < 0]
    if not len(points):
        return points
    cell = np.floor(points[:, :2] / _STANDING_CELL_M).astype(np.int64)
    square = np.unique(cell, axis=0, return_inverse=True)[1].ravel()
    low = np.full(square.max() + 1, np.inf)
    np.minimum.at(low, square, points[:, 2])
    standing: F64 = points[points[:, 2] > low[square] + _STANDING_M]
    return standing


def _near_both(view: View, other: View) -> F64:
    """Return an agent's world points near to both sensors."""
    world = transform_points(view.world_SE3_lidar, view.xyz)
    for place in (view.world_SE3_lidar[:2, 3], other.world_SE3_lidar[:2, 3]):
        world = world[np.linalg.norm(world[:, :2] - place, axis=1) < _RADIUS_M]
    return world


def _gaps(a: View, b: View, boxes: F64) -> tuple[float | None, float | None]:
    """Return ``ground_gap_m`` and ``seen_through`` of two views."""
    return ground_gap_m(_near_both(a, b), _near_both(b, a)), seen_through(a, b, boxes)


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
        self._vouched: Counter[int] = Counter()

    def add(self, views: Sequence[View]) -> None:
        """Compare the agents of one frame."""
        boxes = np.concatenate([np.zeros((0, 7)), *(view.boxes for view in views)])
        views = [v._replace(xyz=v.xyz[:: 1 + len(v.xyz) // _MOST_POINTS]) for v in views]
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
        """Write one finding per agent that is at fault, the one most pairs disagree with first.

        Two agents that both agree with a third are not at fault: they look at different things.
        """
        bad = self._bad_pairs()
        while bad:
            verdict, pairs = self._blame(list(bad))
            said = "; ".join(f"agents {a} and {b}: {bad[a, b]}" for a, b in pairs)
            if verdict.mistake:
                who = "all agents" if verdict.agent_id is None else f"agent {verdict.agent_id}"
                message = f"the scene fits together when, of {who}, {verdict.mistake} ({said})"
                notes.add("pose-convention", verdict.agent_id, None, message)
            else:
                kind = "poses-disagree" if "sees through" in said else "ground-gap"
                notes.add(kind, verdict.agent_id, None, f"the poses are doubtful: {said}")
            for pair in pairs:
                del bad[pair]

    def _bad_pairs(self) -> dict[tuple[int, int], str]:
        """Return the pairs that disagree, and on what."""
        bad: dict[tuple[int, int], list[str]] = defaultdict(list)
        for gaps, limit, text in (
            (self._ground, _GROUND_GAP_M, "the ground of two agents differs by {:.2f} m in height"),
            (self._static, _SEEN_THROUGH, "one sees through {:.0%} of what the other sees"),
        ):
            medians = {pair: float(np.median(found)) for pair, found in gaps.items()}
            good = [pair for pair, gap in medians.items() if gap <= limit]
            self._vouched.update(agent_id for pair in good for agent_id in pair)
            group = _groups(good)
            for (a, b), gap in medians.items():
                if gap > limit and group.get(a, a) != group.get(b, b):
                    bad[a, b].append(text.format(gap))
        return {pair: ", ".join(texts) for pair, texts in bad.items()}

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
        else:
            counts = Counter(agent_id for pair in bad for agent_id in pair)
            # Who agrees with others is less likely at fault.
            agent_id = max(sorted(counts), key=lambda one: (counts[one], -self._vouched[one]))
            verdict = _Verdict(agent_id, "")
        return verdict, [p for p in bad if verdict.agent_id is None or verdict.agent_id in p]


def _groups(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Return the smallest agent of the group that each agent of agreeing pairs belongs to."""
    group = {agent_id: agent_id for pair in pairs for agent_id in pair}
    for a, b in pairs:
        merged = {group[a], group[b]}
        group = {one: min(merged) if name in merged else name for one, name in group.items()}
    return group


def _wrong(ground: float | None, static: float | None) -> bool:
    return (ground or 0.0) > _GROUND_GAP_M or (static or 0.0) > _SEEN_THROUGH


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
