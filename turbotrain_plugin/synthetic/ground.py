"""The shape of the ground: a plane, one low wave, and kerbs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["KERB_HEIGHT_M", "CrossRoads", "Ground", "Roads"]

KERB_HEIGHT_M: Final = 0.15
"""Height of sidewalks over the carriageway."""

Array = NDArray[Any]


class Roads(Protocol):
    """Where the carriageway of a layout is."""

    def off_road(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Return where points lie behind the kerb; any shape."""
        ...


@dataclass(frozen=True, slots=True)
class CrossRoads:
    """Two carriageways that cross at the origin along x and y, with rounded kerbs.

    Attributes:
        half_width_m: Kerb line of both roads.
        corner_radius_m: Radius of the kerb at the four corners.
    """

    half_width_m: float
    corner_radius_m: float

    def off_road(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Return where points lie behind the kerb; any shape."""
        u, v = np.abs(x), np.abs(y)
        centre = self.half_width_m + self.corner_radius_m
        rounded = (u < centre) & (v < centre)
        cut = (u - centre) ** 2 + (v - centre) ** 2 > self.corner_radius_m**2
        off: NDArray[np.bool_] = (
            (u > self.half_width_m) & (v > self.half_width_m) & ~(rounded & cut)
        )
        return off


@dataclass(frozen=True, slots=True)
class Ground:
    """Height over the layout's xy plane.

    Attributes:
        grade: Slope of the plane along x and y.
        base_m: Height of the plane at the origin.
        wave_m: Amplitude of the wave.
        wave_vector: (x, y) rad per metre.
        wave_phase_rad: Phase of the wave at the origin.
        roads: Where the carriageway is; None: no kerb anywhere.
    """

    grade: tuple[float, float]
    base_m: float = 0.0
    wave_m: float = 0.0
    wave_vector: tuple[float, float] = (0.0, 0.0)
    wave_phase_rad: float = 0.0
    roads: Roads | None = None

    def carriageway(self, x: Array, y: Array) -> Array:
        """Return the height without kerbs; any shape and float type, which is kept."""
        height: Array = self.base_m + self.grade[0] * x + self.grade[1] * y
        if self.wave_m:
            height = height + self.wave_m * np.sin(self._phase(x, y))
        return height

    def gradient(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return dz/dx and dz/dy without kerbs; any shape."""
        wave = self.wave_m * np.cos(self._phase(x, y))
        return self.grade[0] + self.wave_vector[0] * wave, self.grade[1] + self.wave_vector[
            1
        ] * wave

    def height(self, x: Array, y: Array) -> Array:
        """Return the height of the surface, sidewalks raised; any shape."""
        height = self.carriageway(x, y)
        return height if self.roads is None else height + KERB_HEIGHT_M * self.off_road(x, y)

    def off_road(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Return where the surface is raised; any shape."""
        return np.zeros(np.shape(x), np.bool_) if self.roads is None else self.roads.off_road(x, y)

    def _phase(self, x: Array, y: Array) -> Array:
        phase: Array = self.wave_vector[0] * x + self.wave_vector[1] * y + self.wave_phase_rad
        return phase
