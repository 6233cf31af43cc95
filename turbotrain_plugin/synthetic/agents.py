"""Connected vehicles and roadside units: who they are and where their sensors stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.objects import Placement, SceneObjects, rotations

__all__ = ["Agent", "choose_vehicles", "roadside_units", "vehicle_agent"]

F64 = NDArray[np.float64]

_VEHICLE_SENSOR_M: Final = 1.9
_CORNER_M: Final = 13.9
"""Roadside units stand this far from the middle along both axes: about 39 m apart."""
_COOPERATION_M: Final = 50.0
_KINDS: Final = ("queue", "pass", "turn")
_KIND_SHARES: Final = (0.5, 0.3, 0.2)


@dataclass(frozen=True, slots=True)
class Agent:
    """One sensor over T frames, layout frame.

    Attributes:
        agent_id: Folder number, negative for roadside units.
        object_index: Its vehicle among the objects of the scene; -1 for roadside units.
        origins: (T, 3) position of the LiDAR.
        angles: (T, 3) roll, pitch, yaw in rad.
        speeds: (T,) m/s.
        present: (T,) bool.
    """

    agent_id: int
    object_index: int
    origins: F64
    angles: F64
    speeds: F64
    present: NDArray[np.bool_]


def vehicle_agent(agent_id: int, index: int, objects: SceneObjects, placement: Placement) -> Agent:
    """Return the LiDAR on the roof of object ``index``, square on the vehicle."""
    angles = placement.angles[:, index]
    up = rotations(angles)[..., 2]
    lift = _VEHICLE_SENSOR_M - objects.half_sizes[index, 2]
    return Agent(
        agent_id,
        index,
        placement.centres[:, index] + lift * up,
        angles,
        objects.speed[:, index],
        objects.present[:, index],
    )


def roadside_units(
    ground: Ground, corners: F64, frames: int, rng: np.random.Generator
) -> list[Agent]:
    """Return units -1 (about 4.1 m high) and -2 (about 2.6 m) that look at the middle.

    Args:
        ground: What they stand on.
        corners: (2, 2) their places.
        frames: T.
        rng: Draws heights and tilts of up to 3 degrees.
    """
    middle = corners.mean(axis=0)
    units = []
    for number, (corner, span) in enumerate(zip(corners, ((3.8, 5.0), (2.4, 2.9)), strict=True)):
        towards = middle - corner
        yaw = np.arctan2(towards[1], towards[0]) + np.radians(rng.normal(0, 8))
        roll, pitch = np.radians(rng.uniform(-3, 3, 2))
        z = float(ground.height(corner[0], corner[1])) + rng.uniform(*span)
        units.append(
            Agent(
                -1 - number,
                -1,
                np.tile([corner[0], corner[1], z], (frames, 1)),
                np.tile([roll, pitch, yaw], (frames, 1)),
                np.zeros(frames),
                np.ones(frames, np.bool_),
            )
        )
    return units


def junction_corners(rng: np.random.Generator) -> F64:
    """Return (2, 2): two diagonal corners of the junction in random order."""
    first = np.array([1.0, 1.0]) if rng.random() < 0.5 else np.array([1.0, -1.0])
    return np.stack([first, -first])[rng.permutation(2)] * _CORNER_M


def choose_vehicles(
    objects: SceneObjects,
    driving: int,
    corners: F64,
    *,
    far: bool,
    rng: np.random.Generator,
    least_m: float = 0.0,
) -> tuple[int, int] | None:
    """Choose the two connected vehicles among the first ``driving`` objects.

    Half of them should queue, 30 % pass and 20 % turn. At some time both are within 50 m of each
    other and, where there are any, of one roadside unit.

    Args:
        objects: The objects of the scene, the moving vehicles first.
        driving: Number of moving vehicles.
        corners: (U, 2) places of the roadside units.
        far: Whether two agents must also be more than 50 m apart at some time.
        rng: Draws the kinds and breaks ties.
        least_m: Least distance between the two half way through.

    Returns:
        Two indices; None when no pair will do.
    """
    able = [
        i
        for i in range(driving)
        if objects.present[:, i].all() and objects.types[i] in ("Car", "Van")
    ]
    kinds = {i: _kind(objects, i) for i in able}
    wanted = rng.choice(_KINDS, size=2, p=_KIND_SHARES).tolist()
    half_way = objects.xy[len(objects.xy) // 2]
    between = np.linalg.norm(half_way[:, None] - half_way[None], axis=-1)
    best, best_score = None, 0.0
    for a in able:
        for b in able:
            if a == b:
                continue
            close, apart = _distances(objects, a, b, corners)
            if not close or (far and not apart) or between[a, b] < least_m:
                continue
            score = 1.0 + (kinds[a] == wanted[0]) + (kinds[b] == wanted[1]) + 0.5 * rng.random()
            if score > best_score:
                best, best_score = (a, b), score
    return best


def _kind(objects: SceneObjects, i: int) -> str:
    if abs(objects.yaw[-1, i] - objects.yaw[0, i]) > np.radians(30):
        return "turn"
    return "queue" if (objects.speed[:, i] < 0.5).mean() > 0.3 else "pass"


def _distances(objects: SceneObjects, a: int, b: int, corners: F64) -> tuple[bool, bool]:
    """Return whether all are within range at one time, and whether any two are not at another."""
    between = np.linalg.norm(objects.xy[:, a] - objects.xy[:, b], axis=1)
    together = between < _COOPERATION_M
    if not len(corners):
        return bool(together.any()), bool((between > _COOPERATION_M).any())
    to_unit = np.stack(
        [np.linalg.norm(objects.xy[:, i] - corner, axis=1) for i in (a, b) for corner in corners]
    ).reshape(2, len(corners), -1)
    together &= (to_unit < _COOPERATION_M).all(axis=0).any(axis=0)
    apart = (between > _COOPERATION_M) | (to_unit > _COOPERATION_M).any(axis=(0, 1))
    return bool(together.any()), bool(apart.any())
