"""A generated scene read back without any of our readers, for tests of the generator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def rotation(roll_deg: float, yaw_deg: float, pitch_deg: float, *, flip: bool = False) -> F64:
    """Rz(yaw) Ry(-pitch) Rx(-roll); with ``flip`` roll and pitch have the wrong sign."""
    sign = 1.0 if flip else -1.0
    r, p, y = np.radians([sign * roll_deg, sign * pitch_deg, yaw_deg])
    Rx = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    Ry = np.array([[np.cos(p), 0, np.sin(p)], [0, 1, 0], [-np.sin(p), 0, np.cos(p)]])
    Rz = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    product: F64 = Rz @ Ry @ Rx
    return product


@dataclass(frozen=True)
class View:
    """One agent at one frame."""

    agent: int
    frame: int
    label: dict[str, Any]
    points: NDArray[np.float32]

    def world_points(self, *, flip: bool = False) -> F64:
        x, y, z, *angles = self.label["lidar_pose"]
        return np.asarray(self.points[:, :3] @ rotation(*angles, flip=flip).T + [x, y, z])

    def ranges(self) -> F64:
        return np.asarray(np.linalg.norm(self.points[:, :3].astype(np.float64), axis=1))

    def boxes(self) -> dict[int, tuple[F64, F64, F64]]:
        """Object id to centre (3,), rotation (3, 3), half size (3,)."""
        return {
            number: (
                np.array(entry["location"]),
                rotation(*entry["angle"]),
                np.array(entry["extent"]),
            )
            for number, entry in self.label["vehicles"].items()
        }


def inside(points: F64, box: tuple[F64, F64, F64], margin: float) -> NDArray[np.bool_]:
    """(P,) whether points lie in a box grown by ``margin``."""
    centre, R, half = box
    within = np.abs((points - centre) @ R) <= half + margin
    return np.asarray(within.all(axis=1))


@lru_cache(maxsize=1000)
def _parsed(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return content


@dataclass(frozen=True)
class Recording:
    """One scene folder."""

    folder: Path

    @cached_property
    def meta(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "synthetic_meta.json").read_text())
        return content

    @property
    def agents(self) -> list[int]:
        return sorted(int(path.name) for path in self.folder.iterdir() if path.is_dir())

    def frames(self, agent: int) -> list[int]:
        return sorted(int(path.stem) for path in (self.folder / str(agent)).glob("*.bin"))

    def label(self, agent: int, frame: int) -> dict[str, Any]:
        return _parsed(self.folder / str(agent) / f"{frame:06d}.yaml")

    def view(self, agent: int, frame: int) -> View:
        cloud = self.folder / str(agent) / f"{frame:06d}.bin"
        points = np.fromfile(cloud, "<f4").reshape(-1, 4)
        return View(agent, frame, self.label(agent, frame), points)

    def views(self, stride: int = 10) -> list[View]:
        """Views of all agents at every ``stride``-th frame that was not lost."""
        return [
            self.view(agent, frame)
            for agent in self.agents
            for frame in self.frames(agent)
            if frame % stride == 0
        ]

    def state(self, number: int, frame: int) -> F64 | None:
        """x, y, z, roll, yaw, pitch, speed of an object as the side file says; None if absent."""
        entry = self.meta["objects"][str(number)]
        row = 0
        for first, last in entry["present"]:
            if first <= frame <= last:
                states = entry["states"]
                return np.array(states[row + frame - first if len(states) > 1 else 0])
            row += last - first + 1
        return None
