"""Files of the V2XPnP-Seq layout: labels as YAML, clouds as float32, clean states as JSON."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.blocks import BUILDING, HEDGE, POLE
from turbotrain_plugin.synthetic.presets import SPEC_VERSION
from turbotrain_plugin.synthetic.scene import ScenePlan

__all__ = ["META_NAME", "FrameLabels", "frame_yaml", "scene_meta", "trajectory_database"]

F64 = NDArray[np.float64]

META_NAME: Final = "synthetic_meta.json"
"""Side file of a scene: what was really there. Readers of the layout pass over it."""

_BLOCK_KINDS: Final = {BUILDING: "building", POLE: "pole", HEDGE: "hedge"}


class FrameLabels:
    """Labels of all objects at one frame, formatted once and shared by the agents.

    Args:
        types: N raw types.
        half_sizes: (N, 3) metres.
        centres: (N, 3) metres, world.
        angles_deg: (N, 3) roll, yaw, pitch, world.
        speeds: (N,) m/s.
    """

    def __init__(
        self,
        types: tuple[str, ...],
        half_sizes: F64,
        centres: F64,
        angles_deg: F64,
        speeds: F64,
    ) -> None:
        self._texts = [
            f"    angle: {_numbers(angle)}\n    center: [0.0, 0.0, 0.0]\n"
            f"    extent: {_numbers(extent)}\n"
            f"    location: {_numbers(centre)}\n"
            f"    obj_type: {kind}\n"
            f"    speed: {_number(speed)}\n"
            for kind, extent, centre, angle, speed in zip(
                types,
                half_sizes.tolist(),
                centres.tolist(),
                angles_deg.tolist(),
                speeds.tolist(),
                strict=True,
            )
        ]

    def text(self, index: list[int], ids: list[int]) -> str:
        """Return the YAML of the chosen objects; ``ids`` are those of all N."""
        return "".join(f"  {ids[i]}:\n{self._texts[i]}" for i in index)


def frame_yaml(pose: F64, speed: float, *, infra: bool, labels: str) -> str:
    """Return a label file.

    Args:
        pose: (6,) x, y, z in metres, roll, yaw, pitch in degrees, LiDAR to world.
        speed: Of the agent, m/s.
        infra: Whether the agent is a roadside unit.
        labels: Text of the objects that it sees.
    """
    text = _numbers(pose.tolist())
    vehicles = f"vehicles:\n{labels}" if labels else "vehicles: {}\n"
    return (
        f"ego_speed: {_number(speed)}\n"
        f"infra: {'true' if infra else 'false'}\n"
        f"lidar_pose: {text}\n"
        f"true_ego_pose: {text}\n"
        f"{vehicles}"
    )


def _number(value: float) -> str:
    # A value that rounds to zero from below would be written as -0.000000.
    return "0.000000" if abs(value) < 5e-7 else f"{value:.6f}"


def _numbers(values: list[float]) -> str:
    return f"[{', '.join(map(_number, values))}]"


# --------------------------------------------------------------------------------------- side files


def scene_meta(
    plan: ScenePlan, labelled: NDArray[np.bool_], head: dict[str, Any]
) -> dict[str, Any]:
    """Return what was really in a scene, world frame, angles in degrees.

    Args:
        plan: The scene.
        labelled: (T, N), whether any agent has a label of the object at the frame.
        head: Preset, seed and the like.
    """
    objects, world = plan.objects, plan.world
    states = np.concatenate(
        [
            world.to_world(plan.placement.centres),
            world.angles_deg(plan.placement.angles),
            objects.speed[..., None],
        ],
        axis=-1,
    ).round(6)
    signals = plan.signals
    frames = range(len(states))
    return {
        **head,
        "spec_version": SPEC_VERSION,
        "layout": world.layout,
        "frame_rate_hz": 10,
        "frames": len(states),
        "agents": {
            str(agent.agent_id): int(objects.ids[agent.object_index])
            if agent.object_index >= 0
            else None
            for agent in plan.agents
        },
        "state_columns": ["x", "y", "z", "roll_deg", "yaw_deg", "pitch_deg", "speed"],
        "objects": {
            str(number): {
                "type": objects.types[i],
                "half_size": objects.half_sizes[i].round(6).tolist(),
                "present": _runs(objects.present[:, i]),
                "labelled": _runs(labelled[:, i]),
                "states": _states(states[:, i], objects.present[:, i]),
            }
            for i, number in enumerate(objects.ids.tolist())
        },
        "signals": None
        if signals is None
        else [[signals.state(arm, frame * 0.1) for arm in (0, 1)] for frame in frames],
        "blocks": _blocks(plan),
    }


def _runs(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Return the [first, last] frames of every run of True."""
    edge = np.diff(np.concatenate([[0], mask.astype(np.int8), [0]]))
    first, last = np.nonzero(edge == 1)[0], np.nonzero(edge == -1)[0] - 1
    return [list(run) for run in zip(first.tolist(), last.tolist(), strict=True)]


def _states(states: F64, present: NDArray[np.bool_]) -> list[list[float]]:
    """Return the states at the frames where present; one only for what never moves."""
    there = states[present]
    still = bool((there == there[:1]).all())
    rows: list[list[float]] = there[:1].tolist() if still else there.tolist()
    return rows


def _blocks(plan: ScenePlan) -> list[dict[str, Any]]:
    blocks = plan.blocks
    centres = plan.world.to_world(blocks.centres).round(6)
    yaw = np.arctan2(blocks.rotations[:, 1, 0], blocks.rotations[:, 0, 0]) + plan.world.yaw_rad
    return [
        {
            "kind": _BLOCK_KINDS[int(owner)],
            "centre": centre.tolist(),
            "half_size": half.round(6).tolist(),
            "yaw_deg": round(float(np.degrees(turn)), 6),
        }
        for owner, centre, half, turn in zip(
            blocks.owners, centres, blocks.half_sizes, yaw, strict=True
        )
    ]


def trajectory_database(scenes: list[Path]) -> OrderedDict[int, OrderedDict[int, dict[str, Any]]]:
    """Return scene index -> object id -> track, of the objects that are ever labelled.

    A track is ``trajectory`` (T, 4) float64, frame index, x, y, z in the world, and
    ``trajectory_mask`` (T,) bool, whether the object is labelled by then (between two labelled
    frames of a strided recording: whether by both).

    Args:
        scenes: Scene folders in order of their index.
    """
    database: OrderedDict[int, OrderedDict[int, dict[str, Any]]] = OrderedDict()
    for index, folder in enumerate(scenes):
        meta = json.loads((folder / META_NAME).read_text(encoding="utf-8"))
        tracks: OrderedDict[int, dict[str, Any]] = OrderedDict()
        for number in sorted(meta["objects"], key=int):
            entry = meta["objects"][number]
            if entry["labelled"]:
                tracks[int(number)] = _track(entry, meta["frames"], meta["label_stride"])
        database[index] = tracks
    return database


def _track(entry: dict[str, Any], frames: int, stride: int) -> dict[str, Any]:
    present = np.zeros(frames, np.bool_)
    mask = np.zeros(frames, np.bool_)
    for first, last in entry["present"]:
        present[first : last + 1] = True
    for first, last in entry["labelled"]:
        mask[first : last + 1] = True
    for start in range(0, frames - stride, stride):
        mask[start : start + stride + 1] |= mask[start] & mask[start + stride]
    trajectory = np.zeros((frames, 4))
    trajectory[:, 0] = np.arange(frames)
    trajectory[present, 1:] = np.array(entry["states"])[:, :3]
    return {"trajectory": trajectory, "trajectory_mask": mask}
