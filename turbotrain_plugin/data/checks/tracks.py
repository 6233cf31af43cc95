"""Objects over agents and time: one id for one object, in one place, driving where it points.

Thresholds leave room for what real labels do: people hop by 0.6 m, parked cars wander by some
decimetres, tracks have gaps of up to 2 s. Headings are looked at for objects of at least 1.5 m, as
those of people say nothing about where they walk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.data.checks.labels import FRAME_S, Frames
from turbotrain_plugin.geometry.boxes import wrap_angle
from turbotrain_plugin.structures import AgentFrame

__all__ = ["check_tracks"]

F64 = NDArray[np.float64]

_LARGE_M: Final = 1.5
"""Length of an object whose heading means something."""
_TWINS_RAD: Final = np.deg2rad(35.0)
_TWIN_FRAMES: Final = 3
"""Frames for which two objects must be in one place: fewer may be a near miss."""
_APART_M: Final = 2.0
"""Distance at which two agents no longer mean the same place."""
_JUMP_M: Final = 5.0
_OBJECT_MPS: Final = 40.0
_ROUND_RAD: Final = np.deg2rad(135.0)
_FLIP_FRAMES: Final = 5
"""Nobody turns round within 0.5 s."""
_STEP_FRAMES: Final = 5
"""Directions of motion are taken over at least 0.5 s; over 0.1 s they would be noise."""
_STEP_M: Final = 0.5
_STEPS: Final = 4
_WAY_M: Final = 3.0
_MOVERS: Final = 4
"""Moving objects whose headings together say something about the file's convention."""
_OFF_RAD: Final = np.deg2rad(30.0)


class _Track(NamedTuple):
    """An object over time as one agent labels it: N frames, (N, 7) world boxes.

    Agents are kept apart: where they put an object in different places, that is another finding.
    """

    agent_id: int
    frames: list[int]
    boxes: F64


def check_tracks(frames: Frames, notes: Notes) -> None:
    """Check identities, jumps and headings of a scene's objects."""
    at: dict[int, list[AgentFrame]] = defaultdict(list)
    for (_, frame), labels in frames.items():
        at[frame].append(labels)
    _check_identities(at, notes)
    _check_agreement(at, notes)
    tracks = _tracks(frames)
    for object_id, found in tracks.items():
        _check_jumps(object_id, found, notes)
        _check_flips(object_id, found, notes)
    _check_directions(tracks, notes)


# --------------------------------------------------------------------------------- at one time


def _check_identities(at: dict[int, list[AgentFrame]], notes: Notes) -> None:
    """Find objects of car size that stand in each other for half of their shared frames.

    The distance and angle are those that a public audit of V2XPnP scenes merged by (our reading):
    centres nearer than 0.225 (La + Lb) + 0.4 m, yaw within 35 degrees. Our addition: they overlap
    across, or a car beside a bus would count. People are left out, a group of them stands closer
    than that.
    """
    met: dict[tuple[int, int], list[int]] = defaultdict(list)
    seen: dict[int, set[int]] = defaultdict(set)
    for frame in sorted(at):
        ids, boxes = _union(at[frame])
        for object_id in ids.tolist():
            seen[object_id].add(frame)
        for first, second in _standing_in_each_other(boxes):
            low, high = sorted((int(ids[first]), int(ids[second])))
            met[low, high].append(frame)
    for (low, high), where in met.items():
        if len(where) >= max(_TWIN_FRAMES, len(seen[low] & seen[high]) / 2):
            text = f"objects {low} and {high} are in one place in {len(where)} frames"
            notes.add("duplicate-id", None, where[0], f"{text}: one object with two ids?")


def _union(labels: Sequence[AgentFrame]) -> tuple[NDArray[np.int64], F64]:
    ids, first = np.unique(np.concatenate([one.object_ids for one in labels]), return_index=True)
    return ids, np.concatenate([one.world_boxes for one in labels])[first]


def _standing_in_each_other(boxes: F64) -> Iterator[tuple[int, int]]:
    large = np.flatnonzero(boxes[:, 3] >= _LARGE_M)
    if len(large) < 2:
        return
    length = boxes[:, 3]
    reach = 0.45 * float(length.max()) + 0.4
    for a, b in cKDTree(boxes[large, :2]).query_pairs(reach):
        first, second = int(large[a]), int(large[b])
        offset = boxes[second, :2] - boxes[first, :2]
        yaw = boxes[first, 6]
        across = abs(offset[1] * np.cos(yaw) - offset[0] * np.sin(yaw))
        beside = across > (boxes[first, 4] + boxes[second, 4]) / 2
        distance = float(np.hypot(*offset))
        turn = _turn(boxes[first, 6], boxes[second, 6])
        near = distance < 0.225 * (length[first] + length[second]) + 0.4
        if near and not beside and turn < _TWINS_RAD:
            yield first, second


