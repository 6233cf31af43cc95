"""Layouts as vector maps, in the world frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.vector_map import Lane, VectorMap
from turbotrain_plugin.synthetic import corridor as street
from turbotrain_plugin.synthetic.junction import (
    ARM_LENGTH_M,
    LANE_OFFSETS_M,
    LANE_WIDTH_M,
    PARKING_M,
    PARKING_OFFSET_M,
    STOP_LINE_M,
    WALK_OFFSETS_M,
    arm_points,
    corner_way,
    route_network,
)
from turbotrain_plugin.synthetic.routes import Route, polyline
from turbotrain_plugin.synthetic.world import World

__all__ = ["LANE_MAPS", "corridor_map", "junction_map"]

F64 = NDArray[np.float64]

_DRIVING: Final = 1
_SIDEWALK: Final = 2
_SHOULDER: Final = 3
_PARKING: Final = 4
_CONNECTOR_ROAD: Final = 11
_POCKET_LANE: Final = 3
_SHOULDER_OFFSET_M: Final = 8.95
_STREET_SHOULDER_M: Final = 7.15
_SPACING_M: Final = 1.0


def junction_map(world: World) -> VectorMap:
    """Return lanes at 1 m spacing; road k + 1 is arm k, roads from 11 on cross the junction.

    Lanes 1 and 2 of an arm lead to the junction (inner, outer), 3 is the left-turn pocket, -1 and
    -2 lead away; +-4 shoulders, +-5 parking lanes, +-6 sidewalks. Their order of points is the
    direction of travel.
    """
    lanes: list[Lane] = []
    routes = route_network().routes
    for arm in range(4):
        lanes += _arm_lanes(world, arm, routes)
    for number, route in enumerate(routes):
        road = _CONNECTOR_ROAD + number
        inside = route.xy[int(route.stop_s * 2) : int(route.clear_s * 2) + 1]
        lanes.append(
            _driving(world, road, 1, inside, ((_entry_name(route),), (_exit_name(route),)))
        )
    return VectorMap(tuple(lanes))


def _entry_name(route: Route) -> str:
    lane = _POCKET_LANE if route.turn == "left" else route.lane + 1
    return f"{route.arm + 1}_{lane}"


def _exit_name(route: Route) -> str:
    return f"{route.exit_arm + 1}_{-route.lane - 1}"


def _arm_lanes(world: World, arm: int, routes: tuple[Route, ...]) -> list[Lane]:
    road = arm + 1
    lanes = []
    links: dict[str, list[str]] = {}
    for number, route in enumerate(routes):
        connector = f"{_CONNECTOR_ROAD + number}_1"
        links.setdefault(_entry_name(route), []).append(connector)
        links.setdefault(_exit_name(route), []).append(connector)
    for lane, offset in enumerate(LANE_OFFSETS_M, start=1):
        inwards = np.array([[ARM_LENGTH_M, offset], [STOP_LINE_M, offset]])
        outwards = np.array([[STOP_LINE_M, -offset], [ARM_LENGTH_M, -offset]])
        after = tuple(links[f"{road}_{lane}"]) + ((f"{road}_{_POCKET_LANE}",) if lane == 1 else ())
        lanes.append(_driving(world, road, lane, _turned(arm, inwards), ((), after)))
        before = tuple(links[f"{road}_{-lane}"])
        lanes.append(_driving(world, road, -lane, _turned(arm, outwards), (before, ())))
    left = next(route for route in routes if route.arm == arm and route.turn == "left")
    pocket = left.xy[int((ARM_LENGTH_M - 65.0) * 2) : int(left.stop_s * 2) + 1]
    ends = ((f"{road}_1",), tuple(links[f"{road}_{_POCKET_LANE}"]))
    lanes.append(_driving(world, road, _POCKET_LANE, pocket, ends))
    for side in (1, -1):
        # With the traffic next to it: towards the junction on the left, away on the right.
        way = slice(None, None, -side)
        for lane, kind, offset, start in (
            (4, _SHOULDER, _SHOULDER_OFFSET_M, STOP_LINE_M),
            (5, _PARKING, PARKING_OFFSET_M, PARKING_M[0]),
        ):
            line = np.array([[start, side * offset], [ARM_LENGTH_M, side * offset]])[way]
            lanes.append(_plain(world, (road, side * lane), kind, _turned(arm, line)))
    sidewalk = corner_way(arm, sum(WALK_OFFSETS_M) / 2)
    lanes.append(_plain(world, (road, 6), _SIDEWALK, sidewalk))
    return lanes


def corridor_map(world: World) -> VectorMap:
    """Return lanes at 1 m spacing; roads 1, 2, 3 are the arms to the east, west and south.

    Lanes of an arm are numbered as at the junction: 1 and 2 lead to the mouth of the side street,
    -1 and -2 lead away, +-4 shoulders and +-5 parking lanes; lane 6 is the sidewalk north, south-
    west and south-east. Roads from 11 on pass or use the mouth.
    """
    place = world.ground.roads
    assert isinstance(place, street.Corridor)
    routes = street.corridor_network(place).routes
    lanes: dict[str, Lane] = {}
    links: dict[str, tuple[list[str], list[str]]] = {}
    for number, route in enumerate(routes):
        start, end = int(route.stop_s * 2), int(route.clear_s * 2)
        entry, leave = f"{route.arm + 1}_{route.lane + 1}", f"{route.exit_arm + 1}_{_exit(route)}"
        connector = _driving(
            world, _CONNECTOR_ROAD + number, 1, route.xy[start : end + 1], ((entry,), (leave,))
        )
        lanes[connector.name] = connector
        links.setdefault(entry, ([], []))[1].append(connector.name)
        links.setdefault(leave, ([], []))[0].append(connector.name)
        # Routes that share a lane have the same points there.
        for name, line in ((entry, route.xy[: start + 1]), (leave, route.xy[end:])):
            road, lane = (int(part) for part in name.split("_"))
            lanes.setdefault(name, _driving(world, road, lane, line, ((), ())))
    linked = [
        replace(lane, entry=tuple(links[name][0]), exit=tuple(links[name][1]))
        if name in links
        else lane
        for name, lane in lanes.items()
    ]
    return VectorMap((*linked, *_street_sides(world, place)))


def _exit(route: Route) -> int:
    """Return the lane that a route leaves by: turns keep to the lane next to them."""
    if route.exit_arm == street.SIDE:
        return -1
    return -2 if route.turn == "right" else -route.lane - 1


def _street_sides(world: World, place: street.Corridor) -> list[Lane]:
    """Return what lies along the kerbs, in the direction of the traffic next to it."""
    end, gap, mouth = street.HALF_LENGTH_M, street.NO_PARKING_M, place.mouth_m
    lanes = []
    for road, side, (start, stop) in (
        (1, 1.0, (end, 0.0)),
        (2, 1.0, (0.0, -end)),
        (2, -1.0, (-end, mouth - gap)),
        (1, -1.0, (mouth + gap, end)),
    ):
        # Towards the side street's mouth positive, away from it negative, as the driving lanes.
        sign = 1 if (road == 1) == (side > 0) else -1
        for lane, kind, offset in (
            (4, _SHOULDER, _STREET_SHOULDER_M),
            (5, _PARKING, street.PARKING_OFFSET_M),
        ):
            line = polyline(np.array([[start, side * offset], [stop, side * offset]]), _SPACING_M)
            lanes.append(_plain(world, (road, sign * lane), kind, place.bend(line)))
    walks = street.pavement_lines(place, sum(street.WALK_M) / 2)
    for road, line in enumerate(walks, start=1):
        lanes.append(_plain(world, (road, 6), _SIDEWALK, line))
    return lanes


# --------------------------------------------------------------------------------------- any layout


def _turned(arm: int, line: F64) -> F64:
    return arm_points(arm, line[:, 0], line[:, 1])


def _lift(world: World, line: F64) -> F64:
    height = world.ground.height(line[:, 0], line[:, 1])
    return world.to_world(np.concatenate([line, height[:, None]], axis=1))


def _plain(world: World, name: tuple[int, int], kind: int, line: F64) -> Lane:
    points = _lift(world, polyline(line, _SPACING_M))
    return Lane(name[0], name[1], kind, points, np.zeros((0, 3)))


def _driving(
    world: World, road: int, lane: int, line: F64, links: tuple[tuple[str, ...], tuple[str, ...]]
) -> Lane:
    """Return a lane with its left, then its right edge as boundary."""
    line = polyline(line, _SPACING_M)
    step = np.gradient(line, axis=0)
    left = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.linalg.norm(step, axis=1)[:, None]
    edges = np.concatenate([line + s * left * LANE_WIDTH_M / 2 for s in (1.0, -1.0)])
    return Lane(road, lane, _DRIVING, _lift(world, line), _lift(world, edges), *links)


LANE_MAPS: Final[dict[str, Callable[[World], VectorMap]]] = {
    "junction": junction_map,
    "corridor": corridor_map,
}
"""Vector map of each layout."""
