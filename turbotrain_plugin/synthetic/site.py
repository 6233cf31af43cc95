"""What a layout offers to those who draw scenes on it: pavements, parking strips, free places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SET_BACK_M", "BuildingPlace", "Hedges", "ParkingStrip", "Site"]

F64 = NDArray[np.float64]

SET_BACK_M: Final = 12.0
"""Buildings stand at least this far behind the kerb."""

BuildingPlace = Callable[[F64, np.random.Generator], tuple[F64, float] | None]
"""Draws the centre and the heading of the street for a building of the given half width and
depth; None when the place that was drawn will not do."""


@dataclass(frozen=True, slots=True)
class ParkingStrip:
    """One parking lane.

    Attributes:
        reach_m: Beginning and end, along the strip.
        kerb_m: Offset of the kerb next to it.
        at: (2,) place and heading (rad) of a vehicle that far along and at that offset.
    """

    reach_m: tuple[float, float]
    kerb_m: float
    at: Callable[[float, float], tuple[F64, float]]


@dataclass(frozen=True, slots=True)
class Hedges:
    """N low walls: (N, 2) centres, (N,) headings in rad, (N,) half lengths."""

    xy: F64
    yaw: F64
    half_length: F64


@dataclass(frozen=True, slots=True)
class Site:
    """Where things may stand and go; layout frame.

    Attributes:
        pavements: The line along each sidewalk at a given offset: offset -> (N, 2).
        walk_offsets_m: Strip of the sidewalks that people use.
        strips: Parking lanes.
        pole_places: (K, 2) places for poles next to the kerb.
        prop_places: (K, 2) places for bins and hydrants, clear of the poles.
        building_place: Draws places for buildings.
        hedge_places: Draws that many hedges.
    """

    pavements: tuple[Callable[[float], F64], ...]
    walk_offsets_m: tuple[float, float]
    strips: tuple[ParkingStrip, ...]
    pole_places: F64
    prop_places: F64
    building_place: BuildingPlace
    hedge_places: Callable[[int, np.random.Generator], Hedges]
