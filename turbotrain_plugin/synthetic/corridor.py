"""Geometry of the corridor: a gently curved street with one side street, and its routes.

Everything is laid down on a straight street and then bent. Straight frame: x along the street,
eastwards, from -120 to 120 m; y to the left of it; traffic drives on the right, so eastbound lanes
have negative y. The side street leaves southwards at x = ``mouth_m`` and has a stop sign. Bending
turns x into arc length to the left, so that the side street lies outside the curve.

The agents of a corridor are vehicles, as in the real corridor scenes: no roadside unit tells a
reader which map belongs to such a scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

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
from turbotrain_plugin.synthetic.signals import StopSigns
from turbotrain_plugin.synthetic.site import SET_BACK_M, Hedges, ParkingStrip, Site

__all__ = [
    "CONTROL",
    "EAST",
    "HALF_LENGTH_M",
    "HALF_WIDTH_M",
    "LANE_OFFSETS_M",
    "NO_PARKING_M",
    "PARKING_OFFSET_M",
    "SIDE",
    "SIDE_HALF_WIDTH_M",
    "SIDE_LENGTH_M",
    "SIDE_OFFSET_M",
    "WALK_M",
    "WEST",
    "Corridor",
    "corridor_network",
    "corridor_site",
    "pavement_lines",
]

F64 = NDArray[np.float64]
Array = NDArray[Any]

EAST: Final = 0
WEST: Final = 1
SIDE: Final = 2
"""Numbers of the arms: the two ends of the street and that of the side street."""
CONTROL: Final = StopSigns(frozenset({SIDE}))

HALF_LENGTH_M: Final = 120.0
HALF_WIDTH_M: Final = 9.5
"""Kerb line of the street: two lanes and a parking lane a side."""
LANE_OFFSETS_M: Final = (1.75, 5.25)
"""Centre lines of the inner and outer lane of a direction."""
PARKING_OFFSET_M: Final = 8.35
SIDE_LENGTH_M: Final = 70.0
"""Where the side street ends, measured like y."""
SIDE_HALF_WIDTH_M: Final = 5.0
SIDE_OFFSET_M: Final = 1.75
"""Centre lines of its two lanes."""

_CORNER_M: Final = 8.0
WALK_M: Final = (1.65, 2.35)
_FURNITURE_M: Final = 0.65
"""Strip that people use and line of poles and bins, behind the kerb."""
_JUNCTION_M: Final = 14.0
"""Half length of the street's part that turning traffic crosses."""
_STOP_M: Final = -HALF_WIDTH_M - 3.0
_CLEAR_M: Final = -HALF_WIDTH_M - 7.0
_WAIT_M: Final = 8.5
_RIGHT_RADIUS_M: Final = 11.0
_RIGHT_OUT_RADIUS_M: Final = 7.0
_LEFT_RADIUS_M: Final = 9.0
NO_PARKING_M: Final = 18.0
"""Nobody parks within this distance of the side street."""
_PLATOONS_S: Final = (40.0, 15.0)
_APPROACHES: Final = (
    Approach((("through", 0.92), ("left", 0.08)), demand=2.2, platoons=_PLATOONS_S),
    Approach((("through", 0.92), ("right", 0.08)), demand=2.2, platoons=_PLATOONS_S),
    Approach((("right", 0.6), ("left", 0.4)), demand=0.4),
)
"""Traffic on the street comes in platoons, or nobody would ever get out of the side street."""


