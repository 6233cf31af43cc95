"""Labels over agents and time: union by id, positions of objects at other times, gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.base import ScenarioReader, SceneIndex
from turbotrain_plugin.structures import AgentFrame

__all__ = [
    "Labels",
    "centres_of",
    "fill_gaps",
    "fill_track",
    "has_objects",
    "hold_last",
    "union_labels",
]

GAP_FRAMES: Final = 5
"""Longest run of missing 10 Hz frames that ``interpolate`` closes: 0.5 s."""


class Labels(NamedTuple):
    """Objects of several agents at one time, each id once.

    Attributes:
        object_ids: (M,) int64.
        world_boxes: (M, 7) float64.
        raw_types: M class names.
    """

    object_ids: NDArray[np.int64]
    world_boxes: NDArray[np.float64]
    raw_types: tuple[str, ...]


def has_objects(reader: ScenarioReader, scene: SceneIndex) -> bool:
    """Return whether a scene is labelled: any object in the first, middle or last file of an agent.

    A log without ``vehicles`` reads like one that saw nothing; a recording in which no agent ever
    sees anything is taken for an unlabelled one.
    """
    for agent_id, agent in scene.agents.items():
        frames = agent.label_frames
        probes = {frames[i] for i in (0, len(frames) // 2, -1)} if frames else set()
        for frame in sorted(probes):
            if len(reader.read_frame(scene, agent_id, frame).object_ids):
                return True
    return False


def union_labels(frames: Sequence[AgentFrame]) -> Labels:
    """Return every object of ``frames`` once, as the first frame that has its id describes it.

    Objects come in the order of first appearance: all of the first frame (the ego's), then what
    the second one adds.
    """
    if not frames:
        return Labels(np.empty(0, np.int64), np.empty((0, 7)), ())
    ids = np.concatenate([frame.object_ids for frame in frames])
    boxes = np.concatenate([frame.world_boxes for frame in frames])
    types = [name for frame in frames for name in frame.raw_types]
    first = np.sort(np.unique(ids, return_index=True)[1])
    return Labels(ids[first], boxes[first], tuple(types[i] for i in first))


def centres_of(
    object_ids: NDArray[np.int64], frames: Sequence[AgentFrame]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Look objects up in the union of the labels of ``frames``.

    Args:
        object_ids: (M,) ids wanted.
        frames: Labels of the agents at one time, the most trusted first.

    Returns:
        (M, 3) world centres, zero where unknown, and (M,) whether the id was found.
    """
    centres = np.zeros((len(object_ids), 3))
    found = np.zeros(len(object_ids), dtype=bool)
    if not frames:
        return centres, found
    # np.unique keeps the first of equal ids: the most trusted agent's.
    known, first = np.unique(np.concatenate([f.object_ids for f in frames]), return_index=True)
    if len(known) == 0:
        return centres, found
    place = np.minimum(np.searchsorted(known, object_ids), len(known) - 1)
    found = known[place] == object_ids
    boxes = np.concatenate([f.world_boxes for f in frames])
    centres[found] = boxes[first[place[found]], :3]
    return centres, found


def fill_gaps(
    positions: NDArray[np.float64], valid: NDArray[np.bool_], max_missing: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Close gaps between known steps by straight lines at constant speed.

    Args:
        positions: (M, K, D) equally spaced in time.
        valid: (M, K) known steps.
        max_missing: Longest run of missing steps that is closed.

    Returns:
        Copies of both with the closed steps filled and marked valid. Steps before the first or
        after the last known one are left as they are.
    """
    positions, valid = positions.copy(), valid.copy()
    if max_missing < 1 or valid.all():
        return positions, valid
    steps = np.arange(valid.shape[1])
    # Nearest known step at or before, and at or after, each step; -1 or K where there is none.
    before = np.maximum.accumulate(np.where(valid, steps, -1), axis=1)
    after = np.where(valid, steps, len(steps))[:, ::-1]
    after = np.minimum.accumulate(after, axis=1)[:, ::-1]
    bridged = ~valid & (before >= 0) & (after < len(steps)) & (after - before - 1 <= max_missing)
    row, step = np.nonzero(bridged)
    left, right = before[row, step], after[row, step]
    weight = ((step - left) / (right - left))[:, None]
    positions[row, step] = (1 - weight) * positions[row, left] + weight * positions[row, right]
    valid[row, step] = True
    return positions, valid


def hold_last(
    positions: NDArray[np.float64], valid: NDArray[np.bool_], recorded: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Repeat the last known position over the recorded steps after it.

    Args:
        positions: (M, K, D).
        valid: (M, K) known steps.
        recorded: (K,) steps inside the recording; beyond it nothing is known to have stopped.

    Returns:
        Copies of both; steps with no known one before them are left as they are.
    """
    positions, valid = positions.copy(), valid.copy()
    steps = np.arange(valid.shape[1])
    before = np.maximum.accumulate(np.where(valid, steps, -1), axis=1)
    row, step = np.nonzero(~valid & (before >= 0) & recorded)
    positions[row, step] = positions[row, before[row, step]]
    valid[row, step] = True
    return positions, valid


def fill_track(
    track: NDArray[np.float64],
    valid: NDArray[np.bool_],
    rule: str,
    *,
    step_frames: int,
    recorded: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Apply ``future_fill``: close short gaps; or close every gap and hold the last position.

    ``interpolate`` closes runs of at most 0.5 s of missing steps that have a known step on both
    sides. ``interpolate_and_hold`` closes runs of any length and repeats the last known position to
    the end of the window, yet not beyond the end of the recording, where nobody was looking. The
    time before an object was first seen stays unknown in both.

    Args:
        track: (M, K, D) equally spaced in time.
        valid: (M, K) known steps.
        rule: ``none``, ``interpolate`` or ``interpolate_and_hold``.
        step_frames: 10 Hz frames between two steps.
        recorded: (K,) steps inside the recording.
    """
    if rule == "none":
        return track, valid
    if rule == "interpolate":
        return fill_gaps(track, valid, GAP_FRAMES // step_frames)
    track, valid = fill_gaps(track, valid, track.shape[1])
    return hold_last(track, valid, recorded)
