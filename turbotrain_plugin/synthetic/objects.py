"""Labelled objects of a scene and how they stand on the ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.lidar import Solids

__all__ = [
    "HALF_SIZES_M",
    "VEHICLE_TYPES",
    "Placement",
    "SceneObjects",
    "merge",
    "place",
    "rotations",
    "solids_at",
]

F64 = NDArray[np.float64]

HALF_SIZES_M: Final[dict[str, tuple[float, float, float]]] = {
    "Car": (2.30, 0.95, 0.78),
    "PoliceCar": (2.40, 0.95, 0.80),
    "LongVehicle": (2.75, 0.98, 0.90),
    "Van": (2.60, 1.00, 1.05),
    "Truck": (4.00, 1.25, 1.60),
    "ConcreteTruck": (4.30, 1.25, 1.75),
    "Bus": (6.00, 1.30, 1.60),
    "Pedestrian": (0.32, 0.32, 0.87),
    "RoadWorker": (0.34, 0.34, 0.88),
    "Child": (0.25, 0.25, 0.60),
    "ScooterRider": (0.60, 0.32, 0.90),
    "BicycleRider": (0.85, 0.32, 0.87),
    "MotorcyleRider": (0.95, 0.36, 0.80),
    "Scooter": (0.60, 0.30, 0.55),
    "Bicycle": (0.85, 0.25, 0.50),
    "Motorcycle": (1.00, 0.38, 0.55),
    "ConstructionCart": (0.90, 0.50, 0.60),
    "TrashCan": (0.35, 0.35, 0.55),
    "FireHydrant": (0.15, 0.15, 0.40),
}
"""Half length, width and height by raw type. ``MotorcyleRider`` is spelled as the real files do."""

VEHICLE_TYPES: Final = (
    "Car", "Van", "Truck", "Bus", "LongVehicle", "PoliceCar", "ConcreteTruck",
)  # fmt: skip
"""Types that drive on lanes or park."""

_TWO_PART: Final = ("Car", "PoliceCar", "LongVehicle")
_UPRIGHT: Final = frozenset(HALF_SIZES_M) - frozenset(VEHICLE_TYPES)
_INTENSITY: Final = {"vehicle": 0.55, "other": 0.4}


@dataclass(frozen=True, slots=True)
class SceneObjects:
    """N objects over T frames of 10 Hz, layout frame.

    Attributes:
        ids: (N,) int64, unique in the scene.
        types: N raw types.
        half_sizes: (N, 3) metres.
        xy: (T, N, 2) box centre; meaningless where not present.
        yaw: (T, N) rad.
        speed: (T, N) m/s.
        present: (T, N) bool.
        bottom_z: (T, N) height of the lowest face where it is given and not the ground's; NaN else.
    """

    ids: NDArray[np.int64]
    types: tuple[str, ...]
    half_sizes: F64
    xy: F64
    yaw: F64
    speed: F64
    present: NDArray[np.bool_]
    bottom_z: F64 | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Poses of N objects over T frames, layout frame.

    Attributes:
        centres: (T, N, 3) box centres.
        angles: (T, N, 3) rad: roll, pitch, yaw of R = Rz(yaw) Ry(-pitch) Rx(-roll).
    """

    centres: F64
    angles: F64


def merge(parts: list[SceneObjects], rng: np.random.Generator) -> SceneObjects:
    """Return all objects in one list, numbered in random order from 1 on."""
    types = tuple(kind for part in parts for kind in part.types)
    return SceneObjects(
        ids=rng.permutation(len(types)).astype(np.int64) + 1,
        types=types,
        half_sizes=np.concatenate([part.half_sizes for part in parts]),
        xy=np.concatenate([part.xy for part in parts], axis=1),
        yaw=np.concatenate([part.yaw for part in parts], axis=1),
        speed=np.concatenate([part.speed for part in parts], axis=1),
        present=np.concatenate([part.present for part in parts], axis=1),
    )


def rotations(angles: F64) -> F64:
    """Return (..., 3, 3) matrices Rz(yaw) Ry(-pitch) Rx(-roll) of (..., 3) roll, pitch, yaw."""
    (cr, cp, cy), (sr, sp, sy) = ([f(angles[..., i]) for i in range(3)] for f in (np.cos, np.sin))
    rows = [
        [cy * cp, -sy * cr + cy * sp * sr, -sy * sr - cy * sp * cr],
        [sy * cp, cy * cr + sy * sp * sr, cy * sr - sy * sp * cr],
        [sp, -cp * sr, cp * cr],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def tilt(gradient: tuple[F64, F64], yaw: F64) -> tuple[F64, F64]:
    """Return roll and pitch (rad) of what stands square on a slope, heading ``yaw``; any shape."""
    gx, gy = gradient
    ahead = gx * np.cos(yaw) + gy * np.sin(yaw)
    left = gy * np.cos(yaw) - gx * np.sin(yaw)
    return -np.arcsin(left / np.sqrt(1 + ahead**2 + left**2)), np.arctan(ahead)


def place(objects: SceneObjects, ground: Ground) -> Placement:
    """Put objects on the ground: vehicles square on the slope, everything else upright."""
    x, y = objects.xy[..., 0], objects.xy[..., 1]
    roll, pitch = tilt(ground.gradient(x, y), objects.yaw)
    upright = np.array([kind in _UPRIGHT for kind in objects.types], dtype=bool)
    angles = np.stack(
        [np.where(upright, 0.0, roll), np.where(upright, 0.0, pitch), objects.yaw], axis=-1
    )
    bottom = ground.height(x, y)
    if objects.bottom_z is not None:
        bottom = np.where(np.isnan(objects.bottom_z), bottom, objects.bottom_z)
    up = rotations(angles)[..., 2]
    centres = np.concatenate([objects.xy, bottom[..., None]], axis=-1)
    return Placement(centres + up * objects.half_sizes[:, 2, None], angles)


def solids_at(objects: SceneObjects, placement: Placement, frame: int) -> Solids:
    """Return the boxes that a ray can hit: cars are a body and a shorter cabin on it."""
    index = np.nonzero(objects.present[frame])[0]
    centres, half = placement.centres[frame, index], objects.half_sizes[index]
    matrices = rotations(placement.angles[frame, index])
    two_part = np.array([objects.types[i] in _TWO_PART for i in index], dtype=bool)
    driven = np.array([objects.types[i] in VEHICLE_TYPES for i in index], dtype=bool)
    intensity = np.where(driven, _INTENSITY["vehicle"], _INTENSITY["other"])
    # Body: the lower 55 % of the height. Cabin: the rest, 60 % of the length, a little to the rear.
    up, ahead = matrices[..., 2], matrices[..., 0]
    body_half = half * np.where(two_part[:, None], [1.0, 1.0, 0.55], 1.0)
    body_centre = centres - up * np.where(two_part, 0.45 * half[:, 2], 0.0)[:, None]
    whole = Solids(body_centre, matrices, body_half, index.astype(np.int64), intensity)
    cabin = Solids(
        centres + up * (0.55 * half[:, 2])[:, None] - ahead * (0.1 * half[:, 0])[:, None],
        matrices,
        half * np.array([0.6, 0.95, 0.45]),
        index.astype(np.int64),
        intensity,
    )
    return whole + cabin.select(two_part)