def _check_agreement(at: dict[int, list[AgentFrame]], notes: Notes) -> None:
    """Find ids that two agents put in different places at one time."""
    objects: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    first_frame: dict[tuple[int, int], int] = {}
    for frame in sorted(at):
        for a, b in combinations(sorted(at[frame], key=lambda one: one.agent_id), 2):
            _, in_a, in_b = np.intersect1d(a.object_ids, b.object_ids, return_indices=True)
            apart = np.linalg.norm(a.world_boxes[in_a, :3] - b.world_boxes[in_b, :3], axis=1)
            limit = np.maximum(_APART_M, a.world_boxes[in_a, 3] / 2)
            pair = (a.agent_id, b.agent_id)
            for row in np.flatnonzero(apart > limit).tolist():
                object_id = int(a.object_ids[in_a[row]])
                largest = max(objects[pair].get(object_id, 0.0), float(apart[row]))
                objects[pair][object_id] = largest
                first_frame.setdefault(pair, frame)
    for (a_id, b_id), distance in objects.items():
        farthest = max(distance, key=lambda one: distance[one])
        message = (
            f"{len(distance)} objects are elsewhere in the files of agent {b_id}, object "
            f"{farthest} by {distance[farthest]:.1f} m"
        )
        notes.add("label-conflict", a_id, first_frame[a_id, b_id], message)


# ------------------------------------------------------------------------------------ over time


def _tracks(frames: Frames) -> dict[int, list[_Track]]:
    """Return object id to its tracks, one per agent."""
    rows: dict[tuple[int, int], list[tuple[int, F64]]] = defaultdict(list)
    for (agent_id, frame), labels in sorted(frames.items()):
        for object_id, box in zip(labels.object_ids.tolist(), labels.world_boxes, strict=True):
            rows[object_id, agent_id].append((frame, box))
    tracks: dict[int, list[_Track]] = defaultdict(list)
    for (object_id, agent_id), found in rows.items():
        boxes = np.stack([box for _, box in found])
        tracks[object_id].append(_Track(agent_id, [frame for frame, _ in found], boxes))
    return tracks


def _check_jumps(object_id: int, tracks: Sequence[_Track], notes: Notes) -> None:
    for track in tracks:
        way = np.linalg.norm(np.diff(track.boxes[:, :2], axis=0), axis=1)
        time_s = np.diff(track.frames) * FRAME_S
        jumps = np.flatnonzero(way > _JUMP_M + _OBJECT_MPS * time_s)
        if len(jumps):
            row = int(jumps[0])
            message = (
                f"object {object_id} jumps {len(jumps)} times, first by {way[row]:.1f} m in "
                f"{time_s[row]:.1f} s"
            )
            notes.add("track-jump", track.agent_id, track.frames[row + 1], message)
            return


def _check_flips(object_id: int, tracks: Sequence[_Track], notes: Notes) -> None:
    for track in tracks:
        turn = np.abs(wrap_angle(np.diff(track.boxes[:, 6])))
        flips = np.flatnonzero((turn > _ROUND_RAD) & (np.diff(track.frames) <= _FLIP_FRAMES))
        if len(flips) and track.boxes[0, 3] >= _LARGE_M:
            frame = track.frames[int(flips[0]) + 1]
            message = f"object {object_id} turns round {len(flips)} times between two frames"
            notes.add("heading-flip", track.agent_id, frame, message)
            return


def _check_directions(tracks: Mapping[int, Sequence[_Track]], notes: Notes) -> None:
    """Compare headings with motion: one by one for reversed ones, all together for wrong angles."""
    off = []
    for object_id, found in tracks.items():
        track = max(found, key=lambda one: len(one.frames))
        angles = _angles_to_motion(track)
        if len(angles) < _STEPS:
            continue
        off.append(float(np.median(np.minimum(angles, np.pi - angles))))
        if (angles > _ROUND_RAD).mean() >= 0.9:
            message = f"object {object_id} drives backwards, its heading is probably reversed"
            notes.add("heading-reversed", track.agent_id, track.frames[0], message)
    if len(off) >= _MOVERS and np.median(off) > _OFF_RAD:
        message = (
            f"the headings of {len(off)} moving objects are off their motion by "
            f"{np.rad2deg(np.median(off)):.0f} degrees (median): angles are roll, yaw, pitch in "
            "degrees"
        )
        notes.add("heading-off", None, None, message)


def _angles_to_motion(track: _Track) -> F64:
    """Return the angle between heading and motion in [0, pi], per step that moved."""
    boxes, angles = track.boxes, []
    if boxes[0, 3] < _LARGE_M or np.linalg.norm(boxes[-1, :2] - boxes[0, :2]) < _WAY_M:
        return np.zeros(0)
    ends = np.searchsorted(track.frames, np.array(track.frames) + _STEP_FRAMES)
    for start, end in enumerate(ends.tolist()):
        if end < len(boxes):
            way = boxes[end, :2] - boxes[start, :2]
            if np.hypot(*way) >= _STEP_M:
                angles.append(_turn(float(np.arctan2(way[1], way[0])), boxes[start, 6]))
    return np.array(angles)


def _turn(first: float, second: float) -> float:
    return float(abs(wrap_angle(np.array(first - second))))
