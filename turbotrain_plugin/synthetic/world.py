"""The made-up place: one layout, where it lies in the world frame, and its ground.

A root has one world frame, shared by all scenes and maps, as in the real data: each layout is
turned by a fixed angle and lies far from the origin and from the other, so that nothing works by
accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.corridor import Corridor
from turbotrain_plugin.synthetic.ground import Ground, Roads
from turbotrain_plugin.synthetic.junction import ROADS

__all__ = ["World", "make_corridor_world", "make_junction_world"]

F64 = NDArray[np.float64]

_WAVE_LENGTH_M: Final = 80.0
_RADIUS_M: Final = (150.0, 400.0)
_MOUTH_M: Final = (-25.0, 25.0)


@dataclass(frozen=True, slots=True)
class World:
    """One layout in the world.

    Attributes:
        layout: Name in ``LAYOUTS``, or "replay" for given tracks.
        yaw_rad: Turn of the layout about z.
        origin: (3,) world position of the layout's origin.
        ground: Surface, in the layout frame.
    """

    layout: str
    yaw_rad: float
    origin: tuple[float, float, float]
    ground: Ground

    def to_world(self, points: F64) -> F64:
        """Return (..., 3) layout points in the world frame."""
        c, s = np.cos(self.yaw_rad), np.sin(self.yaw_rad)
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        return np.stack(
            [c * x - s * y + self.origin[0], s * x + c * y + self.origin[1], z + self.origin[2]],
            axis=-1,
        )

    def angles_deg(self, angles: F64) -> F64:
        """Return (..., 3) roll, yaw, pitch in degrees, world frame, of layout roll, pitch, yaw.

        The turn is about z alone, so that it only adds to the yaw. Yaws are in [-180, 180).
        """
        yaw = (np.degrees(angles[..., 2] + self.yaw_rad) + 180.0) % 360.0 - 180.0
        return np.stack([np.degrees(angles[..., 0]), yaw, np.degrees(angles[..., 1])], axis=-1)


def make_junction_world(seed: int) -> World:
    """Return the junction of a root: slopes of 1 to 4 % and a wave of 0.3 m, drawn by the seed."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7001]))
    return World("junction", np.radians(7.0), (812.4, -463.7, 31.2), _ground(ROADS, rng))


def make_corridor_world(seed: int) -> World:
    """Return the corridor of a root, a kilometre from its junction: slopes, curve, side street."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 7002]))
    corridor = Corridor(float(rng.uniform(*_RADIUS_M)), float(rng.uniform(*_MOUTH_M)))
    return World("corridor", np.radians(-38.0), (1507.6, 251.3, 38.9), _ground(corridor, rng))


def _ground(roads: Roads, rng: np.random.Generator) -> Ground:
    grade = rng.uniform(0.01, 0.04, 2) * rng.choice([-1.0, 1.0], 2)
    direction = rng.uniform(0, 2 * np.pi)
    wave = 2 * np.pi / _WAVE_LENGTH_M
    return Ground(
        grade=(float(grade[0]), float(grade[1])),
        wave_m=0.3,
        wave_vector=(float(wave * np.cos(direction)), float(wave * np.sin(direction))),
        wave_phase_rad=float(rng.uniform(0, 2 * np.pi)),
        roads=roads,
    )
