"""Vehicles at the kerb."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.blocks import stand_still
from turbotrain_plugin.synthetic.junction import ARM_LENGTH_M, ROADS, arm_points
from turbotrain_plugin.synthetic.objects import SceneObjects
from turbotrain_plugin.synthetic.traffic import draw_types

__all__ = ["PARKING_M", "draw_parked"]

F64 = NDArray[np.float64]

PARKING_M: Final = (30.0, ARM_LENGTH_M - 4.0)
"""Beginning and end of the parking lanes, along an arm."""

_KERB_SIDE_M: Final = ROADS.half_width_m - 0.1
"""Where the side next to the kerb is."""


def draw_parked(count: int, frames: int, rng: np.random.Generator) -> SceneObjects:
    """Return ``count`` parked vehicles, bumper to bumper with random gaps, the way lanes go."""
    strips: list[list[float]] = [[PARKING_M[0] + rng.uniform(0, 8)] for _ in range(8)]
    types: list[str] = []
    half: list[tuple[float, ...]] = []
    xy: list[F64] = []
    yaw: list[float] = []
    for kind, size in draw_types(count * 2, rng):
        if len(types) == count:
            break
        strip = int(rng.integers(8))
        arm, side = strip // 2, 1.0 if strip % 2 else -1.0
        gap = 0.8 + rng.exponential(4.0)
        along = strips[strip][-1] + gap + size[0]
        if along + size[0] > PARKING_M[1]:
            continue
        strips[strip].append(along + size[0])
        offset = side * (_KERB_SIDE_M - size[1] + rng.normal(0, 0.03))
        types.append(kind)
        half.append(size)
        xy.append(arm_points(arm, np.array([along]), np.array([offset]))[0])
        # Lanes with positive offset lead to the junction, so vehicles there look inwards.
        yaw.append(arm * np.pi / 2 + (np.pi if side > 0 else 0.0) + rng.normal(0, 0.015))
    return stand_still(types, np.array(half), np.array(xy), np.array(yaw), frames)
