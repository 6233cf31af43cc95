"""One window of a scene as a ``Sample``: agents, clouds, labels with past and future, map.

Everything is moved into the ego LiDAR frame of the current time with float64 arithmetic before any
voxel is made (OpenCOOD's ``proj_first``), so alignment in time and space is one matrix per cloud.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.disturb import Effect
from turbotrain_plugin.data.formats.base import ScenarioReader, SceneIndex
from turbotrain_plugin.data.tracks import (
    Labels,
    centres_of,
    fill_track,
    has_objects,
    union_labels,
)
from turbotrain_plugin.data.vector_map import WorldSegments, segments, segments_in_ego
from turbotrain_plugin.data.voxelize import inside_range
from turbotrain_plugin.data.windows import (
    ClipOptions,
    agent_type,
    choose_ego,
    last_label,
    members,
)
from turbotrain_plugin.geometry.boxes import contains_origin, count_points, transform_boxes
from turbotrain_plugin.geometry.poses import invert_rigid, transform_points
from turbotrain_plugin.structures import AgentFrame, GroundTruth, MapSegments, Sample

__all__ = ["ClipBuilder", "build_sample", "select_objects"]

SELF_HIT_X_M: Final = (-1.95, 2.95)
SELF_HIT_Y_M: Final = (-1.1, 1.1)
"""Box around a vehicle's LiDAR, in its own frame, whose points hit the vehicle itself."""

_ROUNDING_M: Final = 1e-6
"""Poses are written with six decimals; a distance of exactly ``comm_range`` must survive that."""

_NO_POINTS: Final = np.zeros((0, 4), np.float32)


_UNDISTURBED: Final = Effect()


@dataclass(frozen=True, slots=True)
class _Kept:
    """An agent of the window: labels and pose now, matrix to the ego and cloud in its frame."""

    now: AgentFrame
    ego_SE3_agent: NDArray[np.float64]
    cloud: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _History:
    """What an agent sends: matrices (T, 4, 4), clouds and validity (T,), and how late it is."""

    agent_id: int
    ego_SE3_agent: NDArray[np.float64]
    clouds: list[NDArray[np.float32]]
    valid: NDArray[np.bool_]
    delay_s: float


def build_sample(
    reader: ScenarioReader,
    scene: SceneIndex,
    frame: int,
    options: ClipOptions,
    rng: np.random.Generator | None = None,
) -> Sample:
    """Return the window of ``scene`` at ``frame``; see ``ClipBuilder.build``."""
    return ClipBuilder(reader, options).build(scene, frame, rng)


