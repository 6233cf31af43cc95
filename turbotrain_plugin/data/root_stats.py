"""What a dataset holds: scenes, agents, frames, objects by class, their speeds and points."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats import ScenarioReader, SceneIndex, open_root
from turbotrain_plugin.geometry.boxes import count_points
from turbotrain_plugin.geometry.poses import transform_points
from turbotrain_plugin.structures import AgentFrame

__all__ = ["ClassStats", "RootStats", "SplitStats", "root_stats"]

_SPEED_FRAMES: Final = 5
"""Speeds are taken over 0.5 s; over 0.1 s they would show the jitter of the labels."""
_PARKED_M: Final = 2.0
"""Net displacement below which an object stood: noisy labels of parked cars walk about."""


@dataclass(frozen=True, slots=True)
class ClassStats:
    """Objects of one class as written in the files.

    Attributes:
        name: ``obj_type``.
        objects: Different ids, counted per scene.
        boxes: Boxes in all label files (one object seen by two agents counts twice).
        parked: Share of objects whose net displacement stays below 2 m.
        speed_mps: Median and 95 % speed of the others over 0.5 s; NaN-free, 0 without any.
        points_per_box: 10 %, 50 % and 90 % of the points of the labelling agent in a box.
        empty_boxes: Share of boxes without any such point.
    """

    name: str
    objects: int
    boxes: int
    parked: float
    speed_mps: tuple[float, float]
    points_per_box: tuple[float, float, float]
    empty_boxes: float


@dataclass(frozen=True, slots=True)
class SplitStats:
    """Counts of one split; frames are counted once per agent."""

    split: str
    scenes: int
    vehicles: int
    roadside_units: int
    agent_frames: int
    label_only_frames: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RootStats:
    """Splits, and the classes of all splits by falling number of boxes."""

    splits: tuple[SplitStats, ...]
    classes: tuple[ClassStats, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Return the statistics as text."""
        lines = [
            f"{'split':<12}{'scenes':>8}{'vehicles':>10}{'roadside':>10}{'frames':>9}"
            f"{'labels only':>13}{'seconds':>9}"
        ]
        lines += [
            f"{s.split:<12}{s.scenes:>8}{s.vehicles:>10}{s.roadside_units:>10}{s.agent_frames:>9}"
            f"{s.label_only_frames:>13}{s.seconds:>9.1f}"
            for s in self.splits
        ]
        lines += [
            "",
            f"{'class':<16}{'objects':>8}{'boxes':>9}{'parked':>8}{'m/s 50%':>9}{'95%':>6}"
            f"{'points 10%':>12}{'50%':>7}{'90%':>7}{'empty':>7}",
        ]
        for c in self.classes:
            low, middle, high = c.points_per_box
            lines.append(
                f"{c.name:<16}{c.objects:>8}{c.boxes:>9}{c.parked:>8.0%}{c.speed_mps[0]:>9.1f}"
                f"{c.speed_mps[1]:>6.1f}{low:>12.0f}{middle:>7.0f}{high:>7.0f}{c.empty_boxes:>7.0%}"
            )
        return "\n".join(lines)


def root_stats(
    roots: Sequence[Path],
    *,
    progress: Callable[[int, int, str], None] | None = None,
    cloud_stride: int = 10,
    cache_dir: Path | None = None,
) -> RootStats:
    """Count what dataset folders hold.

    Args:
        roots: Roots or split folders, as for ``open_root``.
        progress: Called with scenes done, scenes in all and a scene's name.
        cloud_stride: Points are counted in every n-th cloud.
        cache_dir: Where parsed labels are kept; None: inside each root.

    Raises:
        UserError: When the data cannot be read; ``verify_root`` says more.
    """
    reader = open_root(roots, cache_dir=cache_dir)
    tally = _Tally()
    for done, scene in enumerate(reader.scenes):
        if progress is not None:
            progress(done, len(reader.scenes), scene.name)
        _count_labels(reader, scene, tally)
        _count_clouds(reader, scene, tally, cloud_stride)
    if progress is not None:
        progress(len(reader.scenes), len(reader.scenes), "")
    names = sorted(tally.boxes, key=lambda name: (-tally.boxes[name], name))
    return RootStats(_split_stats(reader.scenes), tuple(tally.summary(name) for name in names))


