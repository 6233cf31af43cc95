"""What stands still: buildings, poles, hedges (never labelled) and street furniture (labelled)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.lidar import GROUND, Solids
from turbotrain_plugin.synthetic.objects import HALF_SIZES_M, SceneObjects, rotations
from turbotrain_plugin.synthetic.site import SET_BACK_M, BuildingPlace, Hedges, Site

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

_INTENSITY: Final = {BUILDING: 0.7, POLE: 0.45, HEDGE: 0.3}


@dataclass(frozen=True, slots=True)
class _Part:
    """N blocks: (N, 2) places, (N, 3) half sizes, (N,) yaws in rad; all of one kind."""

    xy: F64
    half: F64
    yaw: F64
    kind: int


def draw_blocks(site: Site, ground: Ground, rng: np.random.Generator) -> Solids:
    """Return 15-25 buildings, 20-40 poles and 4-10 hedges along the streets, layout frame."""
    buildings = _buildings(int(rng.integers(15, 26)), site.building_place, rng)
    poles = _poles(_pick(site.pole_places, int(rng.integers(20, 41)), rng), rng)
    hedges = _hedges(site.hedge_places(int(rng.integers(4, 11)), rng), rng)
    return _stand(ground, [buildings, poles, hedges])


def scatter_blocks(ground: Ground, tracks: F64, rng: np.random.Generator) -> Solids:
    """Return buildings and poles around given tracks (N, 2): 12 m and 3 m away from all of them."""
    ways = cKDTree(tracks)
    low, high = tracks.min(axis=0) - 30.0, tracks.max(axis=0) + 30.0

    def place(reach: F64, rng: np.random.Generator) -> tuple[F64, float] | None:
        spot = rng.uniform(low, high)
        return (spot, 0.0) if ways.query(spot)[0] > SET_BACK_M + np.hypot(*reach) else None

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


def _buildings(count: int, place: BuildingPlace, rng: np.random.Generator) -> _Part:
    """Return up to ``count`` buildings, not through one another.

    Args:
        count: Buildings wanted; fewer when there is no room.
        place: Draws where one stands.
        rng: Source of all randomness.
    """
    xy = np.zeros((0, 2))
    half = np.zeros((0, 3))
    yaw: list[float] = []
    for _ in range(30 * count):
        size = np.array([rng.uniform(5, 16), rng.uniform(5, 12), rng.uniform(3, 8)])
        turn = rng.normal(0, np.radians(4)) + rng.integers(2) * np.pi / 2
        reach = np.abs(np.cos(turn)) * size[:2] + np.abs(np.sin(turn)) * size[1::-1]
        found = place(reach, rng)
        if found is None:
            continue
        spot, heading = found
        apart = np.linalg.norm(xy - spot, axis=1)
        if (apart > np.hypot(*size[:2]) + np.hypot(half[:, 0], half[:, 1])).all():
            xy, half = np.vstack([xy, spot]), np.vstack([half, size])
            yaw.append(float(turn + heading))
        if len(yaw) == count:
            break
    return _Part(xy, half, np.array(yaw), BUILDING)


def _poles(xy: F64, rng: np.random.Generator) -> _Part:
    thick = rng.uniform(0.075, 0.15, len(xy))
    half = np.stack([thick, thick, rng.uniform(1.5, 3.5, len(xy))], axis=-1)
    return _Part(xy, half, rng.uniform(0, np.pi, len(xy)), POLE)


def _hedges(places: Hedges, rng: np.random.Generator) -> _Part:
    count = len(places.xy)
    half = np.stack([places.half_length, np.full(count, 0.2), rng.uniform(0.4, 0.8, count)], -1)
    return _Part(places.xy, half, places.yaw, HEDGE)


def _pick(places: F64, count: int, rng: np.random.Generator) -> F64:
    """Return (count, 2) distinct ones of (K, 2) places."""
    chosen: F64 = places[rng.choice(len(places), size=count, replace=False)]
    return chosen


def draw_props(site: Site, frames: int, rng: np.random.Generator) -> SceneObjects:
    """Return 2-6 bins and hydrants that stand over ``frames`` frames."""
    count = int(rng.integers(2, 7))
    types = rng.choice(["TrashCan", "FireHydrant"], size=count, p=[0.7, 0.3]).tolist()
    half = np.array([HALF_SIZES_M[kind] for kind in types]).reshape(-1, 3)
    xy = _pick(site.prop_places, count, rng)
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
