"""Who may drive on where ways cross: signals or signs, other traffic, people on crosswalks.

Every route has up to three gates where a front must stop while they are closed: the stop line, the
waiting point of left turns, and the crosswalk that a turn drives over last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.junction import LANE_OFFSETS_M
from turbotrain_plugin.synthetic.routes import RouteNetwork
from turbotrain_plugin.synthetic.signals import GREEN, RED, STOP, Control

__all__ = ["CrosswalkUse", "Fleet", "RightOfWay"]

_HARD_STOP: Final = 3.0
"""Braking (m/s^2) beyond which a driver goes on at yellow."""
_GAP_S: Final = 4.0
_LOOK_AHEAD_M: Final = 60.0
_PERSON_MARGIN_M: Final = 2.4


@dataclass(slots=True)
class Fleet:
    """N vehicles on the road now.

    Attributes:
        number: (N,) index of the vehicle in the whole simulation.
        route: (N,) index in the network.
        s: (N,) distance of the centre along the route, metres.
        v: (N,) m/s.
        half_length: (N,) metres.
        half_width: (N,) metres.
        desired: (N,) m/s.
        stopped: (N,) whether it has stood at the stop line.
    """

    number: NDArray[np.int64]
    route: NDArray[np.int64]
    s: NDArray[np.float64]
    v: NDArray[np.float64]
    half_length: NDArray[np.float64]
    half_width: NDArray[np.float64]
    desired: NDArray[np.float64]
    stopped: NDArray[np.bool_]

    @property
    def front(self) -> NDArray[np.float64]:
        """Return the distance of the fronts along the routes."""
        return self.s + self.half_length

    @property
    def rear(self) -> NDArray[np.float64]:
        """Return the distance of the rears along the routes."""
        return self.s - self.half_length

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return all attributes in order of declaration."""
        return (
            self.number, self.route, self.s, self.v, self.half_length, self.half_width,
            self.desired, self.stopped,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CrosswalkUse:
    """Where people are on the crosswalks, over time.

    Attributes:
        start_s: Time of the first entry.
        step_s: Time between two entries.
        offsets: (K, 4, W), position of W people across the arm of the crosswalk they are on;
            NaN while they are not on that crosswalk.
    """

    start_s: float
    step_s: float
    offsets: NDArray[np.float64]

    def occupied(self, arm: int, offset: float, start_s: float, end_s: float) -> bool:
        """Return whether somebody is near the lane at ``offset`` between two times."""
        first = max(0, int((start_s - self.start_s) / self.step_s))
        last = int((end_s - self.start_s) / self.step_s) + 1
        if last <= first or not self.offsets.size:
            return False
        window = self.offsets[first:last, arm]
        with np.errstate(invalid="ignore"):
            return bool((np.abs(window - offset) < _PERSON_MARGIN_M).any())


class RightOfWay:
    """Decides which gates are closed."""

    def __init__(self, network: RouteNetwork, control: Control, people: CrosswalkUse) -> None:
        self._net = network
        self._control = control
        self._people = people
        routes = network.routes
        self._stop = np.array([route.stop_s for route in routes])
        self._wait = np.array([route.wait_s for route in routes])
        self._clear = np.array([route.clear_s for route in routes])
        self._is_left = np.array([route.turn == "left" for route in routes])

    def closed_gates(self, time_s: float, fleet: Fleet) -> NDArray[np.float64]:
        """Return (N,) where each front must stop, metres along its route; inf: nowhere."""
        gates = np.full(len(fleet.s), np.inf)
        near = (self._stop[fleet.route] - fleet.front < _LOOK_AHEAD_M) & (
            fleet.rear < self._clear[fleet.route]
        )
        for i in np.nonzero(near)[0].tolist():
            gates[i] = self._gate(time_s, fleet, i)
        return gates

    def at_stop_line(self, fleet: Fleet) -> NDArray[np.bool_]:
        """Return (N,) whether a vehicle stands at its stop line now."""
        distance = self._stop[fleet.route] - fleet.front
        at_line: NDArray[np.bool_] = (distance >= 0) & (distance < 3.5) & (fleet.v < 0.3)
        return at_line

    def _gate(self, time_s: float, fleet: Fleet, i: int) -> float:
        route = self._net.routes[int(fleet.route[i])]
        front = float(fleet.front[i])
        if front <= route.stop_s and not self._may_enter(time_s, fleet, i):
            return route.stop_s
        if route.turn == "left" and front <= route.wait_s and self._must_yield(time_s, fleet, i):
            return route.wait_s
        if route.turn != "through" and front <= route.crosswalk_s:
            way = route.crosswalk_s - front + 2 * fleet.half_length[i] + 6.0
            end_s = time_s + way / max(fleet.v[i], 2.5) + 0.5
            lane = -LANE_OFFSETS_M[route.lane]
            if self._people.occupied(route.exit_arm, lane, time_s, end_s):
                return route.crosswalk_s
        return float("inf")

    def _may_enter(self, time_s: float, fleet: Fleet, i: int) -> bool:
        route = self._net.routes[int(fleet.route[i])]
        distance = route.stop_s - float(fleet.front[i])
        state = self._control.state(route.arm, time_s)
        cannot_stop = fleet.v[i] ** 2 / (2 * max(distance, 0.1)) > _HARD_STOP
        if state != GREEN and not cannot_stop:
            after_halt = state == STOP or (state == RED and route.turn == "right")
            if not after_halt or not fleet.stopped[i] or self._must_yield(time_s, fleet, i):
                return False
        offset = 0.0 if route.turn == "left" else LANE_OFFSETS_M[route.lane]
        if not cannot_stop and self._people.occupied(route.arm, offset, time_s, time_s + 3.0):
            return False
        return route.turn == "left" or not self._inside(fleet, i).any()

    def _inside(self, fleet: Fleet, i: int) -> NDArray[np.bool_]:
        """Return (N,) who is in the junction and not yet clear of the route of vehicle ``i``."""
        route = fleet.route
        own = route[i]
        in_junction = (fleet.front > self._stop[route]) & (fleet.rear < self._clear[route])
        ahead = fleet.rear < self._net.leave[own, route]
        held = (
            self._is_left[route]
            & (fleet.front <= self._wait[route])
            & (fleet.front < self._net.enter[own, route])
        )
        inside: NDArray[np.bool_] = in_junction & ahead & ~held
        return inside

    def _must_yield(self, time_s: float, fleet: Fleet, i: int) -> bool:
        """Return whether crossing traffic is inside, or would arrive before ``i`` is through."""
        if self._inside(fleet, i).any():
            return True
        own = int(fleet.route[i])
        comes = (fleet.front <= self._stop[fleet.route]) & np.isfinite(
            self._net.enter[own, fleet.route]
        )
        for j in np.nonzero(comes)[0].tolist():
            other = int(fleet.route[j])
            front_j = fleet.s[j] + fleet.half_length[j]
            if not self._will_enter(time_s, other, self._stop[other] - front_j, fleet.v[j]):
                continue
            way = self._net.leave[other, own] + 2 * fleet.half_length[i] - fleet.front[i]
            needs = max(way, 0.0) / 4.0 + max(4.0 - fleet.v[i], 0.0) / 3.0
            arrives = _time_to(self._net.enter[own, other] - front_j, fleet.v[j])
            if arrives < max(_GAP_S, needs + 1.0):
                return True
        return False

    def _will_enter(self, time_s: float, route: int, distance: float, speed: float) -> bool:
        """Return whether a vehicle before its stop line is going to drive on."""
        state = self._control.state(self._net.routes[route].arm, time_s)
        return state == GREEN or (
            bool(speed**2 / (2 * max(distance, 0.1)) > _HARD_STOP) and speed > 1.0
        )


def _time_to(distance: float, speed: float) -> float:
    """Return the least seconds for ``distance``, speeding up by 1.5 m/s^2."""
    return float((np.sqrt(speed**2 + 3.0 * max(distance, 0.0)) - speed) / 1.5)