@dataclass(frozen=True, slots=True)
class Corridor:
    """How the street bends and where its side street is.

    Attributes:
        radius_m: Of the middle line, which curves to the left.
        mouth_m: Where the side street leaves.
    """

    radius_m: float
    mouth_m: float

    def bend(self, points: F64) -> F64:
        """Return (..., 2) layout points of points of the straight frame."""
        angle, out = self.heading(points), self.radius_m - points[..., 1]
        return np.stack([out * np.sin(angle), self.radius_m - out * np.cos(angle)], axis=-1)

    def straighten(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return x, y of the straight frame of layout coordinates; any shape and float type."""
        below = self.radius_m - y
        across = self.radius_m - np.hypot(x, below)
        along = self.radius_m * np.arctan2(x, below)
        south = np.maximum(-across - HALF_WIDTH_M, 0.0)
        kerb = self.radius_m + HALF_WIDTH_M
        return self.mouth_m + (along - self.mouth_m) * ((kerb + south) / kerb), across

    def heading(self, points: F64) -> F64:
        """Return (...,) direction of the street, rad, next to (..., 2) straight-frame points."""
        x, south = points[..., 0], np.maximum(-points[..., 1] - HALF_WIDTH_M, 0.0)
        # South of the kerb the street's circles are longer; the side street stays as wide as it is.
        kerb = self.radius_m + HALF_WIDTH_M
        turned: F64 = (self.mouth_m + (x - self.mouth_m) * kerb / (kerb + south)) / self.radius_m
        return turned

    def off_road(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Return where layout points lie behind the kerb; any shape."""
        along, across = self.straighten(x, y)
        aside, south = np.abs(along - self.mouth_m), -across - HALF_WIDTH_M
        middle = SIDE_HALF_WIDTH_M + _CORNER_M
        rounded = (aside < middle) & (south < _CORNER_M)
        cut = (aside - middle) ** 2 + (south - _CORNER_M) ** 2 > _CORNER_M**2
        side_street = (aside <= SIDE_HALF_WIDTH_M) | (rounded & cut)
        off: NDArray[np.bool_] = (across > HALF_WIDTH_M) | ((south > 0) & ~side_street)
        return off


# ------------------------------------------------------------------------------------------- routes


@lru_cache(maxsize=4)
def corridor_network(corridor: Corridor) -> RouteNetwork:
    """Return the routes: two lanes either way, into the side street and out of it."""
    routes = (
        *(_route(corridor, EAST, WEST, lane, "through") for lane in (0, 1)),
        _route(corridor, EAST, SIDE, 0, "left"),
        *(_route(corridor, WEST, EAST, lane, "through") for lane in (0, 1)),
        _route(corridor, WEST, SIDE, 1, "right"),
        _route(corridor, SIDE, EAST, 0, "right"),
        _route(corridor, SIDE, WEST, 0, "left"),
    )
    return build_network(routes, _APPROACHES)


def _line(mouth: float, arm: int, exit_arm: int, lane: int) -> F64:
    """Return (N, 2) corners and arcs of a route, straight frame."""
    inner, outer = LANE_OFFSETS_M
    r, left = _RIGHT_RADIUS_M, _LEFT_RADIUS_M
    if SIDE not in (arm, exit_arm):
        way = 1.0 if arm == EAST else -1.0
        y = way * LANE_OFFSETS_M[lane]
        return np.array([[way * HALF_LENGTH_M, y], [-way * HALF_LENGTH_M, y]])
    x = mouth + (SIDE_OFFSET_M if arm == SIDE else -SIDE_OFFSET_M)
    far = np.array([[x, -SIDE_LENGTH_M]])
    if arm == WEST:
        bend = arc((x - r, -outer - r), r, 90.0, 0.0)
        return np.concatenate([[[-HALF_LENGTH_M, -outer]], bend, far])
    if arm == EAST:
        bend = arc((x + left, inner - left), left, 90.0, 180.0)
        return np.concatenate([[[HALF_LENGTH_M, inner]], bend, far])
    if exit_arm == EAST:
        r = _RIGHT_OUT_RADIUS_M
        bend = arc((x + r, -outer - r), r, 180.0, 90.0)
        return np.concatenate([far, bend, [[HALF_LENGTH_M, -outer]]])
    bend = arc((x - left, inner - left), left, 0.0, 90.0)
    return np.concatenate([far, bend, [[-HALF_LENGTH_M, inner]]])


def _route(corridor: Corridor, arm: int, exit_arm: int, lane: int, turn: str) -> Route:
    straight = polyline(_line(corridor.mouth_m, arm, exit_arm, lane), 0.05)
    bent = corridor.bend(straight)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(bent, axis=0), axis=1))])
    grid: F64 = STEP_M * np.arange(int(length[-1] / STEP_M) + 1, dtype=np.float64)
    xy, local = (
        np.stack([np.interp(grid, length, line[:, i]) for i in (0, 1)], axis=-1)
        for line in (bent, straight)
    )
    step = np.gradient(xy, axis=0)
    yaw = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    aside, south = local[:, 0] - corridor.mouth_m, local[:, 1]

    def first(condition: NDArray[np.bool_]) -> float:
        return float(grid[int(np.argmax(condition))])

    stop_s = first(south >= _STOP_M if arm == SIDE else np.abs(aside) <= _JUNCTION_M)
    left = {EAST: aside >= _JUNCTION_M, WEST: aside <= -_JUNCTION_M, SIDE: south <= _CLEAR_M}
    clear_s = first(left[exit_arm] & (grid > stop_s))
    waits = turn == "left" and arm == EAST
    return Route(
        arm=arm,
        exit_arm=exit_arm,
        lane=lane,
        turn=turn,
        xy=xy,
        yaw=yaw,
        speed_cap=turn_speed_cap(yaw, grid, stop_s, 4.0),
        stop_s=stop_s,
        wait_s=first(aside <= _WAIT_M) if waits else stop_s,
        # Nobody crosses on foot; there is no gate before the end.
        crosswalk_s=clear_s,
        clear_s=clear_s,
    )


# --------------------------------------------------------------------------------------------- site


