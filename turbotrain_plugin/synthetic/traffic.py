"""Vehicles that drive: arrivals, car following and giving way.

Car following is the Intelligent Driver Model (Treiber, Hennecke and Helbing 2000, eq. 1-3), with
acceleration kept within [-3.9, 1.8] m/s^2. Everybody follows the centre line of a route, so a
leader is whoever lies on that line ahead, whatever route he is on himself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.objects import HALF_SIZES_M, SceneObjects
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse, Fleet, RightOfWay
from turbotrain_plugin.synthetic.routes import RouteNetwork
from turbotrain_plugin.synthetic.signals import Control

__all__ = ["MOVING_MIX", "draw_types", "simulate_traffic"]

F64 = NDArray[np.float64]

MOVING_MIX: Final = {
    "Car": 0.78, "Van": 0.08, "Truck": 0.05, "Bus": 0.03, "LongVehicle": 0.03,
    "PoliceCar": 0.02, "ConcreteTruck": 0.01,
}  # fmt: skip
"""Share of the types among moving vehicles."""

_STEP_S: Final = 0.1
_COARSE_STEPS: Final = ((-45.0, 0.2), (-8.0, _STEP_S))
"""Start and length of the steps before the recording; nobody looks at the first ones."""
_ACCELERATION: Final = 1.8
_BRAKING: Final = 1.8
_HARDEST: Final = -3.9
_HEADWAY_S: Final = 1.4
_JAM_GAP_M: Final = 2.0
_STOP_SLACK_M: Final = 1.5
"""A closed gate stands this much behind its line, so that fronts stop 0.5 m before the line."""
_ALONG: Final = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
_ONLY_THROUGH: Final = ("Truck", "Bus", "ConcreteTruck", "LongVehicle")


def draw_types(count: int, rng: np.random.Generator) -> list[tuple[str, tuple[float, ...]]]:
    """Return ``count`` vehicle types of the mix with half sizes that vary by up to 8 %."""
    kinds = rng.choice(list(MOVING_MIX), size=count, p=list(MOVING_MIX.values()))
    drawn = []
    for kind in kinds.tolist():
        spread = 0.08 if kind == "Car" else 0.03
        factor = 1 + rng.uniform(-spread, spread, 3)
        size = tuple(float(half * f) for half, f in zip(HALF_SIZES_M[kind], factor, strict=True))
        drawn.append((kind, size))
    return drawn


@dataclass(slots=True)
class _Log:
    """All vehicles of a simulation and what was recorded of them."""

    types: list[str] = field(default_factory=list)
    half_sizes: list[tuple[float, ...]] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)
    frames: list[tuple[NDArray[np.int64], F64, F64]] = field(default_factory=list)


def simulate_traffic(
    network: RouteNetwork,
    control: Control,
    people: CrosswalkUse,
    frames: int,
    rng: np.random.Generator,
) -> SceneObjects:
    """Drive until the roads are busy, then record.

    Args:
        network: The routes to drive.
        control: Signals or signs; time 0 is the first recorded frame.
        people: Who is on the crosswalks when.
        frames: T, frames to record at 10 Hz.
        rng: Source of all randomness.

    Returns:
        The vehicles seen in the recorded time.
    """
    rules = RightOfWay(network, control, people)
    arrivals = _Arrivals(network, rng)
    log = _Log()
    fleet = _empty_fleet()
    lengths = np.array([route.length for route in network.routes])
    for time_s, step_s in _steps(frames):
        fleet = arrivals.add(fleet, log, time_s, step_s)
        if time_s >= 0:
            log.frames.append((fleet.number.copy(), fleet.s.copy(), fleet.v.copy()))
        fleet.stopped |= rules.at_stop_line(fleet)
        acceleration = _acceleration(network, fleet, rules.closed_gates(time_s, fleet))
        speed = np.maximum(fleet.v + acceleration * step_s, 0.0)
        fleet.s += 0.5 * (fleet.v + speed) * step_s
        fleet.v = speed
        fleet = _keep(fleet, fleet.s < lengths[fleet.route])
    return _collect(network, log, frames)


def _steps(frames: int) -> list[tuple[float, float]]:
    """Return (time, step) from the first arrival to the last recorded frame, seconds."""
    (start, coarse), (fine_start, fine) = _COARSE_STEPS
    early = [(start + coarse * i, coarse) for i in range(round((fine_start - start) / coarse))]
    late = [(fine * i, fine) for i in range(round(fine_start / fine), frames)]
    return early + late


class _Arrivals:
    """Poisson arrivals at the ends of the arms; who finds no room waits outside."""

    def __init__(self, network: RouteNetwork, rng: np.random.Generator) -> None:
        self._net = network
        self._rng = rng
        arms = network.approaches
        busy = rng.uniform(0.08, 0.14) * rng.uniform(0.6, 1.4, len(arms))
        self._rates = busy * [arm.demand for arm in arms]
        self._gates = [(arm, gate) for arm, way in enumerate(arms) if (gate := way.platoons)]
        self._phase = rng.random() if self._gates else 0.0
        self._waiting: dict[tuple[int, int], list[int]] = {}
        self._ways: dict[tuple[int, str], list[int]] = {}
        for number, way in enumerate(network.routes):
            self._ways.setdefault((way.arm, way.turn), []).append(number)

    def add(self, fleet: Fleet, log: _Log, time_s: float, step_s: float) -> Fleet:
        """Return the fleet with the vehicles that enter within ``step_s``."""
        rates = self._rates.copy()
        for arm, (cycle_s, open_s) in self._gates:
            opened = (time_s + self._phase * cycle_s) % cycle_s < open_s
            rates[arm] *= cycle_s / open_s if opened else 0.0
        arrived = self._rng.random(len(rates)) < rates * step_s
        for arm in np.nonzero(arrived)[0].tolist():
            self._arrive(arm, log)
        for queue in self._waiting.values():
            if queue:
                entered = self._enter(fleet, queue[0], log)
                if entered is not None:
                    fleet = entered
                    queue.pop(0)
        return fleet

    def _arrive(self, arm: int, log: _Log) -> None:
        (kind, size) = draw_types(1, self._rng)[0]
        turns, shares = zip(*self._net.approaches[arm].shares, strict=True)
        turn = str(self._rng.choice(turns, p=shares))
        if kind in _ONLY_THROUGH:
            turn = "through"
        # Long vehicles do not come out of a street that they would have to turn from.
        ways = self._ways.get((arm, turn), [])
        lane = int(self._rng.integers(2))
        if not ways:
            return
        number = ways[lane % len(ways)]
        log.types.append(kind)
        log.half_sizes.append(size)
        log.routes.append(number)
        entry = (arm, self._net.routes[number].lane)
        self._waiting.setdefault(entry, []).append(len(log.types) - 1)

    def _enter(self, fleet: Fleet, number: int, log: _Log) -> Fleet | None:
        route = self._net.routes[log.routes[number]]
        half = log.half_sizes[number]
        same_lane = np.array(
            [
                (self._net.routes[r].arm, self._net.routes[r].lane) == (route.arm, route.lane)
                for r in fleet.route.tolist()
            ],
            dtype=bool,
        )
        desired = float(np.clip(self._rng.normal(10.5, 1.5), 6.0, 14.0))
        speed = desired
        if same_lane.any():
            last = int(np.argmin(np.where(same_lane, fleet.rear, np.inf)))
            gap = fleet.rear[last] - half[0]
            if gap < 8.0 + 0.3 * fleet.v[last]:
                return None
            speed = min(speed, (gap - 2.0) / 1.6, np.sqrt(fleet.v[last] ** 2 + 2.0 * (gap - 4.0)))
        new = (number, log.routes[number], 0.0, speed, half[0], half[1], desired, False)
        return Fleet(
            *(np.append(old, value) for old, value in zip(fleet.arrays(), new, strict=True))
        )


def _empty_fleet() -> Fleet:
    whole = np.zeros(0, np.int64)
    real = np.zeros(0)
    return Fleet(whole, whole, real, real, real, real, real, np.zeros(0, np.bool_))


def _keep(fleet: Fleet, mask: NDArray[np.bool_]) -> Fleet:
    return fleet if mask.all() else Fleet(*(array[mask] for array in fleet.arrays()))


def _acceleration(network: RouteNetwork, fleet: Fleet, gates: F64) -> F64:
    """Return (N,) IDM accelerations towards the nearer of leader and closed gate."""
    gap, leader_speed = _leaders(network, fleet)
    sample = np.clip(np.rint(fleet.s / 0.5).astype(np.int64), 0, network.caps.shape[1] - 1)
    desired = np.minimum(fleet.desired, network.caps[fleet.route, sample])
    free = 1.0 - (fleet.v / desired) ** 4
    stop_gap = np.where(np.isfinite(gates), gates - fleet.front + _STOP_SLACK_M, np.inf)
    brake = np.maximum(
        _interaction(fleet.v, fleet.v - leader_speed, gap), _interaction(fleet.v, fleet.v, stop_gap)
    )
    wished: F64 = _ACCELERATION * (free - brake)
    return np.clip(wished, _HARDEST, _ACCELERATION)


def _interaction(speed: F64, closing: F64, gap: F64) -> F64:
    dynamic = speed * _HEADWAY_S + speed * closing / (2 * np.sqrt(_ACCELERATION * _BRAKING))
    wished = _JAM_GAP_M + np.maximum(dynamic, 0.0)
    share: F64 = wished / np.maximum(gap, 0.1)
    return share * share


def _leaders(network: RouteNetwork, fleet: Fleet) -> tuple[F64, F64]:
    """Return (N,) distance to the next vehicle on the own line and its speed along that line."""
    count = len(fleet.s)
    if count < 2:
        return np.full(count, np.inf), np.zeros(count)
    spots = fleet.s[:, None] + fleet.half_length[:, None] * _ALONG
    index = np.clip(np.rint(spots / 0.5).astype(np.int64), 0, network.caps.shape[1] - 1)
    mine, other = fleet.route[:, None, None], fleet.route[None, :, None]
    along = network.along[mine, other, index[None]]
    aside = network.aside[mine, other, index[None]]
    touch = fleet.half_width[:, None] + fleet.half_width[None, :] + 0.3
    relevant = (aside < touch[..., None]) & (along > fleet.s[:, None, None])
    relevant[np.arange(count), np.arange(count)] = False
    gap = np.where(relevant, along - fleet.front[:, None, None], np.inf).min(axis=2)
    leader = gap.argmin(axis=1)
    nearest = gap[np.arange(count), leader]
    turned = _heading(network, fleet.route[leader], fleet.s[leader]) - _heading(
        network, fleet.route, fleet.front + np.where(np.isfinite(nearest), nearest, 0.0)
    )
    crossing = np.abs(np.sin(turned)) * fleet.half_width[leader]
    return nearest - crossing, fleet.v[leader] * np.maximum(np.cos(turned), 0.0)


def _heading(network: RouteNetwork, route: NDArray[np.int64], s: F64) -> F64:
    return np.array(
        [
            network.routes[r].yaw[min(max(int(distance * 2), 0), len(network.routes[r].yaw) - 1)]
            for r, distance in zip(route.tolist(), s.tolist(), strict=True)
        ]
    )


def _collect(network: RouteNetwork, log: _Log, frames: int) -> SceneObjects:
    numbers = np.unique(np.concatenate([seen for seen, _, _ in log.frames]))
    count = len(numbers)
    s, speed = np.zeros((frames, count)), np.zeros((frames, count))
    present = np.zeros((frames, count), np.bool_)
    for frame, (seen, along, velocity) in enumerate(log.frames):
        column = np.searchsorted(numbers, seen)
        s[frame, column], speed[frame, column], present[frame, column] = along, velocity, True
    xy, yaw = np.zeros((frames, count, 2)), np.zeros((frames, count))
    for index, number in enumerate(numbers.tolist()):
        xy[:, index], yaw[:, index] = network.routes[log.routes[number]].at(s[:, index])
    return SceneObjects(
        ids=numbers,
        types=tuple(log.types[n] for n in numbers.tolist()),
        half_sizes=np.array([log.half_sizes[n] for n in numbers.tolist()]).reshape(-1, 3),
        xy=xy,
        yaw=yaw,
        speed=speed,
        present=present,
    )
