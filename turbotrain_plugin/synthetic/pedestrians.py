"""People on foot and on two wheels: their ways are laid down first, traffic gives way to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.junction import CROSSWALK_M, ROADS, arm_points
from turbotrain_plugin.synthetic.objects import HALF_SIZES_M, SceneObjects
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse
from turbotrain_plugin.synthetic.routes import polyline
from turbotrain_plugin.synthetic.signals import Signals
from turbotrain_plugin.synthetic.site import Site

__all__ = ["draw_people"]

F64 = NDArray[np.float64]

_STEP_S: Final = 0.1
_LEAD_S: Final = 8.0
"""People are on their way this long before the recording, so that traffic has seen them."""
_STANDING: Final = 0.45
_CROSSING: Final = 0.35
_SWAY_M: Final = 0.08
_SWAY_S: Final = 1.5
_CROSSWALK_EDGE_M: Final = ROADS.half_width_m + 1.0


@dataclass(slots=True)
class _Person:
    """One candidate over K steps: (K, 2) positions, (K,) heading, speed and presence."""

    kind: str
    xy: F64
    yaw: F64
    speed: F64
    present: NDArray[np.bool_]
    crosswalk: int = -1


def draw_people(
    site: Site, signals: Signals | None, frames: int, rng: np.random.Generator
) -> tuple[SceneObjects, CrosswalkUse]:
    """Return the people of a scene and their use of the crosswalks.

    In 15 % of the scenes nobody is about; else 20-50 people, 45 % of them standing, and up to 4
    riders at 2-5 m/s. Nobody touches anybody else: who would is drawn again.

    Args:
        site: Where they walk.
        signals: When crosswalks are free, time 0 is the first recorded frame; None where there
            are none to cross.
        frames: T, frames at 10 Hz.
        rng: Source of all randomness.
    """
    times: F64 = _STEP_S * np.arange(-round(_LEAD_S / _STEP_S), frames, dtype=np.float64)
    wanted = 0 if rng.random() < 0.15 else int(rng.integers(20, 51))
    riders = int(rng.integers(0, 5)) if wanted else 0
    accepted: list[_Person] = []
    for number in range(wanted + riders):
        for _ in range(12):
            person = _draw(site, number >= wanted, signals, times, rng)
            if _is_free(person, accepted):
                accepted.append(person)
                break
    return _collect(accepted, frames), _crosswalk_use(accepted, times)


def _draw(
    site: Site, rider: bool, signals: Signals | None, times: F64, rng: np.random.Generator
) -> _Person:
    if rider:
        kind = str(
            rng.choice(["BicycleRider", "ScooterRider", "MotorcyleRider"], p=[0.6, 0.3, 0.1])
        )
        offset = site.walk_offsets_m[1] + 0.5
        return _walk(site, kind, (rng.uniform(2.0, 5.0), offset), times, rng)
    kind = str(rng.choice(["Pedestrian", "Child", "RoadWorker"], p=[0.85, 0.1, 0.05]))
    what = rng.random()
    if what < _STANDING:
        return _stand(site, kind, times, rng)
    speed = float(np.clip(rng.normal(1.4, 0.25), 0.7, 2.2))
    if signals is not None and what < _STANDING + _CROSSING:
        return _cross(site, kind, speed, signals, times, rng)
    return _walk(site, kind, (speed, rng.uniform(*site.walk_offsets_m)), times, rng)


def _stand(site: Site, kind: str, times: F64, rng: np.random.Generator) -> _Person:
    pavement = site.pavements[int(rng.integers(len(site.pavements)))]
    way = polyline(pavement(rng.uniform(*site.walk_offsets_m)), 0.5)
    # Half of them near the middle, where people wait.
    near = way[np.hypot(way[:, 0], way[:, 1]) < 45.0]
    way = near if rng.random() < 0.5 else way
    spot = way[int(rng.integers(len(way)))]
    count = len(times)
    return _Person(
        kind,
        np.broadcast_to(spot, (count, 2)).copy(),
        np.full(count, rng.uniform(-np.pi, np.pi)),
        np.zeros(count),
        np.ones(count, np.bool_),
    )


def _walk(
    site: Site, kind: str, gait: tuple[float, float], times: F64, rng: np.random.Generator
) -> _Person:
    """Along a sidewalk; ``gait``: speed in m/s and offset in metres."""
    speed, offset = gait
    way = polyline(site.pavements[int(rng.integers(len(site.pavements)))](offset), 0.25)
    if rng.random() < 0.5:
        way = way[::-1]
    length = _length(way)
    s = rng.uniform(-speed * _LEAD_S, length) + speed * (times - times[0])
    return _follow(kind, way, s, times, rng)


def _cross(
    site: Site, kind: str, speed: float, signals: Signals, times: F64, rng: np.random.Generator
) -> _Person:
    """Along a sidewalk to a crosswalk, wait, cross briskly, and on along the other sidewalk."""
    arm, side = int(rng.integers(4)), float(rng.choice([-1.0, 1.0]))
    place = rng.uniform(CROSSWALK_M[0] + 0.6, CROSSWALK_M[1] - 0.6)
    offset = rng.uniform(*site.walk_offsets_m)
    edge = side * _CROSSWALK_EDGE_M
    beyond = rng.uniform(5, 60)
    walk = side * offset
    corners = np.array(
        [
            [place + 30.0, walk],
            [place + 2.0, walk],
            [place, edge],
            [place, -edge],
            [place + 2.0, -walk],
            [place + beyond, -walk],
        ]
    )
    # Leg by leg, so that the place to wait stays a point of the way.
    legs = [polyline(corners[i : i + 2], 0.25)[:-1] for i in range(len(corners) - 1)]
    line = np.concatenate([*legs, corners[-1:]])
    way = arm_points(arm, line[:, 0], line[:, 1])
    kerb = _length(corners[:3])
    brisk = rng.uniform(1.75, 1.95)
    arrival = rng.uniform(times[0] - 15.0, times[-1])
    start = signals.walk_start(arm, arrival) + rng.uniform(0, 0.3)
    end = start + 2 * _CROSSWALK_EDGE_M / brisk
    s = np.where(
        times < start,
        np.minimum(kerb, kerb + speed * (times - arrival)),
        np.where(
            times < end,
            kerb + brisk * (times - start),
            kerb + 2 * _CROSSWALK_EDGE_M + speed * (times - end),
        ),
    )
    person = _follow(kind, way, s, times, rng)
    person.crosswalk = arm
    return person


def _follow(kind: str, way: F64, s: F64, times: F64, rng: np.random.Generator) -> _Person:
    """Move along ``way`` (N, 2) as ``s`` (K,) says, swaying a little (Ornstein-Uhlenbeck)."""
    grid = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
    xy = np.stack([np.interp(s, grid, way[:, i]) for i in (0, 1)], axis=-1)
    step = np.gradient(way, axis=0)
    yaw = np.interp(s, grid, np.unwrap(np.arctan2(step[:, 1], step[:, 0])))
    speed = np.abs(np.gradient(s, times))
    sway = _ornstein_uhlenbeck(np.clip(speed, 0.0, 1.0), rng)
    xy = xy + sway[:, None] * np.stack([-np.sin(yaw), np.cos(yaw)], axis=-1)
    heading = yaw + 0.15 * _ornstein_uhlenbeck(np.ones(len(s)), rng) / _SWAY_M
    return _Person(kind, xy, heading, speed, (s >= 0) & (s <= grid[-1]))


def _ornstein_uhlenbeck(activity: F64, rng: np.random.Generator) -> F64:
    """Return (K,) a wandering offset that rests while ``activity`` (K,) is 0."""
    value, values = rng.normal(0, _SWAY_M), []
    for active, kick in zip(
        activity.tolist(), rng.standard_normal(len(activity)).tolist(), strict=True
    ):
        values.append(value)
        value += active * (
            -value * _STEP_S / _SWAY_S + _SWAY_M * np.sqrt(2 * _STEP_S / _SWAY_S) * kick
        )
    return np.array(values)


def _length(way: F64) -> float:
    return float(np.linalg.norm(np.diff(way, axis=0), axis=1).sum())


def _reach(kind: str) -> float:
    """Return the radius about the centre that nobody else may enter, metres."""
    return float(np.hypot(*HALF_SIZES_M[kind][:2]))


def _is_free(person: _Person, others: list[_Person]) -> bool:
    for other in others:
        reach = _reach(person.kind) + _reach(other.kind)
        both = person.present & other.present
        apart = np.abs(person.xy[both] - other.xy[both])
        if (np.hypot(apart[:, 0], apart[:, 1]) < reach).any():
            return False
    return True


def _collect(people: list[_Person], frames: int) -> SceneObjects:
    people = [person for person in people if person.present[-frames:].any()]
    count = len(people)

    def stack(name: str, shape: tuple[int, ...]) -> F64:
        if not people:
            return np.zeros((frames, 0, *shape))
        return np.stack([getattr(person, name)[-frames:] for person in people], axis=1)

    return SceneObjects(
        ids=np.arange(count, dtype=np.int64),
        types=tuple(person.kind for person in people),
        half_sizes=np.array([HALF_SIZES_M[person.kind] for person in people]).reshape(-1, 3),
        xy=stack("xy", (2,)),
        yaw=stack("yaw", ()),
        speed=stack("speed", ()),
        present=stack("present", ()).astype(np.bool_),
    )


def _crosswalk_use(people: list[_Person], times: F64) -> CrosswalkUse:
    walkers = [person for person in people if person.crosswalk >= 0]
    offsets = np.full((len(times), 4, len(walkers)), np.nan)
    for column, person in enumerate(walkers):
        arm = person.crosswalk
        turned = arm_points(-arm % 4, person.xy[:, 0], person.xy[:, 1])
        on = person.present & (np.abs(turned[:, 1]) < _CROSSWALK_EDGE_M - 0.3)
        offsets[on, arm, column] = turned[on, 1]
    return CrosswalkUse(float(times[0]), _STEP_S, offsets)
