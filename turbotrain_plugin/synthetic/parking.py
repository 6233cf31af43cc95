"""Vehicles at the kerb."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.blocks import stand_still
from turbotrain_plugin.synthetic.objects import SceneObjects
from turbotrain_plugin.synthetic.site import ParkingStrip
from turbotrain_plugin.synthetic.traffic import draw_types

__all__ = ["draw_parked"]

F64 = NDArray[np.float64]

_KERB_GAP_M: Final = 0.1


def draw_parked(
    strips: tuple[ParkingStrip, ...], count: int, frames: int, rng: np.random.Generator
) -> SceneObjects:
    """Return ``count`` parked vehicles, bumper to bumper with random gaps, the way lanes go."""
    ends = [strip.reach_m[0] + rng.uniform(0, 8) for strip in strips]
    types: list[str] = []
    half: list[tuple[float, ...]] = []
    xy: list[F64] = []
    yaw: list[float] = []
    for kind, size in draw_types(count * 2, rng):
        if len(types) == count:
            break
        number = int(rng.integers(len(strips)))
        strip = strips[number]
        along = ends[number] + (0.8 + rng.exponential(4.0)) + size[0]
        if along + size[0] > strip.reach_m[1]:
            continue
        ends[number] = along + size[0]
        place, heading = strip.at(along, strip.kerb_m - _KERB_GAP_M - size[1] + rng.normal(0, 0.03))
        types.append(kind)
        half.append(size)
        xy.append(place)
        yaw.append(heading + rng.normal(0, 0.015))
    return stand_still(types, np.array(half), np.array(xy), np.array(yaw), frames)
