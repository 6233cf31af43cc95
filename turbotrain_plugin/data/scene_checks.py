"""What can be wrong with one scene on disk; each check yields findings and changes nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.folders import cloud_stems
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.geometry.boxes import contains_origin, transform_boxes
from turbotrain_plugin.geometry.poses import invert_rigid, is_rigid, transform_points
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["Finding", "SceneCheck", "check_scene", "ground_gap_m"]

_MAX_LENGTH_M: Final = 30.0
_MIN_SIZE_M: Final = 0.1
_GROUND_CELL_M: Final = 1.0
_GROUND_RADIUS_M: Final = 40.0
"""Ground of two agents is compared this near to both sensors."""
_GROUND_MATCH_M: Final = 3.0
_GROUND_GAP_M: Final = 0.5
"""Median height difference above which two agents do not agree on the ground."""
_LISTED: Final = 20
"""Damaged files of one agent that are listed one by one."""

Frames = Mapping[tuple[int, int], AgentFrame]
"""(agent, frame) to labels."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation.

    Attributes:
        severity: ``error`` (training on it is wrong or impossible) or ``warning`` (survived).
        scene: Scene name.
        agent: Agent id, or None when the scene as a whole is meant.
        frame: First frame concerned, or None.
        message: One sentence.
    """

    severity: str
    scene: str
    agent: int | None
    frame: int | None
    message: str


@dataclass(slots=True)
class SceneCheck:
    """Findings and numbers of one scene.

    Attributes:
        findings: In the order of the checks.
        label_step: Usual distance of label frames, in 10 Hz frames.
        cloud_step: The same of clouds.
        label_files: Label files read.
        clouds_read: Clouds read whole (a sample of all).
        points: Points in them.
        points_outside_z: Those outside the z range.
        ground_gaps_m: Height difference of the ground between two agents, per pair and frame.
    """

    findings: list[Finding] = field(default_factory=list)
    label_step: int = 1
    cloud_step: int = 1
    label_files: int = 0
    clouds_read: int = 0
    points: int = 0
    points_outside_z: int = 0
    ground_gaps_m: list[float] = field(default_factory=list)


def check_scene(
    scene: SceneIndex,
    reader: type[SequenceReader],
    *,
    cloud_stride: int,
    z_range_m: tuple[float, float],
) -> SceneCheck:
    """Check files, times, poses, boxes, identities and ground of a scene.

    Args:
        scene: From the reader's ``index``.
        reader: Of the scene's layout.
        cloud_stride: Read every n-th cloud whole; of the others only the size is checked.
        z_range_m: Heights in the LiDAR frame that the model will look at.
    """
    check = SceneCheck()
    note = _Notes(scene.name, check.findings)
    _check_index(scene, reader, check, note)
    frames = _read_labels(scene, reader, check, note)
    _check_boxes(frames, note)
    _check_identities(frames, note)
    _check_clouds(scene, reader, frames, check, cloud_stride, z_range_m)
    gap = float(np.median(check.ground_gaps_m)) if check.ground_gaps_m else 0.0
    if gap > _GROUND_GAP_M:
        note.warning(
            None,
            None,
            f"the ground of two agents differs by {gap:.2f} m in height (median); poses or the "
            "sign of roll and pitch may be wrong",
        )
    return check


class _Notes:
    """Where checks write."""

    def __init__(self, scene: str, findings: list[Finding]) -> None:
        self._scene = scene
        self._findings = findings

    def error(self, agent: int | None, frame: int | None, message: str) -> None:
        self._findings.append(Finding("error", self._scene, agent, frame, message))

    def warning(self, agent: int | None, frame: int | None, message: str) -> None:
        self._findings.append(Finding("warning", self._scene, agent, frame, message))


# -------------------------------------------------------------------------------- files and times


def _check_index(
    scene: SceneIndex, reader: type[SequenceReader], check: SceneCheck, note: _Notes
) -> None:
    cloud = " or ".join(f".{suffix}" for suffix in reader.clouds)
    if not any(frames.cloud_frames for frames in scene.agents.values()):
        note.error(None, None, f"empty scene: no agent has a frame with both .yaml and {cloud}")
    sets = {agent_id: set(frames.cloud_frames) for agent_id, frames in scene.agents.items()}
    check.label_step = _step([frames.label_frames for frames in scene.agents.values()])
    check.cloud_step = _step([frames.cloud_frames for frames in scene.agents.values()])
    for agent_id, frames in scene.agents.items():
        labels = set(frames.label_frames)
        clouds = cloud_stems(scene, agent_id, reader.clouds)
        # A root may keep clouds at fewer frames than labels: only those of its rhythm are missed.
        expected = _rhythm(labels, min(clouds & labels, default=0), check.cloud_step) & labels
        unseen = (expected if clouds & labels else labels) - clouds
        _missing(unseen, f"label files without {cloud} (used for futures only)", agent_id, note)
        _missing(clouds - labels, f"{cloud} files without .yaml (left out)", agent_id, note)
        gaps = _rhythm(labels, min(labels, default=0), check.label_step) - labels
        _missing(gaps, "frames missing inside the recording (time gaps)", agent_id, note)
    if len(sets) > 1:
        union, common = set.union(*sets.values()), set.intersection(*sets.values())
        _missing(union - common, "frames that not all agents have", None, note)


def _step(agents: Sequence[Sequence[int]]) -> int:
    """Return the usual distance of two frames: 1 at 10 Hz, 5 where every fifth was kept."""
    steps = Counter(b - a for frames in agents for a, b in pairwise(frames))
    return steps.most_common(1)[0][0] if steps else 1


def _rhythm(frames: set[int], start: int, step: int) -> set[int]:
    """Return every ``step``-th frame through ``start``, within the span of ``frames``."""
    if not frames:
        return set()
    first = min(frames) + (start - min(frames)) % step
    return set(range(first, max(frames) + 1, step))


def _missing(frames: set[int], what: str, agent: int | None, note: _Notes) -> None:
    if frames:
        note.warning(agent, min(frames), f"{len(frames)} {what}")


def _read_labels(
    scene: SceneIndex, reader: type[SequenceReader], check: SceneCheck, note: _Notes
) -> Frames:
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
                    note.error(agent_id, frame, str(error))
        if damaged > _LISTED:
            note.error(agent_id, None, f"{damaged - _LISTED} more label files are damaged")
    check.label_files = len(frames)
    for (agent_id, frame), labels in frames.items():
        if not is_rigid(labels.world_SE3_lidar):
            note.error(agent_id, frame, "the pose is not finite and rigid")
    return frames


# ---------------------------------------------------------------------------- boxes and identities


def _check_boxes(frames: Frames, note: _Notes) -> None:
    odd: dict[tuple[int, int], list[int]] = defaultdict(list)
    at_sensor: dict[tuple[int, int], list[int]] = defaultdict(list)
    for (agent_id, frame), labels in frames.items():
        sizes = labels.world_boxes[:, 3:6]
        strange = (sizes.min(axis=1) < _MIN_SIZE_M) | (sizes.max(axis=1) > _MAX_LENGTH_M)
        own = transform_boxes(invert_rigid(labels.world_SE3_lidar), labels.world_boxes)
        for found, where in ((odd, strange), (at_sensor, contains_origin(own))):
            for object_id in labels.object_ids[where].tolist():
                found[agent_id, object_id].append(frame)
    for (agent_id, object_id), where in odd.items():
        note.warning(agent_id, where[0], _object_note(object_id, "has an unusual size", where))
    for (agent_id, object_id), where in at_sensor.items():
        text = _object_note(object_id, "contains the agent's own LiDAR", where)
        note.warning(agent_id, where[0], text)


def _object_note(object_id: int, what: str, where: Sequence[int]) -> str:
    return f"object {object_id} {what} in {len(where)} frames"


def _check_identities(frames: Frames, note: _Notes) -> None:
    """Find objects of car size that stand in each other for half of their shared frames.

    The distance and angle are those that a public audit of V2XPnP scenes merged by (our reading):
    centres nearer than 0.225 (La + Lb) + 0.4 m, yaw within 35 degrees. People are left out, a group
    of them stands closer than that.
    """
    met: dict[tuple[int, int], list[int]] = defaultdict(list)
    seen: dict[int, set[int]] = defaultdict(set)
    for frame in sorted({frame for _, frame in frames}):
        ids, boxes = _union([labels for (_, at), labels in frames.items() if at == frame])
        for object_id in ids.tolist():
            seen[object_id].add(frame)
        for first, second in _standing_in_each_other(boxes):
            low, high = sorted((int(ids[first]), int(ids[second])))
            met[low, high].append(frame)
    for (low, high), where in met.items():
        if 2 * len(where) >= len(seen[low] & seen[high]):
            text = f"objects {low} and {high} are in one place in {len(where)} frames"
            note.warning(None, where[0], f"{text}: one object with two ids?")


def _union(labels: Sequence[AgentFrame]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ids, first = np.unique(np.concatenate([one.object_ids for one in labels]), return_index=True)
    return ids, np.concatenate([one.world_boxes for one in labels])[first]


def _standing_in_each_other(boxes: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    large = np.flatnonzero(boxes[:, 3] >= 1.5)
    if len(large) < 2:
        return
    length = boxes[:, 3]
    reach = 0.45 * float(length.max()) + 0.4
    for a, b in cKDTree(boxes[large, :2]).query_pairs(reach):
        first, second = int(large[a]), int(large[b])
        distance = float(np.hypot(*(boxes[first, :2] - boxes[second, :2])))
        turn = abs((boxes[first, 6] - boxes[second, 6] + np.pi) % (2 * np.pi) - np.pi)
        if distance < 0.225 * (length[first] + length[second]) + 0.4 and turn < np.deg2rad(35):
            yield first, second


# ------------------------------------------------------------------------------ clouds and ground


def _check_clouds(
    scene: SceneIndex,
    reader: type[SequenceReader],
    frames: Frames,
    check: SceneCheck,
    cloud_stride: int,
    z_range_m: tuple[float, float],
) -> None:
    note = _Notes(scene.name, check.findings)
    stems = sorted({f for agent in scene.agents.values() for f in agent.cloud_frames})
    sampled = set(stems[::cloud_stride])
    for frame in stems:
        world: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        for agent_id, available in scene.agents.items():
            if not available.has_cloud(frame):
                continue
            path = reader.cloud_file(scene, agent_id, frame)
            size = path.stat().st_size
            if not size or (size % 16 and path.suffix == ".bin"):
                note.error(agent_id, frame, f"{path.name} is empty or truncated: {size} bytes")
                continue
            if frame not in sampled:
                continue
            try:
                points = reader.read_cloud_file(path)
            except UserError as error:
                note.error(agent_id, frame, str(error))
                continue
            low, high = z_range_m
            check.clouds_read += 1
            check.points += len(points)
            check.points_outside_z += int(((points[:, 2] < low) | (points[:, 2] > high)).sum())
            if (agent_id, frame) in frames:
                pose = frames[agent_id, frame].world_SE3_lidar
                world.append((transform_points(pose, points[:, :3].astype(float)), pose[:2, 3]))
        for (a, at_a), (b, at_b) in combinations(world, 2):
            gap = ground_gap_m(_near(a, at_a, at_b), _near(b, at_a, at_b))
            if gap is not None:
                check.ground_gaps_m.append(gap)


def ground_gap_m(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """Return by how much two clouds disagree on the height of the ground.

    Takes the lowest point of every metre of each cloud, meets each of ``a`` with the nearest of
    ``b`` within 3 m, and returns the median height difference: what stands on the ground, and the
    few points below it, do not move a median.

    Args:
        a: (P, 3) world points.
        b: (Q, 3) world points.

    Returns:
        Metres; None when fewer than 20 places are shared.
    """
    low_a, low_b = _lowest(a), _lowest(b)
    if not len(low_a) or not len(low_b):
        return None
    found = cKDTree(low_b[:, :2]).query(low_a[:, :2], distance_upper_bound=_GROUND_MATCH_M)
    distance, row = np.asarray(found[0]), np.asarray(found[1])
    shared = np.isfinite(distance)
    if shared.sum() < 20:
        return None
    return float(np.median(np.abs(low_a[shared, 2] - low_b[row[shared], 2])))


def _near(
    points: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the points within the ground radius of both sensors."""
    near_first = np.linalg.norm(points[:, :2] - first, axis=1) < _GROUND_RADIUS_M
    near_second = np.linalg.norm(points[:, :2] - second, axis=1) < _GROUND_RADIUS_M
    near: NDArray[np.float64] = points[near_first & near_second]
    return near


def _lowest(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lowest point of every occupied square of ``_GROUND_CELL_M``."""
    cell = np.floor(points[:, :2] / _GROUND_CELL_M).astype(np.int64)
    order = np.lexsort((points[:, 2], cell[:, 1], cell[:, 0]))
    cell = cell[order]
    first = np.ones(len(cell), dtype=np.bool_)
    first[1:] = (cell[1:] != cell[:-1]).any(axis=1)
    lowest: NDArray[np.float64] = points[order][first]
    return lowest
