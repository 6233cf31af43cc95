"""One scene from its seed: who is where at every frame, before any sensor looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from turbotrain_plugin.synthetic.lidar import Solids
from turbotrain_plugin.synthetic.objects import Placement, SceneObjects, merge, place
from turbotrain_plugin.synthetic.parking import draw_parked
from turbotrain_plugin.synthetic.pedestrians import draw_people
from turbotrain_plugin.synthetic.signals import CYCLE_S, Signals
from turbotrain_plugin.synthetic.traffic import simulate_traffic
from turbotrain_plugin.synthetic.world import World

__all__ = ["LAYOUTS", "ScenePlan", "plan_junction_scene"]

_ATTEMPTS: Final = 60
_DRIVING: Final = (11, 24)
"""Fewest and most moving vehicles; about as many are parked."""
_FAR_EVERY: Final = 4
"""In one of so many scenes two agents must at times be out of cooperation range."""


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

    Traffic that fails either is thrown away and drawn again from the next child seed.

    Args:
        world: The junction of the root.
        frames: T, frames at 10 Hz.
        seed: Entropy of this scene alone.
        number: Number of the scene; every fourth has agents out of range.
    """
    far = number % _FAR_EVERY == 0
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(np.random.SeedSequence([*seed, attempt]))
        plan = _try_junction(world, frames, far=far, rng=rng)
        if plan is not None:
            return plan
    raise RuntimeError(f"no usable traffic in {_ATTEMPTS} attempts for scene seed {seed}")


def _try_junction(
    world: World, frames: int, *, far: bool, rng: np.random.Generator
) -> ScenePlan | None:
    signals = Signals(float(rng.uniform(0, CYCLE_S)))
    people, crosswalks = draw_people(signals, frames, rng)
    traffic = simulate_traffic(signals, crosswalks, frames, rng)
    driving = len(traffic.types)
    if not _DRIVING[0] <= driving <= _DRIVING[1]:
        return None
    parked = draw_parked(round(driving * rng.uniform(0.8, 1.25)), frames, rng)
    objects = merge([traffic, parked, people, draw_props(frames, rng)], rng)
    corners = junction_corners(rng)
    chosen = choose_vehicles(objects, driving, corners, far=far, rng=rng)
    if chosen is None or first_collision(objects) is not None:
        return None
    placement = place(objects, world.ground)
    agents = [vehicle_agent(n + 1, i, objects, placement) for n, i in enumerate(chosen)]
    agents += roadside_units(world.ground, corners, frames, rng)
    blocks = draw_blocks(world.ground, rng)
    return ScenePlan(world, objects, placement, blocks, tuple(agents), signals)


LAYOUTS: Final[dict[str, Callable[[World, int, tuple[int, ...], int], ScenePlan]]] = {
    "junction": plan_junction_scene,
}
"""Scene planner of each layout; a corridor would be one more file and one more line."""
