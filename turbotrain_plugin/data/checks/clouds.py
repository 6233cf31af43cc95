"""Clouds: whole, finite, in range, and where the labels say that objects are.

All clouds are looked at for their size; every n-th is read. One frame of all agents is in memory at
a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.checks.agreement import Agreement, View
from turbotrain_plugin.data.checks.boxes_on_points import BoxesOnPoints
from turbotrain_plugin.data.checks.findings import Notes
from turbotrain_plugin.data.checks.labels import Frames
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["CloudCheck", "check_clouds"]

_POINT_BYTES: Final = 16
_FAR_M: Final = 500.0
_FAR_SHARE: Final = 0.01
_OUTSIDE_SHARE: Final = 0.5
_THIN_SHARE: Final = 0.1
_MOVED_M: Final = 0.3


@dataclass(slots=True)
class CloudCheck:
    """Numbers of a scene's clouds.

    Attributes:
        clouds_read: Clouds read whole.
        points: Points in them.
        points_outside_z: Those outside the z range.
        ground_gaps_m: Height difference of the ground between two agents, per pair and frame.
    """

    clouds_read: int = 0
    points: int = 0
    points_outside_z: int = 0
    ground_gaps_m: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Tally:
    """Points of one agent's clouds that were read."""

    points: int = 0
    outside_z: int = 0
    far: int = 0
    dropped: int = 0
    frozen: list[int] = field(default_factory=list)


def check_clouds(
    scene: SceneIndex,
    reader: type[SequenceReader],
    frames: Frames,
    *,
    stride: int,
    z_range_m: tuple[float, float],
    notes: Notes,
) -> CloudCheck:
    """Check the clouds of a scene against themselves, the labels, and each other.

    Args:
        scene: The scene.
        reader: Of its layout.
        frames: Its labels.
        stride: Every n-th frame with clouds is read.
        z_range_m: Heights in the LiDAR frame that the model will look at.
        notes: Where findings go.
    """
    files = {agent_id: _whole_files(scene, reader, agent_id, notes) for agent_id in scene.agents}
    tallies = {agent_id: _Tally() for agent_id in scene.agents}
    agreement, on_points = Agreement(), BoxesOnPoints()
    check = CloudCheck()
    stems = sorted({frame for found in files.values() for frame in found})
    for frame in stems[::stride]:
        views = []
        for agent_id, path in _at(files, frame):
            points = _read(path, reader, (agent_id, frame), notes)
            if points is None:
                continue
            check.clouds_read += 1
            tally = tallies[agent_id]
            _count(points, path, z_range_m, tally)
            before = max((one for one in files[agent_id] if one < frame), default=frame)
            labels = frames.get((agent_id, frame))
            if labels is not None:
                if _moved(frames.get((agent_id, before)), labels) and _same_bytes(
                    path, files[agent_id][before]
                ):
                    tally.frozen.append(frame)
                views.append(_view(labels, points))
                on_points.add(labels, points)
        agreement.add(views)
    for agent_id, tally in tallies.items():
        check.points += tally.points
        check.points_outside_z += tally.outside_z
        _report(agent_id, tally, z_range_m, notes)
    on_points.report(notes)
    agreement.report(notes)
    check.ground_gaps_m = agreement.ground_gaps_m
    return check


def _whole_files(
    scene: SceneIndex, reader: type[SequenceReader], agent_id: int, notes: Notes
) -> dict[int, Path]:
    """Return the clouds of an agent by frame, without those whose size shows that they are broken.

    A size is not opened for: this is done for every cloud.
    """
    found: dict[int, Path] = {}
    sizes: dict[int, int] = {}
    for frame in scene.agents[agent_id].cloud_frames:
        path = reader.cloud_file(scene, agent_id, frame)
        size = path.stat().st_size
        if not size or (size % _POINT_BYTES and path.suffix == ".bin"):
            kind = "truncated-cloud" if size else "empty-cloud"
            message = f"{path.name} is empty or truncated: {size} bytes"
            notes.add(kind, agent_id, frame, message)
        else:
            found[frame], sizes[frame] = path, size
    usual = float(np.median(list(sizes.values()))) if sizes else 0.0
    thin = [frame for frame, size in sizes.items() if size < _THIN_SHARE * usual]
    if thin:
        message = (
            f"{len(thin)} clouds have less than a tenth of the usual {usual / 1024:.0f} KiB, the "
            f"first {sizes[thin[0]]} bytes"
        )
        notes.add("thin-cloud", agent_id, thin[0], message)
    return found


def _at(files: Mapping[int, Mapping[int, Path]], frame: int) -> Iterator[tuple[int, Path]]:
    for agent_id, found in files.items():
        if frame in found:
            yield agent_id, found[frame]


def _read(
    path: Path, reader: type[SequenceReader], where: tuple[int, int], notes: Notes
) -> NDArray[np.float32] | None:
    try:
        points = reader.read_cloud_file(path)
    except UserError as error:
        notes.add("bad-cloud", *where, str(error))
        return None
    if not len(points):
        notes.add("empty-cloud", *where, f"{path.name} holds no point with a finite position")
        return None
    return points


def _count(
    points: NDArray[np.float32], path: Path, z_range_m: tuple[float, float], tally: _Tally
) -> None:
    low, high = z_range_m
    tally.points += len(points)
    tally.outside_z += int(((points[:, 2] < low) | (points[:, 2] > high)).sum())
    tally.far += int((np.linalg.norm(points[:, :3], axis=1) > _FAR_M).sum())
    if path.suffix == ".bin":
        tally.dropped += path.stat().st_size // _POINT_BYTES - len(points)


def _moved(before: AgentFrame | None, now: AgentFrame) -> bool:
    """Return whether the agent or an object it labels is elsewhere than before."""
    if before is None:
        return False
    if np.abs(now.world_SE3_lidar - before.world_SE3_lidar).max() > _MOVED_M:
        return True
    _, old, new = np.intersect1d(before.object_ids, now.object_ids, return_indices=True)
    way = np.linalg.norm(now.world_boxes[new, :2] - before.world_boxes[old, :2], axis=1)
    return bool(way.max(initial=0.0) > _MOVED_M)


def _same_bytes(path: Path, other: Path) -> bool:
    """Return whether two clouds are one; they are opened only where their sizes agree."""
    if path.stat().st_size != other.stat().st_size:
        return False
    return path.read_bytes() == other.read_bytes()


def _view(labels: AgentFrame, points: NDArray[np.float32]) -> View:
    return View(
        labels.agent_id,
        labels.world_SE3_lidar,
        points[:, :3].astype(np.float64),
        labels.world_boxes,
    )


def _report(agent_id: int, tally: _Tally, z_range_m: tuple[float, float], notes: Notes) -> None:
    points = max(tally.points, 1)
    if tally.dropped:
        share = tally.dropped / (tally.dropped + points)
        message = f"{share:.1%} of the points have no finite position and are dropped"
        notes.add("nan-points", agent_id, None, message)
    if tally.far / points > _FAR_SHARE:
        message = f"{tally.far / points:.0%} of the points are farther than {_FAR_M:g} m: metres?"
        notes.add("far-points", agent_id, None, message)
    if tally.outside_z / points > _OUTSIDE_SHARE:
        low, high = z_range_m
        message = (
            f"{tally.outside_z / points:.0%} of the points lie outside z in [{low:g}, {high:g}] m"
        )
        notes.add("points-outside-z", agent_id, None, message)
    if tally.frozen:
        message = f"{len(tally.frozen)} of the clouds read are copies while labels move"
        notes.add("frozen-cloud", agent_id, tally.frozen[0], message)