@lru_cache(maxsize=4)
def corridor_site(corridor: Corridor) -> Site:
    """Return where people walk, vehicles park and blocks stand."""
    poles, props = (corridor.bend(_kerb_places(corridor.mouth_m, shift)) for shift in (0.0, 1.5))
    end, gap, mouth = HALF_LENGTH_M - 4.0, NO_PARKING_M, corridor.mouth_m
    westbound = ((-end, -2.0), (2.0, end))
    eastbound = ((-end, mouth - gap), (mouth + gap, end))
    return Site(
        pavements=tuple(partial(_pavement, corridor, number) for number in range(3)),
        walk_offsets_m=WALK_M,
        strips=tuple(
            ParkingStrip(reach, HALF_WIDTH_M, partial(_parked, corridor, side))
            for side, strips in ((1.0, westbound), (-1.0, eastbound))
            for reach in strips
        ),
        pole_places=poles,
        prop_places=props,
        building_place=partial(_building_place, corridor),
        hedge_places=partial(_hedge_places, corridor),
    )


def pavement_lines(corridor: Corridor, offset: float) -> tuple[F64, F64, F64]:
    """Return the north sidewalk, the south-west and the south-east one, ``offset`` off the kerb.

    Each is (N, 2), layout frame; the last two turn into the side street.
    """
    y, x = HALF_WIDTH_M + offset, SIDE_HALF_WIDTH_M + offset
    north = np.array([[-HALF_LENGTH_M, y], [HALF_LENGTH_M, y]])
    radius = _CORNER_M - offset
    bend = arc((x + radius, -y - radius), radius, 90.0, 180.0)
    east = np.concatenate([[[HALF_LENGTH_M - corridor.mouth_m, -y]], bend, [[x, -SIDE_LENGTH_M]]])
    west = east * [-1.0, 1.0]
    west[0, 0] = -HALF_LENGTH_M - corridor.mouth_m
    shift = [corridor.mouth_m, 0.0]
    north, west, east = (
        corridor.bend(polyline(line, 0.5)) for line in (north, west + shift, east + shift)
    )
    return north, west, east


def _pavement(corridor: Corridor, number: int, offset: float) -> F64:
    return pavement_lines(corridor, offset)[number]


def _parked(corridor: Corridor, side: float, along: float, offset: float) -> tuple[F64, float]:
    """Return place and heading of a parked vehicle; those on the north side look west."""
    spot = np.array([along, side * offset])
    return corridor.bend(spot), float(corridor.heading(spot)) + (np.pi if side > 0 else 0.0)


def _kerb_places(mouth: float, shift: float) -> F64:
    """Return (K, 2) places along the kerbs at 3 m steps, straight frame, none in the mouth."""
    x = np.arange(-HALF_LENGTH_M + 5, HALF_LENGTH_M - 5, 3.0) + shift
    y = HALF_WIDTH_M + _FURNITURE_M
    south = x[np.abs(x - mouth) > SIDE_HALF_WIDTH_M + _CORNER_M + 2.0]
    return np.concatenate(
        [np.stack([x, np.full(len(x), y)], -1), np.stack([south, np.full(len(south), -y)], -1)]
    )


def _building_place(
    corridor: Corridor, reach: F64, rng: np.random.Generator
) -> tuple[F64, float] | None:
    """Return a place behind the set-back line; None where the side street needs it."""
    behind = rng.uniform(0, 6) if rng.random() < 0.75 else rng.uniform(18, 40)
    side = rng.choice([-1.0, 1.0])
    # The front is straight and the kerb is not: a little more room for what the curve takes.
    sagitta = reach[0] ** 2 / (2 * (corridor.radius_m - 40.0))
    offset = HALF_WIDTH_M + SET_BACK_M + reach[1] + sagitta + behind
    along = rng.uniform(-HALF_LENGTH_M, HALF_LENGTH_M)
    aside = abs(along - corridor.mouth_m) - reach[0]
    if side < 0 and aside < SIDE_HALF_WIDTH_M + SET_BACK_M:
        return None
    spot = np.array([along, side * offset])
    return corridor.bend(spot), float(corridor.heading(spot))


def _hedge_places(corridor: Corridor, count: int, rng: np.random.Generator) -> Hedges:
    """Return low walls along the back of the sidewalks."""
    side, length = rng.choice([-1.0, 1.0], count), rng.uniform(2, 9, count)
    free = corridor.mouth_m + SIDE_HALF_WIDTH_M + _CORNER_M
    along = rng.uniform(free + length, HALF_LENGTH_M - 10)
    offset = side * (HALF_WIDTH_M + WALK_M[1] + rng.uniform(1.5, 4.0, count))
    spots = np.stack([along, offset], axis=-1)
    return Hedges(corridor.bend(spots), corridor.heading(spots), length)
