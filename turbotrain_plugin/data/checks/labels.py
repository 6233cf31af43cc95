"""Label files one by one: readable, poses that a sensor can have, boxes that an object can have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.geometry.boxes import contains_origin, transform_boxes, wrap_angle
from turbotrain_plugin.geometry.poses import invert_rigid, is_rigid, yaw_of
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["CLASSES", "FRAME_S", "Frames", "check_labels", "check_poses", "read_labels"]

Frames = Mapping[tuple[int, int], AgentFrame]
"""(agent, frame) to labels."""

FRAME_S: Final = 0.1
"""Time between two frames of the 10 Hz grid."""

CLASSES: Final = frozenset(
    (
        *("Car", "Van", "PoliceCar", "LongVehicle", "Bus", "Truck", "ConcreteTruck", "Pedestrian"),
        *("Child", "RoadWorker", "Scooter", "ScooterRider", "Motorcycle", "MotorcyleRider"),
        *("BicycleRider", "Bicycle", "TrashCan", "FireHydrant", "ConstructionCart"),
    )
)
"""Class names of the known data sets, ``MotorcyleRider`` as they spell it."""

_LISTED: Final = 20
"""Damaged files of one agent that are listed one by one."""
_MAX_LENGTH_M: Final = 30.0
_MIN_SIZE_M: Final = 0.1
_CAR_LENGTH_M: Final = (3.2, 6.5)
_CARS: Final = 5
"""Cars whose median length says something."""
_LEAN_RAD: Final = np.deg2rad(30.0)
_JUMP_M: Final = 3.0
_AGENT_MPS: Final = 60.0
_SPIN_RAD: Final = np.deg2rad(45.0)
_AGENT_RADPS: Final = np.deg2rad(180.0)
_ROADSIDE_M: Final = 2.0


def read_labels(scene: SceneIndex, reader: type[SequenceReader], notes: Notes) -> Frames:
    """Read all label files of a scene; those that cannot be read are findings."""
    frames: dict[tuple[int, int], AgentFrame] = {}
    for agent_id, available in scene.agents.items():
        damaged = 0
        for frame in available.label_frames:
            path = scene.file(agent_id, frame, "yaml")
            try:
                frames[agent_id, frame] = reader.read_label_file(path, agent_id, frame)
            except UserError as error:
                damaged += 1
                if damaged <= _LISTED:
                    notes.add(_kind(str(error)), agent_id, frame, str(error))
        if damaged > _LISTED:
            message = f"{damaged - _LISTED} more label files are damaged"
            notes.add("bad-label", agent_id, None, message)
    for (agent_id, frame), labels in frames.items():
        if not is_rigid(labels.world_SE3_lidar):
            notes.add("bad-pose", agent_id, frame, "the pose is not finite and rigid")
    return frames


def _kind(message: str) -> str:
    if ": lidar_pose" in message:
        return "bad-pose"
    return "bad-object" if ": object " in message else "bad-label"


# -------------------------------------------------------------------------------- poses of agents


def check_poses(frames: Frames, notes: Notes) -> None:
    """Find sensors that lean, jump, or move although they stand at the roadside."""
    poses: dict[int, list[tuple[int, NDArray[np.float64]]]] = defaultdict(list)
    for (agent_id, frame), labels in sorted(frames.items()):
        poses[agent_id].append((frame, labels.world_SE3_lidar))
    for agent_id, track in poses.items():
        leaning = [frame for frame, pose in track if pose[2, 2] < np.cos(_LEAN_RAD)]
        if leaning:
            message = f"the sensor leans by more than 30 degrees in {len(leaning)} frames"
            notes.add("tilted-sensor", agent_id, leaning[0], message)
        jumps = [second[0] for first, second in pairwise(track) if _jumps(first, second)]
        if jumps:
            message = f"the pose jumps or spins before {len(jumps)} frames"
            notes.add("pose-jump", agent_id, jumps[0], message)
        places = np.array([pose[:3, 3] for _, pose in track])
        moved = float(np.linalg.norm(np.ptp(places, axis=0)))
        if agent_id < 0 and moved > _ROADSIDE_M:
            message = f"the roadside unit moves by {moved:.1f} m"
            notes.add("roadside-moves", agent_id, track[0][0], message)


def _jumps(first: tuple[int, NDArray[np.float64]], second: tuple[int, NDArray[np.float64]]) -> bool:
    time_s = (second[0] - first[0]) * FRAME_S
    way_m = np.linalg.norm(second[1][:3, 3] - first[1][:3, 3])
    turn_rad = abs(wrap_angle(np.array(yaw_of(second[1]) - yaw_of(first[1]))))
    return bool(
        way_m > _JUMP_M + _AGENT_MPS * time_s or turn_rad > _SPIN_RAD + _AGENT_RADPS * time_s
    )


# ------------------------------------------------------------------------------------------ boxes


def check_labels(frames: Frames, notes: Notes) -> None:
    """Find boxes with unlikely sizes, angles, places and classes."""
    _check_boxes(frames, notes)
    _check_classes(frames, notes)
    _check_car_length(frames, notes)
    with_objects = {agent for (agent, _), labels in frames.items() if len(labels.object_ids)}
    for agent_id in sorted({agent for agent, _ in frames} - with_objects):
        if with_objects:
            message = "no file of the agent holds an object, those of other agents do"
            notes.add("no-objects", agent_id, None, message)


def _check_boxes(frames: Frames, notes: Notes) -> None:
    found: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for (agent_id, frame), labels in sorted(frames.items()):
        if not len(labels.object_ids):
            continue
        sizes = labels.world_boxes[:, 3:6]
        own = transform_boxes(invert_rigid(labels.world_SE3_lidar), labels.world_boxes)
        lean = np.abs(wrap_angle(labels.roll_pitch_rad)).max(axis=1)
        for kind, where in (
            (
                "odd-size",
                (sizes.min(axis=1) < _MIN_SIZE_M) | (sizes.max(axis=1) > _MAX_LENGTH_M),
            ),
            ("tilted-box", lean > _LEAN_RAD),
            ("box-at-sensor", contains_origin(own)),
        ):
            for object_id in labels.object_ids[where].tolist():
                found[kind, agent_id, object_id].append(frame)
    what = {
        "odd-size": "has an unusual size",
        "tilted-box": "leans by more than 30 degrees",
        "box-at-sensor": "contains the agent's own LiDAR",
    }
    for (kind, agent_id, object_id), where_seen in found.items():
        message = f"object {object_id} {what[kind]} in {len(where_seen)} frames"
        notes.add(kind, agent_id, where_seen[0], message)


def _check_classes(frames: Frames, notes: Notes) -> None:
    names: dict[int, dict[str, tuple[int, int]]] = defaultdict(dict)
    for (agent_id, frame), labels in sorted(frames.items(), key=lambda item: item[0][1]):
        for object_id, name in zip(labels.object_ids.tolist(), labels.raw_types, strict=True):
            names[object_id].setdefault(name, (agent_id, frame))
    for object_id, places in names.items():
        if len(places) > 1:
            agent_id, frame = list(places.values())[1]
            message = f"object {object_id} is called {' and '.join(sorted(places))}"
            notes.add("class-conflict", agent_id, frame, message)
    unknown: dict[str, tuple[int, int]] = {}
    for places in names.values():
        for name, place in places.items():
            if name not in CLASSES:
                unknown.setdefault(name, place)
    for name, (agent_id, frame) in unknown.items():
        message = f"objects of class {name!r} belong to no class of the known data sets"
        notes.add("unknown-class", agent_id, frame, message)


def _check_car_length(frames: Frames, notes: Notes) -> None:
    lengths: dict[int, float] = {}
    for labels in frames.values():
        rows: Sequence[tuple[int, str, float]] = list(
            zip(
                labels.object_ids.tolist(),
                labels.raw_types,
                labels.world_boxes[:, 3].tolist(),
                strict=True,
            )
        )
        lengths.update({object_id: length for object_id, name, length in rows if name == "Car"})
    if len(lengths) < _CARS:
        return
    median = float(np.median(list(lengths.values())))
    low, high = _CAR_LENGTH_M
    if not low <= median <= high:
        message = (
            f"half of the {len(lengths)} cars are longer than {median:.1f} m and half are shorter: "
            "extent holds half sizes in metres, from the centre to the side"
        )
        notes.add("size-convention", None, None, message)
