"""A scene of given trajectories: everything that the file does not say is made up around them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.synthetic.agents import roadside_units, vehicle_agent
from turbotrain_plugin.synthetic.blocks import scatter_blocks
from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.objects import (
    VEHICLE_TYPES,
    SceneObjects,
    place,
)
from turbotrain_plugin.synthetic.scene import ScenePlan
from turbotrain_plugin.synthetic.tracks import TrackScene
from turbotrain_plugin.synthetic.world import World

__all__ = ["plan_replay_scene"]

F64 = NDArray[np.float64]

_COOPERATION_M: Final = 50.0
_LONGEST: Final = 6
_SHORTEST_DRIVE: Final = 10
"""Frames that a vehicle must be there for to carry a LiDAR."""
_CLEAR_M: Final = 3.0
_STEEPEST: Final = 0.15


def plan_replay_scene(tracks: TrackScene, seed: tuple[int, ...]) -> ScenePlan:
    """Return a scene in which the given objects move as the file says.

    The ground is the plane that fits the undersides of the objects best, without kerbs. Two
    roadside units face one another across the middle of the traffic, off the tracks; up to two of
    the longest vehicle tracks carry a LiDAR, those that are most often within 50 m.

    Args:
        tracks: The scene of the file.
        seed: Entropy of this scene alone.
    """
    rng = np.random.default_rng(np.random.SeedSequence([*seed, 0]))
    objects, world = _centred(tracks.objects)
    travelled = objects.xy[objects.present]
    placement = place(objects, world.ground)
    chosen = _carriers(objects)
    agents = [vehicle_agent(n + 1, i, objects, placement) for n, i in enumerate(chosen)]
    corners = _corners(objects, travelled)
    agents += roadside_units(world.ground, corners, len(objects.xy), rng)
    blocks = scatter_blocks(world.ground, np.concatenate([travelled, corners]), rng)
    return ScenePlan(world, objects, placement, blocks, tuple(agents), None)


def _centred(objects: SceneObjects) -> tuple[SceneObjects, World]:
    """Return the objects about their mean, and where that is."""
    assert objects.bottom_z is not None
    there = objects.present
    bottom = np.concatenate([objects.xy[there], objects.bottom_z[there][:, None]], axis=1)
    middle = bottom.mean(axis=0)
    grade = _plane(bottom - middle)
    world = World(
        "replay",
        0.0,
        (float(middle[0]), float(middle[1]), float(middle[2])),
        Ground((float(grade[0]), float(grade[1]))),
    )
    moved = SceneObjects(
        objects.ids,
        objects.types,
        objects.half_sizes,
        objects.xy - middle[:2],
        objects.yaw,
        objects.speed,
        there,
        objects.bottom_z - middle[2],
    )
    return moved, world


def _plane(points: F64) -> F64:
    """Return (2,) slopes of the plane through the origin that fits (N, 3) points best."""
    xy, z = points[:, :2], points[:, 2]
    # One metre of prior per point: a single straight track says nothing about the cross slope.
    normal = xy.T @ xy + len(xy) * np.eye(2)
    return np.clip(np.linalg.solve(normal, xy.T @ z), -_STEEPEST, _STEEPEST)


def _carriers(objects: SceneObjects) -> list[int]:
    """Return up to two vehicles that carry a LiDAR."""
    length = objects.present.sum(axis=0)
    vehicles = [
        i
        for i, kind in enumerate(objects.types)
        if kind in VEHICLE_TYPES and length[i] >= _SHORTEST_DRIVE
    ]
    longest = sorted(vehicles, key=lambda i: (-int(length[i]), i))[:_LONGEST]
    best, most = longest[:1], 0
    for n, a in enumerate(longest):
        for b in longest[n + 1 :]:
            near = np.linalg.norm(objects.xy[:, a] - objects.xy[:, b], axis=1) < _COOPERATION_M
            together = int((near & objects.present[:, a] & objects.present[:, b]).sum())
            if together > most:
                best, most = [a, b], together
    return best


def _corners(objects: SceneObjects, travelled: F64) -> F64:
    """Return (2, 2) places opposite one another, clear of all tracks and near the middle."""
    vehicle = np.array([kind in VEHICLE_TYPES for kind in objects.types], dtype=bool)
    traffic = objects.xy[objects.present & vehicle] if vehicle.any() else travelled
    middle = np.median(traffic, axis=0)
    ways = cKDTree(travelled)
    best, best_score = np.zeros((2, 2)), -np.inf
    for radius in (19.7, 24.0, 30.0, 40.0):
        for angle in np.radians(np.arange(45.0, 225.0, 15.0)):
            arm = radius * np.array([np.cos(angle), np.sin(angle)])
            pair = np.stack([middle + arm, middle - arm])
            clear = min(float(np.min(ways.query(pair)[0])), _CLEAR_M)
            score = clear - 0.02 * radius
            if score > best_score:
                best, best_score = pair, score
    return best