class ClipBuilder:
    """Builds samples of one root; keeps maps cut into segments.

    Args:
        reader: Where frames, clouds and maps come from.
        options: What a sample contains.
    """

    def __init__(self, reader: ScenarioReader, options: ClipOptions) -> None:
        self._reader = reader
        self._options = options
        self._segments: dict[Path, WorldSegments | None] = {}
        self._labelled: dict[Path, bool] = {}

    def build(
        self, scene: SceneIndex, frame: int, rng: np.random.Generator | None = None
    ) -> Sample:
        """Return the window of ``scene`` whose current position is ``frame``.

        The labels are the whole union over the kept agents with ``point_counts`` zero:
        ``select_objects`` applies range and point limits, after the augmentation if there is one,
        because a turn brings objects into the range that were outside.

        Args:
            scene: One of the reader's scenes.
            frame: Current position on its 10 Hz grid.
            rng: Source of the ego draw, seeded alike for all windows of a scene that shall share
                their ego; None takes the fixed ego (``choose_ego``).

        Returns:
            The sample, neither augmented nor clipped to the point range.
        """
        team, ego_SE3_world = self._team(scene, frame, rng)
        histories = [self._history(scene, kept, ego_SE3_world) for kept in team]
        truth = self._truth(scene, [kept.now for kept in team], ego_SE3_world)
        return _sample(scene, team[0].now, histories, truth, self._map(scene, ego_SE3_world))

    def build_disturbed(
        self,
        scene: SceneIndex,
        frame: int,
        rng: np.random.Generator | None,
        effect_of: Callable[[int], Effect],
    ) -> tuple[Sample, Sample]:
        """Return a window whose neighbours' messages are disturbed, and where its labels are.

        The kept agents are those of the undisturbed window, as upstream. A late neighbour's newest
        frame is its newest cloud that has arrived; if that is a whole step older than the latency
        explains, or there is none, the neighbour is not heard.

        Args:
            scene: One of the reader's scenes.
            frame: Current position on its 10 Hz grid.
            rng: As in ``build``.
            effect_of: What befalls a neighbour, by its id; the ego is never asked for.

        Returns:
            The sample as the ego receives it, without labels; and the undisturbed agents and
            clouds of now (T = 1, no map) with the labels, which are selected by what was there.
        """
        team, ego_SE3_world = self._team(scene, frame, rng)
        heard = [self._history(scene, team[0], ego_SE3_world)]
        for kept in team[1:]:
            agent_id = kept.now.agent_id
            effect = effect_of(agent_id)
            newest = scene.agents[agent_id].newest_cloud(frame - effect.delay_frames)
            oldest = frame - effect.delay_frames - self._options.step_frames + 1
            if newest is not None and newest >= oldest and not effect.lost:
                arrived = replace(effect, delay_frames=frame - newest)
                heard.append(self._history(scene, kept, ego_SE3_world, arrived))
        truth = self._truth(scene, [kept.now for kept in team], ego_SE3_world)
        present = [
            _History(k.now.agent_id, k.ego_SE3_agent[None], [k.cloud], np.ones(1, np.bool_), 0.0)
            for k in team
        ]
        received = _sample(scene, team[0].now, heard, None, self._map(scene, ego_SE3_world))
        return received, _sample(scene, team[0].now, present, truth, None)

    def _team(
        self, scene: SceneIndex, frame: int, rng: np.random.Generator | None
    ) -> tuple[list[_Kept], NDArray[np.float64]]:
        """Return the ego, then the nearest agents that see anything in range; and ego_SE3_world."""
        options = self._options
        ego_id = choose_ego(scene, frame, options.mode, rng)
        ego = self._reader.read_frame(scene, ego_id, frame)
        ego_SE3_world = invert_rigid(ego.world_SE3_lidar)
        others = [
            self._reader.read_frame(scene, agent_id, frame)
            for agent_id in members(scene, options.mode)
            if agent_id != ego_id and scene.agents[agent_id].has_cloud(frame)
        ]
        team = [_Kept(ego, *self._cloud(scene, ego, ego_SE3_world))]
        for other in _within(ego, others, options.comm_range_m):
            if len(team) == options.max_agents:
                break
            kept = _Kept(other, *self._cloud(scene, other, ego_SE3_world))
            if inside_range(kept.cloud, options.range_m).any():
                team.append(kept)
        return team, ego_SE3_world

    def _history(
        self,
        scene: SceneIndex,
        kept: _Kept,
        ego_SE3_world: NDArray[np.float64],
        effect: Effect = _UNDISTURBED,
    ) -> _History:
        """Return the frames of one agent, newest last; its newest one must have a cloud."""
        agent_id, newest = kept.now.agent_id, kept.now.frame - effect.delay_frames
        matrix, cloud = kept.ego_SE3_agent, kept.cloud
        if effect != _UNDISTURBED:
            frame = self._reader.read_frame(scene, agent_id, newest)
            matrix, cloud = self._cloud(scene, frame, ego_SE3_world, effect)
        matrices, clouds, valid = [matrix], [cloud], [True]
        offsets = self._options.history_offsets()
        for offset in reversed(offsets[:-1]):  # newest first, so that "repeat" has what to repeat
            present = scene.agents[agent_id].has_cloud(newest + offset)
            if present:
                past = self._reader.read_frame(scene, agent_id, newest + offset)
                matrix, cloud = self._cloud(scene, past, ego_SE3_world, effect)
            elif self._options.pad == "empty":
                matrix, cloud = np.eye(4), _NO_POINTS
            matrices.append(matrix)
            clouds.append(cloud)
            valid.append(present or self._options.pad == "repeat")
        return _History(
            agent_id, np.stack(matrices[::-1]), clouds[::-1], np.array(valid[::-1]), effect.delay_s
        )

    def _cloud(
        self,
        scene: SceneIndex,
        frame: AgentFrame,
        ego_SE3_world: NDArray[np.float64],
        effect: Effect = _UNDISTURBED,
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the matrix agent to ego and the agent's points in the ego frame."""
        pose = frame.world_SE3_lidar
        matrix = ego_SE3_world @ (pose if effect == _UNDISTURBED else effect.pose(pose))
        points = self._reader.read_points(scene, frame.agent_id, frame.frame)
        if not frame.is_infrastructure:
            hits = _self_hits(points)
            points = points[~hits] if hits.any() else points
        moved = np.empty((len(points), 4), np.float32)
        moved[:, :3] = points[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]  # float64, then rounded
        moved[:, 3] = 0 if self._options.zero_intensity else points[:, 3]
        return matrix, moved

    def _truth(
        self, scene: SceneIndex, team: Sequence[AgentFrame], ego_SE3_world: NDArray[np.float64]
    ) -> GroundTruth | None:
        if not self._options.with_labels or not self._is_labelled(scene):
            return None
        labels = _of_classes(union_labels(team), self._options.classes)
        boxes = transform_boxes(ego_SE3_world, labels.world_boxes)
        # The ego's own box, which other agents label, is not for the ego to detect.
        others = ~contains_origin(boxes)
        ids, boxes = labels.object_ids[others], boxes[others]
        track, valid = self._tracks(scene, team, ids, ego_SE3_world)
        hist = self._options.hist_frames
        return GroundTruth(
            boxes=boxes.astype(np.float32),
            object_ids=ids,
            futures=track[:, hist:].astype(np.float32),
            future_valid=valid[:, hist:],
            past=track[:, :hist].astype(np.float32),
            past_valid=valid[:, :hist],
            point_counts=np.zeros(len(ids), np.int64),
        )

    def _is_labelled(self, scene: SceneIndex) -> bool:
        if scene.folder not in self._labelled:
            self._labelled[scene.folder] = has_objects(self._reader, scene)
        return self._labelled[scene.folder]

    def _tracks(
        self,
        scene: SceneIndex,
        team: Sequence[AgentFrame],
        ids: NDArray[np.int64],
        ego_SE3_world: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return (M, T + F, 2) centres in the ego frame and (M, T + F) whether they are known.

        At every other time an id is looked up in the labels of *all* agents of the scene, kept or
        not, so an object that leaves one sensor's view still has a target.
        """
        options = self._options
        now = team[0].frame
        kept = [frame.agent_id for frame in team]
        order = kept + sorted(set(scene.agents) - set(kept))
        offsets = (*options.history_offsets(), *options.future_offsets())
        track = np.zeros((len(ids), len(offsets), 2))
        valid = np.zeros((len(ids), len(offsets)), dtype=bool)
        for step, offset in enumerate(offsets):
            at = team if offset == 0 else self._labels(scene, order, now + offset)
            centres, valid[:, step] = centres_of(ids, at)
            track[:, step] = transform_points(ego_SE3_world, centres)[:, :2]
        track[~valid] = 0.0
        return fill_track(
            track,
            valid,
            options.future_fill,
            step_frames=options.step_frames,
            recorded=_recorded(scene, now, offsets),
        )

    def _labels(self, scene: SceneIndex, order: Sequence[int], frame: int) -> list[AgentFrame]:
        return [
            self._reader.read_frame(scene, agent_id, frame)
            for agent_id in order
            if scene.agents[agent_id].has_labels(frame)
        ]

    def _map(self, scene: SceneIndex, ego_SE3_world: NDArray[np.float64]) -> MapSegments | None:
        if not self._options.with_map:
            return None
        if scene.folder not in self._segments:
            read = self._reader.read_map(scene)
            self._segments[scene.folder] = None if read is None else segments(read)
        world = self._segments[scene.folder]
        return None if world is None else segments_in_ego(world, ego_SE3_world)


def select_objects(sample: Sample, options: ClipOptions) -> Sample:
    """Return the sample with the objects whose centre lies in the range and that were hit enough.

    ``point_counts`` become the current points of all kept agents inside each box; objects with
    fewer than ``options.min_points`` are dropped.
    """
    truth = sample.truth
    if truth is None:
        return sample
    truth = _rows(truth, inside_range(truth.boxes, options.range_m))
    cloud = np.concatenate([clouds[-1] for clouds in sample.points])
    counts = np.asarray(count_points(cloud, truth.boxes), dtype=np.int64)
    truth = replace(truth, point_counts=counts)
    return replace(sample, truth=_rows(truth, counts >= options.min_points))


def _sample(
    scene: SceneIndex,
    ego: AgentFrame,
    histories: Sequence[_History],
    truth: GroundTruth | None,
    segments_of_map: MapSegments | None,
) -> Sample:
    ids = tuple(history.agent_id for history in histories)
    matrices = np.stack([history.ego_SE3_agent for history in histories])
    return Sample(
        scene=scene.name,
        frame=ego.frame,
        agent_ids=ids,
        agent_types=np.array([agent_type(agent_id) for agent_id in ids], np.int64),
        frame_valid=np.stack([history.valid for history in histories]),
        ego_SE3_agent=matrices.astype(np.float32),
        time_offset_s=np.array([history.delay_s for history in histories], np.float32),
        world_SE3_ego=ego.world_SE3_lidar,
        points=[history.clouds for history in histories],
        truth=truth,
        map=segments_of_map,
    )


def _within(ego: AgentFrame, others: list[AgentFrame], limit_m: float) -> list[AgentFrame]:
    """Return the agents within the planar LiDAR distance, nearest first."""
    here = ego.world_SE3_lidar[:2, 3]
    distances = [float(np.linalg.norm(other.world_SE3_lidar[:2, 3] - here)) for other in others]
    order = sorted(range(len(others)), key=lambda i: distances[i])
    return [others[i] for i in order if distances[i] <= limit_m + _ROUNDING_M]


def _self_hits(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    x, y = points[:, 0], points[:, 1]
    inside_x = (x >= SELF_HIT_X_M[0]) & (x <= SELF_HIT_X_M[1])
    return inside_x & (y >= SELF_HIT_Y_M[0]) & (y <= SELF_HIT_Y_M[1])


def _of_classes(labels: Labels, classes: Sequence[str]) -> Labels:
    wanted = [i for i, name in enumerate(labels.raw_types) if name in classes]
    return Labels(
        labels.object_ids[wanted],
        labels.world_boxes[wanted],
        tuple(labels.raw_types[i] for i in wanted),
    )


def _recorded(scene: SceneIndex, now: int, offsets: Sequence[int]) -> NDArray[np.bool_]:
    last = last_label(scene)
    return np.array([now + offset <= last for offset in offsets])


def _rows(truth: GroundTruth, keep: NDArray[np.bool_]) -> GroundTruth:
    return GroundTruth(
        boxes=truth.boxes[keep],
        object_ids=truth.object_ids[keep],
        futures=truth.futures[keep],
        future_valid=truth.future_valid[keep],
        past=truth.past[keep],
        past_valid=truth.past_valid[keep],
        point_counts=truth.point_counts[keep],
    )
