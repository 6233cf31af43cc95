"""Geometry of the four-way junction: where lanes, kerbs, crosswalks and parking places are.

Layout frame: origin in the middle, arm 0 along +x, arm k turned by k * 90 degrees; traffic drives
on the right. An offset is measured across an arm, positive to the left of somebody who leaves the
junction: lanes that lead in have positive offsets, lanes that lead out negative ones.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import CrossRoads
from turbotrain_plugin.synthetic.routes import (
    STEP_M,
    Approach,
    Route,
    RouteNetwork,
    arc,
    build_network,
    polyline,
    turn_speed_cap,
)
from turbotrain_plugin.synthetic.site import SET_BACK_M, Hedges, ParkingStrip, Site

__all__ = [
    "ARM_LENGTH_M",
    "CROSSWALK_M",
    "LANE_OFFSETS_M",
    "LANE_WIDTH_M",
    "PARKING_M",
    "PARKING_OFFSET_M",
    "ROADS",
    "STOP_LINE_M",
    "WALK_OFFSETS_M",
    "arm_points",
    "corner_way",
    "junction_site",
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
PARKING_M: Final = (30.0, ARM_LENGTH_M - 4.0)
"""Beginning and end of the parking lanes, along an arm."""
WALK_OFFSETS_M: Final = (12.9, 13.6)
"""Strip of the sidewalks that people use (lamps and bins stand nearer to the kerb)."""
ROADS: Final = CrossRoads(half_width_m=11.25, corner_radius_m=8.0)

_FURNITURE_M: Final = ROADS.half_width_m + 0.65
"""Poles and bins stand here, between the kerb and where people walk."""

_POCKET_M: Final = (65.0, 45.0)
_RIGHT_RADIUS_M: Final = 12.25
_LEFT_RADIUS_M: Final = 12.0
_WAIT_M: Final = 9.5
_APPROACH: Final = Approach((("through", 0.7), ("right", 0.15), ("left", 0.15)))


def arm_points(arm: int, along: F64, offset: F64) -> F64:
    """Return (N, 2) points at distances ``along`` from the middle and ``offset`` across the arm."""
    along, offset = np.broadcast_arrays(along, offset)
    c, s = (1, 0, -1, 0)[arm % 4], (0, 1, 0, -1)[arm % 4]
    return np.stack([c * along - s * offset, s * along + c * offset], axis=-1).astype(np.float64)


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
    grid: F64 = STEP_M * np.arange(int(length[-1] / STEP_M) + 1, dtype=np.float64)
    xy = np.stack([np.interp(grid, length, base[:, i]) for i in (0, 1)], axis=-1)
    step = np.gradient(xy, axis=0)
    yaw = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    axis = arm_points(exit_arm - arm, np.ones(1), np.zeros(1))[0]

    def first(condition: NDArray[np.bool_]) -> float:
        return float(grid[int(np.argmax(condition))])

    stop_s = first(xy[:, 0] <= STOP_LINE_M)
    entered = grid > stop_s
    return Route(
        arm=arm,
        exit_arm=exit_arm,
        lane=lane,
        turn=turn,
        xy=arm_points(arm, xy[:, 0], xy[:, 1]),
        yaw=yaw + arm * np.pi / 2,
        speed_cap=turn_speed_cap(yaw, grid, stop_s, speed),
        stop_s=stop_s,
        wait_s=first(xy[:, 0] <= _WAIT_M) if turn == "left" else stop_s,
        crosswalk_s=first((xy @ axis >= CROSSWALK_M[0] - 0.5) & entered),
        clear_s=first((xy @ axis >= STOP_LINE_M) & entered),
    )


@lru_cache(maxsize=1)
def route_network() -> RouteNetwork:
    """Return the routes of the junction: per arm two through lanes, one right, one left turn."""
    kinds = ((0, "through"), (1, "through"), (1, "right"), (0, "left"))
    routes = tuple(_route(arm, lane, turn) for arm in range(4) for lane, turn in kinds)
    return build_network(routes, (_APPROACH,) * 4)


# --------------------------------------------------------------------------------------------- site


@lru_cache(maxsize=1)
def junction_site() -> Site:
    """Return where people walk, vehicles park and blocks stand."""
    slots = np.array(
        [
            arm_points(arm, np.array([along]), np.array([side * _FURNITURE_M]))[0]
            for arm in range(4)
            for side in (-1.0, 1.0)
            for along in np.arange(24.0, ARM_LENGTH_M - 5, 3.0).tolist()
        ]
    )
    return Site(
        pavements=tuple(partial(corner_way, corner) for corner in range(4)),
        walk_offsets_m=WALK_OFFSETS_M,
        strips=tuple(
            ParkingStrip(PARKING_M, ROADS.half_width_m, partial(_parked, arm, side))
            for arm in range(4)
            for side in (-1.0, 1.0)
        ),
        pole_places=slots,
        # Half a step off the poles' places, so that none stands in a pole.
        prop_places=slots + np.where(np.abs(slots) > 20.0, np.sign(slots) * 1.5, 0.0),
        building_place=_street_place,
        hedge_places=_hedge_places,
    )


def corner_way(corner: int, offset: float) -> F64:
    """Return the sidewalk from the end of arm ``corner`` round its left corner to the next arm."""
    middle = ROADS.half_width_m + ROADS.corner_radius_m
    bend = arc((middle, middle), middle - offset, 270.0, 180.0)
    way = np.concatenate([[[ARM_LENGTH_M, offset]], bend, [[offset, ARM_LENGTH_M]]])
    return arm_points(corner, way[:, 0], way[:, 1])


def _parked(arm: int, side: float, along: float, offset: float) -> tuple[F64, float]:
    """Return place and heading of a parked vehicle, ``offset`` metres off the middle of the arm."""
    place = arm_points(arm, np.array([along]), np.array([side * offset]))[0]
    # Lanes with positive offset lead to the junction, so vehicles there look inwards.
    return place, arm * np.pi / 2 + (np.pi if side > 0 else 0.0)


def _street_place(reach: F64, rng: np.random.Generator) -> tuple[F64, float]:
    """Return a place behind the set-back line, most along a street, some in the second row."""
    line = ROADS.half_width_m + SET_BACK_M
    behind = rng.uniform(0, 6) if rng.random() < 0.75 else rng.uniform(18, 50)
    first, second = (0, 1) if rng.random() < 0.5 else (1, 0)
    spot: F64 = np.empty(2)
    spot[first] = rng.uniform(line + reach[first], ARM_LENGTH_M)
    spot[second] = line + reach[second] + behind
    spot *= rng.choice([-1, 1], 2)
    return spot, 0.0


def _hedge_places(count: int, rng: np.random.Generator) -> Hedges:
    """Return low walls along the back of the sidewalks."""
    arm, side = rng.integers(0, 4, count), rng.choice([-1.0, 1.0], count)
    length = rng.uniform(2, 9, count)
    along = rng.uniform(32 + length, ARM_LENGTH_M - 10)
    offset = side * (WALK_OFFSETS_M[1] + rng.uniform(1.5, 4.0, count))
    xy = np.concatenate(
        [arm_points(int(a), along[i : i + 1], offset[i : i + 1]) for i, a in enumerate(arm)]
    )
    return Hedges(xy, arm * np.pi / 2, length)
