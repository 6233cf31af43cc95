"""Let the agents of a planned scene look, and write what they see."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.agents import Agent
from turbotrain_plugin.synthetic.flaws import FlawedLabels, flaw_labels, flaw_points
from turbotrain_plugin.synthetic.lidar import RayGrid, Solids, cast, measure
from turbotrain_plugin.synthetic.objects import rotations, solids_at
from turbotrain_plugin.synthetic.presets import Preset
from turbotrain_plugin.synthetic.scene import ScenePlan
from turbotrain_plugin.synthetic.writer import META_NAME, FrameLabels, frame_yaml, scene_meta

__all__ = ["render_scene"]

_BLACKOUT_SHARE: Final = 0.02
_LOST_FRAME_SHARE: Final = 0.005
_SECOND_AGENT: Final = 2
"""The agent that uses second ids, when flaws are asked for."""


@dataclass(frozen=True, slots=True)
class _Sensors:
    """Ray grids of both sensor models."""

    vehicle: RayGrid
    roadside: RayGrid

    def of(self, agent: Agent) -> RayGrid:
        return self.roadside if agent.agent_id < 0 else self.vehicle


def render_scene(
    plan: ScenePlan, preset: Preset, seed: tuple[int, ...], folder: Path, head: dict[str, Any]
) -> None:
    """Write the folders of all agents and the side file of a scene.

    Args:
        plan: Who is where.
        preset: Sensors, strides and flaws.
        seed: Entropy of this scene alone.
        folder: New folder of the scene.
        head: What to say about the scene at the top of its side file.
    """
    sensors = _Sensors(RayGrid.of(preset.vehicle), RayGrid.of(preset.roadside))
    for agent in plan.agents:
        (folder / str(agent.agent_id)).mkdir(parents=True)
    rng = np.random.default_rng(np.random.SeedSequence([*seed, 2]))
    flawed = flaw_labels(plan.objects, plan.placement, preset.noise, rng)
    labelled = np.zeros(plan.objects.present.shape, np.bool_)
    for frame in range(0, len(labelled), preset.label_stride):
        solids = plan.blocks + solids_at(plan.objects, plan.placement, frame)
        labels = _labels(plan, flawed, frame)
        for agent in plan.agents:
            rng = np.random.default_rng(
                np.random.SeedSequence([*seed, 1, agent.agent_id % 2**32, frame])
            )
            if not agent.present[frame] or rng.random() < _LOST_FRAME_SHARE:
                continue
            points, seen = _look(plan, agent, frame, sensors.of(agent), solids, rng)
            seen = seen[~flawed.hidden[frame, seen]]
            labelled[frame, seen] = True
            stem = folder / str(agent.agent_id) / f"{frame:06d}"
            ids = flawed.second_ids if agent.agent_id == _SECOND_AGENT else plan.objects.ids
            text = labels.text(seen.tolist(), ids.tolist())
            text = _agent_yaml(plan, agent, frame, text)
            stem.with_suffix(".yaml").write_text(text, encoding="utf-8")
            if frame % preset.cloud_stride == 0:
                points = flaw_points(points, preset.noise, rng)
                points.astype("<f4").tofile(stem.with_suffix(".bin"))
    meta = scene_meta(plan, labelled, {**head, "label_stride": preset.label_stride})
    (folder / META_NAME).write_text(json.dumps(meta, separators=(",", ":")), encoding="utf-8")


def _look(
    plan: ScenePlan,
    agent: Agent,
    frame: int,
    rays: RayGrid,
    solids: Solids,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the agent's cloud and the indices of the objects in it; never its own vehicle."""
    if agent.object_index >= 0:
        solids = solids.select(solids.owners != agent.object_index)
    scan = cast(
        rays, rotations(agent.angles[frame]), agent.origins[frame], solids, plan.world.ground
    )
    blackout = rng.random() < _BLACKOUT_SHARE
    points, owners = measure(rays, scan, rng, blackout=blackout)
    return points, np.unique(owners[owners >= 0])


def _labels(plan: ScenePlan, flawed: FlawedLabels, frame: int) -> FrameLabels:
    objects = plan.objects
    return FrameLabels(
        objects.types,
        objects.half_sizes,
        plan.world.to_world(flawed.centres[frame]),
        plan.world.angles_deg(flawed.angles[frame]),
        objects.speed[frame],
    )


def _agent_yaml(plan: ScenePlan, agent: Agent, frame: int, labels: str) -> str:
    pose = np.concatenate(
        [
            plan.world.to_world(agent.origins[frame]),
            plan.world.angles_deg(agent.angles[frame]),
        ]
    )
    return frame_yaml(pose, float(agent.speeds[frame]), infra=agent.agent_id < 0, labels=labels)
