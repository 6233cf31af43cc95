"""Single decisions at the junction: who must stop where."""

from __future__ import annotations

import numpy as np
import pytest

from turbotrain_plugin.synthetic.junction import route_network
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse, Fleet, RightOfWay
from turbotrain_plugin.synthetic.signals import Control, Signals, StopSigns

NETWORK = route_network()
NOBODY = CrosswalkUse(-8.0, 0.1, np.zeros((0, 4, 0)))
GREEN_AT_0, YELLOW_AT_0, RED_AT_0 = Signals(2.0), Signals(13.0), Signals(20.0)
HALF = 2.3

Vehicle = tuple[tuple[int, str, int], float, float, bool]
"""(arm, turn, lane), distance of the front beyond the stop line, speed, has stopped."""


def gates(
    signals: Control, *vehicles: Vehicle, people: CrosswalkUse = NOBODY, time_s: float = 0.0
) -> list[str]:
    """Name of the gate at which each vehicle must stop."""
    keys = [(route.arm, route.turn, route.lane) for route in NETWORK.routes]
    routes = [keys.index(vehicle[0]) for vehicle in vehicles]
    stop = [NETWORK.routes[route].stop_s for route in routes]
    count = len(vehicles)
    fleet = Fleet(
        number=np.arange(count),
        route=np.array(routes),
        s=np.array([s + v[1] - HALF for s, v in zip(stop, vehicles, strict=True)]),
        v=np.array([v[2] for v in vehicles]),
        half_length=np.full(count, HALF),
        half_width=np.full(count, 0.95),
        desired=np.full(count, 10.0),
        stopped=np.array([v[3] for v in vehicles]),
    )
    found = RightOfWay(NETWORK, signals, people).closed_gates(time_s, fleet)
    names = []
    for route, gate in zip(routes, found.tolist(), strict=True):
        r = NETWORK.routes[route]
        table = {r.crosswalk_s: "crosswalk", r.wait_s: "wait", r.stop_s: "stop", np.inf: "free"}
        names.append(table[gate])
    return names


THROUGH, RIGHT, LEFT = (0, "through", 0), (0, "right", 1), (0, "left", 0)
ONCOMING, FROM_LEFT = (2, "through", 0), (3, "through", 1)


@pytest.mark.parametrize(
    ("signals", "distance", "speed", "expected"),
    [
        (GREEN_AT_0, 20.0, 10.0, "free"),
        (RED_AT_0, 20.0, 5.0, "stop"),
        (RED_AT_0, 70.0, 5.0, "free"),  # too far away to matter yet
        (YELLOW_AT_0, 30.0, 10.0, "stop"),
        (YELLOW_AT_0, 10.0, 10.0, "free"),  # would have to brake with 5 m/s^2
    ],
)
def test_signal(signals: Signals, distance: float, speed: float, expected: str) -> None:
    assert gates(signals, (THROUGH, -distance, speed, False)) == [expected]


@pytest.mark.parametrize(
    ("distance", "speed", "expected"),
    [
        (30.0, 10.0, "wait"),
        (5.0, 10.0, "wait"),
        (98.0, 10.0, "free"),  # arrives after the turn is over
        (1.0, 0.0, "wait"),  # about to start at green
        (-8.0, 6.0, "wait"),  # in the middle of the junction
        (-45.0, 10.0, "free"),  # through already
    ],
)
def test_left_turn_yields_to_oncoming_traffic(distance: float, speed: float, expected: str) -> None:
    left = (LEFT, 10.0, 0.0, False)
    assert gates(GREEN_AT_0, left, (ONCOMING, -distance, speed, False))[0] == expected


def test_left_turn_clears_when_oncoming_traffic_stops() -> None:
    left = (LEFT, 10.0, 0.0, False)
    assert gates(YELLOW_AT_0, left, (ONCOMING, -30.0, 6.0, False)) == ["free", "stop"]


def test_two_left_turns_pass_one_another() -> None:
    both = [(LEFT, 10.0, 0.0, False), ((2, "left", 0), 10.0, 0.0, False)]
    assert gates(GREEN_AT_0, *both) == ["free", "free"]


def test_traffic_waits_until_the_junction_is_clear() -> None:
    turning = (LEFT, 16.0, 4.0, False)
    assert gates(GREEN_AT_0, turning, (ONCOMING, -3.0, 0.0, False)) == ["free", "stop"]
    # Who only waits for his gap blocks nobody.
    waiting = (LEFT, 10.0, 0.0, False)
    assert gates(GREEN_AT_0, waiting, (ONCOMING, -3.0, 0.0, False)) == ["wait", "free"]


@pytest.mark.parametrize(
    ("stopped", "other", "expected"),
    [
        (False, None, "stop"),
        (True, None, "free"),
        (True, -15.0, "stop"),  # somebody with green comes from the left
    ],
)
def test_right_turn_at_red(stopped: bool, other: float | None, expected: str) -> None:
    right = (RIGHT, -1.0, 0.0, stopped)
    others = [] if other is None else [(FROM_LEFT, other, 9.0, False)]
    assert gates(RED_AT_0, right, *others)[0] == expected
    straight = ((0, "through", 1), -1.0, 0.0, stopped)
    assert gates(RED_AT_0, straight) == ["stop"]


@pytest.mark.parametrize(
    ("arm", "offset", "expected"),
    [(1, -7.0, "crosswalk"), (1, 7.0, "free"), (2, -7.0, "free"), (0, 7.0, "stop")],
)
def test_people_go_first(arm: int, offset: float, expected: str) -> None:
    """On the lane that the turn leaves by, or on the one before the own stop line."""
    offsets = np.full((200, 4, 1), np.nan)
    offsets[60:, arm, 0] = offset
    people = CrosswalkUse(-8.0, 0.1, offsets)
    assert gates(GREEN_AT_0, (RIGHT, -4.0, 2.0, False), people=people) == [expected]


STOP_AT_0 = StopSigns(frozenset({0, 2}))


@pytest.mark.parametrize("way", [THROUGH, RIGHT, LEFT])
@pytest.mark.parametrize(
    ("stopped", "other", "expected"),
    [
        (False, None, "stop"),
        (True, None, "free"),
        (True, -15.0, "stop"),  # somebody with priority comes from the left
        (True, 60.0, "free"),  # through already
    ],
)
def test_stop_sign(
    way: tuple[int, str, int], stopped: bool, other: float | None, expected: str
) -> None:
    """Every turn must halt, then may go when nobody comes; unlike a right turn at red."""
    others = [] if other is None else [((3, "through", 1), other, 9.0, False)]
    crosses = [((3, "through", 0), other, 9.0, False)] if other is not None else []
    assert gates(STOP_AT_0, (way, -1.0, 0.0, stopped), *others, *crosses)[0] == expected


def test_priority_at_stop_signs() -> None:
    assert gates(STOP_AT_0, (FROM_LEFT, -20.0, 10.0, False)) == ["free"]
