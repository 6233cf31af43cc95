"""The made-up place: one layout, where it lies in the world frame, and its ground.

A root has one world frame, shared by all scenes and the map, as in the real data: the layout is
turned by a fixed angle and lies far from the origin, so that nothing works by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.junction import ROADS

__all__ = ["MAP_FILES", "World", "make_junction_world"]

F64 = NDArray[np.float64]

MAP_FILES: Final = {"junction": "v2x_intersection_vector_map.pkl"}
"""Map file of each layout. A corridor layout would add ``v2v_corridors_vector_map.pkl``."""

_WAVE_LENGTH_M: Final = 80.0


@dataclass(frozen=True, slots=True)
class World:
    """One layout in the world.

    Attributes:
        layout: "junction", or "replay" for given tracks.
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
    grade = rng.uniform(0.01, 0.04, 2) * rng.choice([-1.0, 1.0], 2)
    direction = rng.uniform(0, 2 * np.pi)
    wave = 2 * np.pi / _WAVE_LENGTH_M
    ground = Ground(
        grade=(float(grade[0]), float(grade[1])),
        wave_m=0.3,
        wave_vector=(float(wave * np.cos(direction)), float(wave * np.sin(direction))),
        wave_phase_rad=float(rng.uniform(0, 2 * np.pi)),
        roads=ROADS,
    )
    return World("junction", np.radians(7.0), (812.4, -463.7, 31.2), ground)
