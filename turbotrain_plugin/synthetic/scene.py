"""One scene from its seed: who is where at every frame, before any sensor looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from turbotrain_plugin.synthetic.agents import (
    Agent,
    choose_vehicles,
    junction_corners,
    roadside_units,
    vehicle_agent,
)
from turbotrain_plugin.synthetic.blocks import draw_blocks, draw_props
from turbotrain_plugin.synthetic.collisions import first_collision
from turbotrain_plugin.synthetic.corridor import (
    CONTROL,
    Corridor,
    corridor_network,
    corridor_site,
)
from turbotrain_plugin.synthetic.junction import junction_site, route_network
from turbotrain_plugin.synthetic.lidar import Solids
from turbotrain_plugin.synthetic.objects import (
    VEHICLE_TYPES,
    Placement,
    SceneObjects,
    merge,
    place,
)
from turbotrain_plugin.synthetic.parking import draw_parked
from turbotrain_plugin.synthetic.pedestrians import draw_people
from turbotrain_plugin.synthetic.signals import CYCLE_S, Signals
from turbotrain_plugin.synthetic.site import Site
from turbotrain_plugin.synthetic.traffic import simulate_traffic
from turbotrain_plugin.synthetic.world import World, make_corridor_world, make_junction_world

__all__ = ["LAYOUTS", "Layout", "ScenePlan", "plan_corridor_scene", "plan_junction_scene"]

_ATTEMPTS: Final = 60
_DRIVING: Final = (11, 24)
"""Fewest and most moving vehicles; about as many are parked."""
_FAR_EVERY: Final = 4
"""In one of so many scenes two agents must at times be out of cooperation range."""


_STANDING: Final = (0.42, 0.58)
_STILL_M: Final = 2.0
"""Share of a corridor's vehicles that go less than this far: a platoon may wait as well as park."""
_VIEWS_APART_M: Final = 40.0
"""Distance half way through of the two vehicles of a corridor; nearer ones see much the same."""


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """Everything that a scene is, layout frame.

    Attributes:
        world: Where it is.
        objects: What is labelled, T frames.
        placement: Their poses.
        blocks: What is not labelled.
        agents: Who looks.
        signals: Signal states; None where there are none.
    """

    world: World
    objects: SceneObjects
    placement: Placement
    blocks: Solids
    agents: tuple[Agent, ...]
    signals: Signals | None


def plan_junction_scene(world: World, frames: int, seed: tuple[int, ...], number: int) -> ScenePlan:
    """Return a scene at the junction without collisions and with two useful connected vehicles.

    Args:
        world: The junction of the root.
        frames: T, frames at 10 Hz.
        seed: Entropy of this scene alone.
        number: Number of the scene; every fourth has agents out of range.
    """
    far = number % _FAR_EVERY == 0
    return _first_usable(partial(_try_junction, world, frames, far=far), seed)


def plan_corridor_scene(world: World, frames: int, seed: tuple[int, ...], number: int) -> ScenePlan:  # noqa: ARG001 - all corridor scenes are alike
    """Return a scene in the corridor without collisions and with two useful connected vehicles.

    Args:
        world: The corridor of the root.
        frames: T, frames at 10 Hz.
        seed: Entropy of this scene alone.
        number: Number of the scene.
    """
    return _first_usable(partial(_try_corridor, world, frames), seed)


def _first_usable(
    attempt: Callable[[np.random.Generator], ScenePlan | None], seed: tuple[int, ...]
) -> ScenePlan:
    """Return the first plan that is one; what fails is drawn again from the next child seed."""
    for number in range(_ATTEMPTS):
        plan = attempt(np.random.default_rng(np.random.SeedSequence([*seed, number])))
        if plan is not None:
            return plan
    raise RuntimeError(f"no usable traffic in {_ATTEMPTS} attempts for scene seed {seed}")


def _try_junction(
    world: World, frames: int, rng: np.random.Generator, *, far: bool
) -> ScenePlan | None:
    signals = Signals(float(rng.uniform(0, CYCLE_S)))
    site = junction_site()
    people, crosswalks = draw_people(site, signals, frames, rng)
    traffic = simulate_traffic(route_network(), signals, crosswalks, frames, rng)
    objects = _with_standing(traffic, people, site, rng)
    if objects is None:
        return None
    corners = junction_corners(rng)
    chosen = choose_vehicles(objects, len(traffic.types), corners, far=far, rng=rng)
    if chosen is None or first_collision(objects) is not None:
        return None
    placement = place(objects, world.ground)
    agents = [vehicle_agent(n + 1, i, objects, placement) for n, i in enumerate(chosen)]
    agents += roadside_units(world.ground, corners, frames, rng)
    blocks = draw_blocks(site, world.ground, rng)
    return ScenePlan(world, objects, placement, blocks, tuple(agents), signals)


def _try_corridor(world: World, frames: int, rng: np.random.Generator) -> ScenePlan | None:
    corridor = world.ground.roads
    assert isinstance(corridor, Corridor)
    site = corridor_site(corridor)
    people, crossing = draw_people(site, None, frames, rng)
    traffic = simulate_traffic(corridor_network(corridor), CONTROL, crossing, frames, rng)
    objects = _with_standing(traffic, people, site, rng)
    if objects is None or not _STANDING[0] <= _standing_share(objects) <= _STANDING[1]:
        return None
    nowhere = np.zeros((0, 2))
    chosen = choose_vehicles(
        objects, len(traffic.types), nowhere, far=False, rng=rng, least_m=_VIEWS_APART_M
    )
    if chosen is None or first_collision(objects) is not None:
        return None
    placement = place(objects, world.ground)
    agents = [vehicle_agent(n + 1, i, objects, placement) for n, i in enumerate(chosen)]
    blocks = draw_blocks(site, world.ground, rng)
    return ScenePlan(world, objects, placement, blocks, tuple(agents), None)


def _with_standing(
    traffic: SceneObjects, people: SceneObjects, site: Site, rng: np.random.Generator
) -> SceneObjects | None:
    """Return all objects, the moving vehicles first; None when those are too few or too many."""
    driving, frames = len(traffic.types), len(traffic.xy)
    if not _DRIVING[0] <= driving <= _DRIVING[1]:
        return None
    parked = draw_parked(site.strips, round(driving * rng.uniform(0.8, 1.25)), frames, rng)
    return merge([traffic, parked, people, draw_props(site, frames, rng)], rng)


def _standing_share(objects: SceneObjects) -> float:
    """Return the share of the vehicles that get nowhere, parked or waiting."""
    vehicle = np.array([kind in VEHICLE_TYPES for kind in objects.types], dtype=bool)
    there = objects.present[:, vehicle, None]
    way = np.where(there, objects.xy[:, vehicle], np.nan)
    reach = np.nanmax(way, axis=0) - np.nanmin(way, axis=0)
    return float((reach.max(axis=1) < _STILL_M).mean())


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of place.

    Attributes:
        world: Makes the place of a root from the root's seed.
        plan: Plans a scene there: world, frames, seed of the scene, number of the scene.
        map_file: Its vector map, named as in the real data.
    """

    world: Callable[[int], World]
    plan: Callable[[World, int, tuple[int, ...], int], ScenePlan]
    map_file: str


LAYOUTS: Final[dict[str, Layout]] = {
    "junction": Layout(make_junction_world, plan_junction_scene, "v2x_intersection_vector_map.pkl"),
    "corridor": Layout(make_corridor_world, plan_corridor_scene, "v2v_corridors_vector_map.pkl"),
}
"""What a preset can name; the lanes of each are in ``LANE_MAPS``."""