@dataclass(slots=True)
class _Tally:
    """Running counts by class name."""

    boxes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    objects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    parked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    speeds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    points: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def summary(self, name: str) -> ClassStats:
        """Return the statistics of one class."""
        points = np.array(self.points[name])
        speed = _quantiles(self.speeds[name], (0.5, 0.95))
        low, middle, high = _quantiles(self.points[name], (0.1, 0.5, 0.9))
        return ClassStats(
            name=name,
            objects=self.objects[name],
            boxes=self.boxes[name],
            parked=self.parked[name] / max(self.objects[name], 1),
            speed_mps=(speed[0], speed[1]),
            points_per_box=(low, middle, high),
            empty_boxes=float((points == 0).mean()) if points.size else 0.0,
        )


def _quantiles(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, shares)] if values else [0.0] * len(shares)


def _split_stats(scenes: Sequence[SceneIndex]) -> tuple[SplitStats, ...]:
    by_split: dict[str, list[SceneIndex]] = defaultdict(list)
    for scene in scenes:
        by_split[scene.split].append(scene)
    return tuple(_one_split(split, found) for split, found in by_split.items())


def _one_split(split: str, scenes: Sequence[SceneIndex]) -> SplitStats:
    agents = [(agent_id, frames) for scene in scenes for agent_id, frames in scene.agents.items()]
    clouds = sum(len(frames.cloud_frames) for _, frames in agents)
    return SplitStats(
        split=split,
        scenes=len(scenes),
        vehicles=sum(agent_id >= 0 for agent_id, _ in agents),
        roadside_units=sum(agent_id < 0 for agent_id, _ in agents),
        agent_frames=clouds,
        label_only_frames=sum(len(frames.label_frames) for _, frames in agents) - clouds,
        seconds=sum(_length_s(scene) for scene in scenes),
    )


def _length_s(scene: SceneIndex) -> float:
    """Return the time from the first to the last labelled frame, at 10 Hz."""
    frames = [frame for agent in scene.agents.values() for frame in agent.label_frames]
    return (max(frames) - min(frames)) / 10.0


def _count_labels(reader: ScenarioReader, scene: SceneIndex, tally: _Tally) -> None:
    tracks: dict[int, dict[int, NDArray[np.float64]]] = defaultdict(dict)
    class_of: dict[int, str] = {}
    for agent_id, available in scene.agents.items():
        for frame in available.label_frames:
            labels = reader.read_frame(scene, agent_id, frame)
            rows = zip(
                labels.object_ids.tolist(), labels.raw_types, labels.world_boxes, strict=True
            )
            for object_id, name, box in rows:
                tally.boxes[name] += 1
                class_of.setdefault(object_id, name)
                tracks[object_id].setdefault(frame, box[:2])
    for object_id, track in tracks.items():
        name = class_of[object_id]
        tally.objects[name] += 1
        net = np.linalg.norm(track[max(track)] - track[min(track)])
        if net < _PARKED_M:
            tally.parked[name] += 1
            continue
        steps = [(track[f], track[f + _SPEED_FRAMES]) for f in track if f + _SPEED_FRAMES in track]
        duration_s = _SPEED_FRAMES / 10.0
        tally.speeds[name] += [float(np.linalg.norm(b - a)) / duration_s for a, b in steps]


def _count_clouds(
    reader: ScenarioReader, scene: SceneIndex, tally: _Tally, cloud_stride: int
) -> None:
    for agent_id, available in scene.agents.items():
        for frame in available.cloud_frames[::cloud_stride]:
            labels = reader.read_frame(scene, agent_id, frame)
            counts = _points_per_box(labels, reader.read_points(scene, agent_id, frame))
            for name, count in zip(labels.raw_types, counts, strict=True):
                tally.points[name].append(count)


def _points_per_box(labels: AgentFrame, points: NDArray[np.float32]) -> list[int]:
    # In the world, where boxes stand upright: a tilted sensor's frame would tilt them.
    world = transform_points(labels.world_SE3_lidar, points.astype(np.float64))
    counts: list[int] = count_points(world, labels.world_boxes).tolist()
    return counts
