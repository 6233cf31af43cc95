"""Geometry of the four-way junction: where lanes, kerbs, crosswalks and parking places are.

Layout frame: origin in the middle, arm 0 along +x, arm k turned by k * 90 degrees; traffic drives
on the right. An offset is measured across an arm, positive to the left of somebody who leaves the
junction: lanes that lead in have positive offsets, lanes that lead out negative ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.synthetic.ground import CrossRoads

__all__ = [
    "ARM_LENGTH_M",
    "CROSSWALK_M",
    "LANE_OFFSETS_M",
    "LANE_WIDTH_M",
    "PARKING_OFFSET_M",
    "ROADS",
    "STOP_LINE_M",
    "WALK_OFFSETS_M",
    "Route",
    "RouteNetwork",
    "arc",
    "arm_points",
    "polyline",
    "route_network",
]

F64 = NDArray[np.float64]

LANE_WIDTH_M: Final = 3.5
LANE_OFFSETS_M: Final = (3.5, 7.0)
"""Centre lines of the two lanes of a direction; the left-turn pocket lies at offset 0."""
PARKING_OFFSET_M: Final = 10.1
ARM_LENGTH_M: Final = 120.0
STOP_LINE_M: Final = 21.0
"""Distance of the stop lines from the middle; also where the lanes that lead out begin."""
CROSSWALK_M: Final = (15.5, 19.5)
"""Near and far edge of every crosswalk, along its arm."""
WALK_OFFSETS_M: Final = (12.9, 13.6)
"""Strip of the sidewalks that people use (lamps and bins stand nearer to the kerb)."""
ROADS: Final = CrossRoads(half_width_m=11.25, corner_radius_m=8.0)

_STEP_M: Final = 0.5
_POCKET_M: Final = (65.0, 45.0)
_RIGHT_RADIUS_M: Final = 12.25
_LEFT_RADIUS_M: Final = 12.0
_WAIT_M: Final = 9.5
_CLEAR_M: Final = 2.9
"""Two paths closer than this cannot be used side by side."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A way through the junction, from the end of one arm to the end of another.

    Attributes:
        arm: Arm it comes from.
        exit_arm: Arm it leaves by.
        lane: 0 the inner lane, 1 the outer lane it starts on.
        turn: "through", "right" or "left".
        xy: (S, 2), points every 0.5 m.
        yaw: (S,) rad, unwrapped.
        speed_cap: (S,) m/s, limit that arcs impose, braking before them included.
        stop_s: Where the front stops at the stop line, metres from the start.
        wait_s: Where a left turn waits for oncoming traffic; ``stop_s`` for the others.
        crosswalk_s: Where the front stops before the crosswalk of the arm it leaves by.
        clear_s: Where the front leaves the junction.
    """

    arm: int
    exit_arm: int
    lane: int
    turn: str
    xy: F64
    yaw: F64
    speed_cap: F64
    stop_s: float
    wait_s: float
    crosswalk_s: float
    clear_s: float

    @property
    def length(self) -> float:
        """Return the length in metres."""
        return (len(self.xy) - 1) * _STEP_M

    def at(self, s: F64) -> tuple[F64, F64]:
        """Return (N, 2) positions and (N,) headings at the distances ``s`` (N,)."""
        grid = np.arange(len(self.xy)) * _STEP_M
        xy = np.stack([np.interp(s, grid, self.xy[:, i]) for i in (0, 1)], axis=-1)
        return xy, np.interp(s, grid, self.yaw)


def arm_points(arm: int, along: F64, offset: F64) -> F64:
    """Return (N, 2) points at distances ``along`` from the middle and ``offset`` across the arm."""
    along, offset = np.broadcast_arrays(along, offset)
    c, s = (1, 0, -1, 0)[arm % 4], (0, 1, 0, -1)[arm % 4]
    return np.stack([c * along - s * offset, s * along + c * offset], axis=-1).astype(np.float64)


def polyline(points: F64, step_m: float) -> F64:
    """Return ``points`` (N, 2) resampled at about ``step_m``, both ends kept."""
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    s = np.linspace(0.0, length[-1], max(2, round(length[-1] / step_m) + 1))
    return np.stack([np.interp(s, length, points[:, i]) for i in (0, 1)], axis=-1)


def arc(centre: tuple[float, float], radius: float, start: float, end: float) -> F64:
    """Return (N, 2) points of an arc between two angles in degrees, every 0.1 m or closer."""
    count = int(abs(np.radians(end - start)) * radius / 0.1) + 2
    angle = np.radians(np.linspace(start, end, count))
    return np.stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)], -1)


def _through(offset: float) -> F64:
    return np.array([[ARM_LENGTH_M, offset], [-ARM_LENGTH_M, offset]])


def _right() -> F64:
    offset, r = LANE_OFFSETS_M[1], _RIGHT_RADIUS_M
    bend = arc((offset + r, offset + r), r, 270.0, 180.0)
    return np.concatenate([[[ARM_LENGTH_M, offset]], bend, [[offset, ARM_LENGTH_M]]])


def _left() -> F64:
    offset, r = LANE_OFFSETS_M[0], _LEFT_RADIUS_M
    x = np.linspace(*_POCKET_M, 80)
    phase = (x - _POCKET_M[0]) / (_POCKET_M[1] - _POCKET_M[0])
    shift = np.stack([x, offset * (0.5 + 0.5 * np.cos(np.pi * phase))], axis=-1)
    bend = arc((r - offset, -r), r, 90.0, 180.0)
    return np.concatenate([[[ARM_LENGTH_M, offset]], shift, bend, [[-offset, -ARM_LENGTH_M]]])


def _route(arm: int, lane: int, turn: str) -> Route:
    line = {"through": lambda: _through(LANE_OFFSETS_M[lane]), "right": _right, "left": _left}
    exit_arm = (arm + {"through": 2, "right": 1, "left": 3}[turn]) % 4
    base = polyline(line[turn](), 0.05)
    speed = {"through": 20.0, "right": 4.0, "left": 4.6}[turn]
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(base, axis=0), axis=1))])
    grid = np.arange(int(length[-1] / _STEP_M) + 1) * _STEP_M
    xy = np.stack([np.interp(grid, length, base[:, i]) for i in (0, 1)], axis=-1)
    step = np.gradient(xy, axis=0)
    yaw = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    axis = arm_points(exit_arm - arm, np.ones(1), np.zeros(1))[0]

    def first(condition: NDArray[np.bool_]) -> float:
        return float(grid[int(np.argmax(condition))])

    stop_s = first(xy[:, 0] <= STOP_LINE_M)
    entered = grid > stop_s
    bend = (np.abs(np.gradient(yaw, grid)) > 0.05) & entered
    cap = np.full(len(grid), 20.0)
    if bend.any():
        ahead = np.maximum(first(bend) - grid, 0.0)
        cap = np.where(grid <= grid[bend][-1], np.sqrt(speed**2 + 2 * 1.3 * ahead), 20.0)
    return Route(
        arm=arm,
        exit_arm=exit_arm,
        lane=lane,
        turn=turn,
        xy=arm_points(arm, xy[:, 0], xy[:, 1]),
        yaw=yaw + arm * np.pi / 2,
        speed_cap=cap,
        stop_s=stop_s,
        wait_s=first(xy[:, 0] <= _WAIT_M) if turn == "left" else stop_s,
        crosswalk_s=first((xy @ axis >= CROSSWALK_M[0] - 0.5) & entered),
        clear_s=first((xy @ axis >= STOP_LINE_M) & entered),
    )


@dataclass(frozen=True, slots=True, eq=False)
class RouteNetwork:
    """All routes and how they touch. R routes, S samples of 0.5 m (shorter routes are padded).

    Attributes:
        routes: R routes.
        along: (R, R, S) float32; [i, j, k] is the distance along route i of the point of it
            that is nearest to sample k of route j.
        aside: (R, R, S) float32, how far away that point is.
        enter: (R, R), distance along j where it comes too close to i inside the junction; inf
            if never or if both come from the same arm.
        leave: (R, R), distance along j where it is clear of i again; -inf if never close.
        caps: (R, S), ``speed_cap`` of all routes.
    """

    routes: tuple[Route, ...]
    along: NDArray[np.float32]
    aside: NDArray[np.float32]
    enter: F64
    leave: F64
    caps: F64


@lru_cache(maxsize=1)
def route_network() -> RouteNetwork:
    """Return the routes of the junction: per arm two through lanes, one right, one left turn."""
    kinds = ((0, "through"), (1, "through"), (1, "right"), (0, "left"))
    routes = tuple(_route(arm, lane, turn) for arm in range(4) for lane, turn in kinds)
    count, samples = len(routes), max(len(route.xy) for route in routes)
    padded = np.stack([np.pad(r.xy, ((0, samples - len(r.xy)), (0, 0)), "edge") for r in routes])
    along = np.empty((count, count, samples), np.float32)
    aside = np.empty_like(along)
    for i, route in enumerate(routes):
        away, index = cKDTree(route.xy).query(padded.reshape(-1, 2))
        along[i] = np.reshape(index * _STEP_M, (count, samples))
        aside[i] = np.reshape(away, (count, samples))
    grid = np.arange(samples) * _STEP_M
    enter, leave = np.full((count, count), np.inf), np.full((count, count), -np.inf)
    for i, own in enumerate(routes):
        for j, other in enumerate(routes):
            inside = (grid >= other.stop_s) & (grid <= other.clear_s)
            close = inside & (aside[i, j] < _CLEAR_M)
            if own.arm != other.arm and close.any():
                enter[i, j], leave[i, j] = grid[close][0], grid[close][-1]
    caps = np.stack([np.pad(r.speed_cap, (0, samples - len(r.xy)), "edge") for r in routes])
    return RouteNetwork(routes, along, aside, enter, leave, caps)
