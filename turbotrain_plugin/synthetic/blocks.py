"""What stands still: buildings, poles, hedges (never labelled) and street furniture (labelled)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.junction import ARM_LENGTH_M, ROADS, WALK_OFFSETS_M, arm_points
from turbotrain_plugin.synthetic.lidar import GROUND, Solids
from turbotrain_plugin.synthetic.objects import HALF_SIZES_M, SceneObjects, rotations

__all__ = [
    "BUILDING",
    "HEDGE",
    "POLE",
    "draw_blocks",
    "draw_props",
    "scatter_blocks",
    "stand_still",
]

F64 = NDArray[np.float64]

BUILDING: Final = GROUND - 1
POLE: Final = GROUND - 2
HEDGE: Final = GROUND - 3
"""Owners of hits on what is never labelled."""

_SET_BACK_M: Final = 12.0
_FURNITURE_M: Final = ROADS.half_width_m + 0.65
"""Poles and bins stand here, between the kerb and where people walk."""
_INTENSITY: Final = {BUILDING: 0.7, POLE: 0.45, HEDGE: 0.3}


@dataclass(frozen=True, slots=True)
class _Part:
    """N blocks: (N, 2) places, (N, 3) half sizes, (N,) yaws in rad; all of one kind."""

    xy: F64
    half: F64
    yaw: F64
    kind: int


def draw_blocks(ground: Ground, rng: np.random.Generator) -> Solids:
    """Return 15-25 buildings, 20-40 poles and 4-10 hedges around the junction, layout frame."""
    buildings = _buildings(int(rng.integers(15, 26)), _street_place, rng)
    poles = _kerb_places(int(rng.integers(20, 41)), _FURNITURE_M, rng)
    return _stand(ground, [buildings, _poles(poles, rng), _hedges(int(rng.integers(4, 11)), rng)])


def scatter_blocks(ground: Ground, tracks: F64, rng: np.random.Generator) -> Solids:
    """Return buildings and poles around given tracks (N, 2): 12 m and 3 m away from all of them."""
    ways = cKDTree(tracks)
    low, high = tracks.min(axis=0) - 30.0, tracks.max(axis=0) + 30.0

    def place(reach: F64, rng: np.random.Generator) -> F64 | None:
        spot = rng.uniform(low, high)
        return spot if ways.query(spot)[0] > _SET_BACK_M + np.hypot(*reach) else None

    buildings = _buildings(20, place, rng)
    spots = rng.uniform(low, high, (60, 2))
    spots = spots[ways.query(spots)[0] > 3.0][:30]
    return _stand(ground, [buildings, _poles(spots, rng)])


def _stand(ground: Ground, parts: list[_Part]) -> Solids:
    """Put blocks on the ground, and a little into it where it slopes."""
    xy, half, yaw = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("xy", "half", "yaw")
    )
    owners = np.concatenate([np.full(len(part.xy), part.kind, np.int64) for part in parts])
    sunk = 0.5 + 0.05 * np.hypot(half[:, 0], half[:, 1])
    half = half + np.stack([0 * sunk, 0 * sunk, sunk / 2], axis=-1)
    centre_z = ground.height(xy[:, 0], xy[:, 1]) + half[:, 2] - sunk
    return Solids(
        centres=np.concatenate([xy, centre_z[:, None]], axis=-1),
        rotations=rotations(np.stack([0 * yaw, 0 * yaw, yaw], axis=-1)),
        half_sizes=half,
        owners=owners,
        intensities=np.array([_INTENSITY[kind] for kind in owners.tolist()]),
    )


def _buildings(
    count: int,
    place: Callable[[F64, np.random.Generator], F64 | None],
    rng: np.random.Generator,
) -> _Part:
    """Return up to ``count`` buildings, not through one another.

    Args:
        count: Buildings wanted; fewer when there is no room.
        place: Draws a centre for a building of the given half width and depth.
        rng: Source of all randomness.
    """
    xy = np.zeros((0, 2))
    half = np.zeros((0, 3))
    yaw: list[float] = []
    for _ in range(30 * count):
        size = np.array([rng.uniform(5, 16), rng.uniform(5, 12), rng.uniform(3, 8)])
        turn = rng.normal(0, np.radians(4)) + rng.integers(2) * np.pi / 2
        reach = np.abs(np.cos(turn)) * size[:2] + np.abs(np.sin(turn)) * size[1::-1]
        spot = place(reach, rng)
        if spot is None:
            continue
        apart = np.linalg.norm(xy - spot, axis=1)
        if (apart > np.hypot(*size[:2]) + np.hypot(half[:, 0], half[:, 1])).all():
            xy, half = np.vstack([xy, spot]), np.vstack([half, size])
            yaw.append(float(turn))
        if len(yaw) == count:
            break
    return _Part(xy, half, np.array(yaw), BUILDING)


def _street_place(reach: F64, rng: np.random.Generator) -> F64:
    """Return a place behind the set-back line, most along a street, some in the second row."""
    line = ROADS.half_width_m + _SET_BACK_M
    behind = rng.uniform(0, 6) if rng.random() < 0.75 else rng.uniform(18, 50)
    first, second = (0, 1) if rng.random() < 0.5 else (1, 0)
    spot: F64 = np.empty(2)
    spot[first] = rng.uniform(line + reach[first], ARM_LENGTH_M)
    spot[second] = line + reach[second] + behind
    spot *= rng.choice([-1, 1], 2)
    return spot


def _poles(xy: F64, rng: np.random.Generator) -> _Part:
    thick = rng.uniform(0.075, 0.15, len(xy))
    half = np.stack([thick, thick, rng.uniform(1.5, 3.5, len(xy))], axis=-1)
    return _Part(xy, half, rng.uniform(0, np.pi, len(xy)), POLE)


def _hedges(count: int, rng: np.random.Generator) -> _Part:
    """Low walls along the back of the sidewalks."""
    arm, side = rng.integers(0, 4, count), rng.choice([-1.0, 1.0], count)
    length = rng.uniform(2, 9, count)
    along = rng.uniform(32 + length, ARM_LENGTH_M - 10)
    offset = side * (WALK_OFFSETS_M[1] + rng.uniform(1.5, 4.0, count))
    xy = np.concatenate(
        [arm_points(int(a), along[i : i + 1], offset[i : i + 1]) for i, a in enumerate(arm)]
    )
    half = np.stack([length, np.full(count, 0.2), rng.uniform(0.4, 0.8, count)], axis=-1)
    return _Part(xy, half, arm * np.pi / 2, HEDGE)


def _kerb_places(count: int, offset: float, rng: np.random.Generator) -> F64:
    """Return (count, 2) distinct places at 3 m steps along the kerbs, away from the corners."""
    slots = [
        (arm, along, side * offset)
        for arm in range(4)
        for side in (-1.0, 1.0)
        for along in np.arange(24.0, ARM_LENGTH_M - 5, 3.0).tolist()
    ]
    chosen = rng.choice(len(slots), size=count, replace=False)
    return np.concatenate(
        [arm_points(slots[i][0], np.array([slots[i][1]]), np.array([slots[i][2]])) for i in chosen]
    )


def draw_props(frames: int, rng: np.random.Generator) -> SceneObjects:
    """Return 2-6 bins and hydrants that stand over ``frames`` frames."""
    count = int(rng.integers(2, 7))
    types = rng.choice(["TrashCan", "FireHydrant"], size=count, p=[0.7, 0.3]).tolist()
    half = np.array([HALF_SIZES_M[kind] for kind in types]).reshape(-1, 3)
    # Half a step off the poles' places, so that none stands in a pole.
    xy = _kerb_places(count, _FURNITURE_M, rng)
    xy = xy + np.where(np.abs(xy) > 20.0, np.sign(xy) * 1.5, 0.0)
    return stand_still(types, half, xy, rng.uniform(-np.pi, np.pi, count), frames)


def stand_still(types: list[str], half: F64, xy: F64, yaw: F64, frames: int) -> SceneObjects:
    """Return N objects that keep their place over ``frames`` frames: (N, 3), (N, 2), (N,)."""
    count = len(types)
    return SceneObjects(
        ids=np.arange(count, dtype=np.int64),
        types=tuple(types),
        half_sizes=half.reshape(-1, 3),
        xy=np.broadcast_to(xy.reshape(1, count, 2), (frames, count, 2)).copy(),
        yaw=np.broadcast_to(yaw.reshape(1, count), (frames, count)).copy(),
        speed=np.zeros((frames, count)),
        present=np.ones((frames, count), np.bool_),
    )
