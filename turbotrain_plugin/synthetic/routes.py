"""Ways that vehicles take, and how they touch one another.

A layout lays its lines down; this file makes routes of them: points every 0.5 m, the speed that
bends allow, and for every pair of routes where they come too close to be used side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = [
    "STEP_M",
    "Approach",
    "Route",
    "RouteNetwork",
    "arc",
    "build_network",
    "polyline",
    "turn_speed_cap",
]

F64 = NDArray[np.float64]

STEP_M: Final = 0.5
"""Distance between two points of a route."""
_NO_CAP: Final = 20.0
_CLEAR_M: Final = 2.9
"""Two paths closer than this cannot be used side by side."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A way through a layout, from the end of one arm to the end of another.

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
        return (len(self.xy) - 1) * STEP_M

    def at(self, s: F64) -> tuple[F64, F64]:
        """Return (N, 2) positions and (N,) headings at the distances ``s`` (N,)."""
        grid = np.arange(len(self.xy)) * STEP_M
        xy = np.stack([np.interp(s, grid, self.xy[:, i]) for i in (0, 1)], axis=-1)
        return xy, np.interp(s, grid, self.yaw)


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


def turn_speed_cap(yaw: F64, grid: F64, entry_s: float, speed: float) -> F64:
    """Return (S,) m/s: ``speed`` in bends behind ``entry_s``, and what allows to brake for them.

    Args:
        yaw: (S,) rad, headings of a route.
        grid: (S,) metres, where they are.
        entry_s: Where the junction begins; bends before it need no braking.
        speed: In the bends.
    """
    bend = (np.abs(np.gradient(yaw, grid)) > 0.05) & (grid > entry_s)
    if not bend.any():
        return np.full(len(grid), _NO_CAP)
    ahead = np.maximum(grid[int(np.argmax(bend))] - grid, 0.0)
    return np.where(grid <= grid[bend][-1], np.sqrt(speed**2 + 2 * 1.3 * ahead), _NO_CAP)


@dataclass(frozen=True, slots=True)
class Approach:
    """Traffic that comes in by one arm.

    Attributes:
        shares: Turn and its share of the traffic.
        demand: Traffic compared with an arm of the junction.
        platoons: (cycle, open) in seconds: a signal out of sight lets all of it in during ``open``
            of every ``cycle``. None: it comes at any time.
    """

    shares: tuple[tuple[str, float], ...]
    demand: float = 1.0
    platoons: tuple[float, float] | None = None


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
        approaches: What comes in by each arm.
    """

    routes: tuple[Route, ...]
    along: NDArray[np.float32]
    aside: NDArray[np.float32]
    enter: F64
    leave: F64
    caps: F64
    approaches: tuple[Approach, ...]


def build_network(routes: tuple[Route, ...], approaches: tuple[Approach, ...]) -> RouteNetwork:
    """Return how routes touch one another."""
    count, samples = len(routes), max(len(route.xy) for route in routes)
    padded = np.stack([np.pad(r.xy, ((0, samples - len(r.xy)), (0, 0)), "edge") for r in routes])
    along = np.empty((count, count, samples), np.float32)
    aside = np.empty_like(along)
    for i, route in enumerate(routes):
        away, index = cKDTree(route.xy).query(padded.reshape(-1, 2))
        along[i] = np.reshape(index * STEP_M, (count, samples))
        aside[i] = np.reshape(away, (count, samples))
    grid = np.arange(samples) * STEP_M
    enter, leave = np.full((count, count), np.inf), np.full((count, count), -np.inf)
    for i, own in enumerate(routes):
        for j, other in enumerate(routes):
            inside = (grid >= other.stop_s) & (grid <= other.clear_s)
            close = inside & (aside[i, j] < _CLEAR_M)
            if own.arm != other.arm and close.any():
                enter[i, j], leave[i, j] = grid[close][0], grid[close][-1]
    caps = np.stack([np.pad(r.speed_cap, (0, samples - len(r.xy)), "edge") for r in routes])
    return RouteNetwork(routes, along, aside, enter, leave, caps, approaches)
