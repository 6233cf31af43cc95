"""What a dataset holds: scenes, agents, frames, objects by class, their speeds, ranges and points.

Memory does not grow with clouds: one is read at a time, and a few bytes are kept per box.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats import ScenarioReader, SceneIndex, open_root
from turbotrain_plugin.geometry.boxes import count_points
from turbotrain_plugin.geometry.poses import transform_points
from turbotrain_plugin.structures import AgentFrame

__all__ = ["ClassStats", "RangeStats", "RootStats", "Samples", "SplitStats", "root_stats"]

F32 = NDArray[np.float32]

_SPEED_FRAMES: Final = 5
"""Speeds are taken over 0.5 s; over 0.1 s they would show the jitter of the labels."""
_RANGES_M: Final = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 70.0, 100.0, 1e6)
"""Bounds of the distances between sensor and box; the last stands for any farther."""
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
        range_m: Median and 95 % of the distance to the sensor of the labelling agent.
    """

    name: str
    objects: int
    boxes: int
    parked: float
    speed_mps: tuple[float, float]
    points_per_box: tuple[float, float, float]
    empty_boxes: float
    range_m: tuple[float, float]


@dataclass(frozen=True, slots=True)
class RangeStats:
    """Points of boxes between two distances from the sensor.

    Attributes:
        low_m: From here on.
        high_m: Below this.
        boxes: Boxes whose points were counted.
        points_per_box: 10 %, 50 % and 90 %.
        empty_boxes: Share of boxes without points.
    """

    low_m: float
    high_m: float
    boxes: int
    points_per_box: tuple[float, float, float]
    empty_boxes: float


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Single values behind the statistics, for plots. Kinds are ``vehicle`` and ``roadside unit``.

    Attributes:
        speed_mps: Class to the speeds of its moving objects.
        size_m: Class to (N, 2) length and width of its objects.
        range_m: Kind of the labelling agent to the distance of its boxes.
        points: Kind to (N, 2) distance of a box and points in it.
        agent_distance_m: Planar distance of two agents, per pair and frame.
    """

    speed_mps: dict[str, F32]
    size_m: dict[str, F32]
    range_m: dict[str, F32]
    points: dict[str, F32]
    agent_distance_m: F32


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
    """Splits, the classes of all splits by falling number of boxes, and points by distance."""

    splits: tuple[SplitStats, ...]
    classes: tuple[ClassStats, ...]
    ranges: tuple[RangeStats, ...]
    samples: Samples

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file; single values are left out."""
        return {
            name: [dataclasses.asdict(one) for one in getattr(self, name)]
            for name in ("splits", "classes", "ranges")
        }

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
            f"{'points 10%':>12}{'50%':>7}{'90%':>7}{'empty':>7}{'range 50%':>11}{'95%':>7}",
        ]
        for c in self.classes:
            low, middle, high = c.points_per_box
            lines.append(
                f"{c.name:<16}{c.objects:>8}{c.boxes:>9}{c.parked:>8.0%}{c.speed_mps[0]:>9.1f}"
                f"{c.speed_mps[1]:>6.1f}{low:>12.0f}{middle:>7.0f}{high:>7.0f}{c.empty_boxes:>7.0%}"
                f"{c.range_m[0]:>11.1f}{c.range_m[1]:>7.1f}"
            )
        lines += [
            "",
            f"{'distance':<16}{'boxes':>8}{'points 10%':>12}{'50%':>7}{'90%':>7}{'empty':>7}",
        ]
        for r in self.ranges:
            low, middle, high = r.points_per_box
            to = f"- {r.high_m:g} m" if r.high_m < _RANGES_M[-1] else "m and more"
            lines.append(
                f"{f'{r.low_m:g} {to}':<16}{r.boxes:>8}{low:>12.0f}{middle:>7.0f}{high:>7.0f}"
                f"{r.empty_boxes:>7.0%}"
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
    return RootStats(
        _split_stats(reader.scenes),
        tuple(tally.summary(name) for name in names),
        tuple(tally.range_stats()),
        tally.samples(names),
    )


def _floats() -> array[float]:
    return array("f")


@dataclass(slots=True)
class _Tally:
    """Running counts by class name, and by kind of the labelling agent."""

    boxes: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    objects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    parked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    speeds: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    sizes: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    class_ranges: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    kind_ranges: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    points: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    kind_points: dict[str, array[float]] = field(default_factory=lambda: defaultdict(_floats))
    distances: array[float] = field(default_factory=_floats)

    def summary(self, name: str) -> ClassStats:
        """Return the statistics of one class."""
        points = _numbers(self.points[name])
        speed = _quantiles(_numbers(self.speeds[name]), (0.5, 0.95))
        range_m = _quantiles(_numbers(self.class_ranges[name]), (0.5, 0.95))
        low, middle, high = _quantiles(points, (0.1, 0.5, 0.9))
        return ClassStats(
            name=name,
            objects=self.objects[name],
            boxes=self.boxes[name],
            parked=self.parked[name] / max(self.objects[name], 1),
            speed_mps=(speed[0], speed[1]),
            points_per_box=(low, middle, high),
            empty_boxes=float((points == 0).mean()) if points.size else 0.0,
            range_m=(range_m[0], range_m[1]),
        )

    def range_stats(self) -> Iterator[RangeStats]:
        """Yield points per box by distance, up to the farthest box."""
        pairs = np.concatenate(
            [np.zeros((0, 2), np.float32), *(_pairs(found) for found in self.kind_points.values())]
        )
        for low_m, high_m in pairwise(_RANGES_M):
            points = pairs[(pairs[:, 0] >= low_m) & (pairs[:, 0] < high_m), 1]
            if len(pairs) and pairs[:, 0].max() >= low_m:
                low, middle, high = _quantiles(points, (0.1, 0.5, 0.9))
                empty = float((points == 0).mean()) if len(points) else 0.0
                yield RangeStats(low_m, high_m, len(points), (low, middle, high), empty)

    def samples(self, names: Sequence[str]) -> Samples:
        """Return the single values, classes in the order given."""
        return Samples(
            speed_mps={name: _numbers(self.speeds[name]) for name in names},
            size_m={name: _pairs(self.sizes[name]) for name in names},
            range_m={kind: _numbers(found) for kind, found in self.kind_ranges.items()},
            points={kind: _pairs(found) for kind, found in self.kind_points.items()},
            agent_distance_m=_numbers(self.distances),
        )


def _numbers(values: array[float]) -> F32:
    return np.array(values, dtype=np.float32)


def _pairs(values: array[float]) -> F32:
    return _numbers(values).reshape(-1, 2)


def _kind(agent_id: int) -> str:
    return "roadside unit" if agent_id < 0 else "vehicle"


def _quantiles(values: F32, shares: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(values, shares)] if len(values) else [0.0] * len(shares)


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
    origins: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    for agent_id, available in scene.agents.items():
        for frame in available.label_frames:
            labels = reader.read_frame(scene, agent_id, frame)
            origins[frame].append(labels.world_SE3_lidar[:2, 3])
            ranges = _ranges_m(labels).tolist()
            tally.kind_ranges[_kind(agent_id)].extend(ranges)
            rows = zip(
                labels.object_ids.tolist(),
                labels.raw_types,
                labels.world_boxes,
                ranges,
                strict=True,
            )
            for object_id, name, box, range_m in rows:
                tally.boxes[name] += 1
                tally.class_ranges[name].append(range_m)
                class_of.setdefault(object_id, name)
                tracks[object_id].setdefault(frame, box)
    for pairs in (combinations(found, 2) for found in origins.values()):
        tally.distances.extend(float(np.linalg.norm(a - b)) for a, b in pairs)
    for object_id, track in tracks.items():
        _count_object(class_of[object_id], track, tally)


def _count_object(name: str, track: dict[int, NDArray[np.float64]], tally: _Tally) -> None:
    """Add one object of a scene: frame to its world box."""
    tally.objects[name] += 1
    tally.sizes[name].extend(track[min(track)][3:5].tolist())
    net = np.linalg.norm(track[max(track)][:2] - track[min(track)][:2])
    if net < _PARKED_M:
        tally.parked[name] += 1
        return
    steps = [(track[f], track[f + _SPEED_FRAMES]) for f in track if f + _SPEED_FRAMES in track]
    duration_s = _SPEED_FRAMES / 10.0
    tally.speeds[name].extend(float(np.hypot(*(b - a)[:2])) / duration_s for a, b in steps)


def _count_clouds(
    reader: ScenarioReader, scene: SceneIndex, tally: _Tally, cloud_stride: int
) -> None:
    for agent_id, available in scene.agents.items():
        for frame in available.cloud_frames[::cloud_stride]:
            labels = reader.read_frame(scene, agent_id, frame)
            counts = _points_per_box(labels, reader.read_points(scene, agent_id, frame))
            for name, count in zip(labels.raw_types, counts, strict=True):
                tally.points[name].append(count)
            pairs = np.stack([_ranges_m(labels), counts], axis=1)
            tally.kind_points[_kind(agent_id)].extend(pairs.ravel().tolist())


def _ranges_m(labels: AgentFrame) -> NDArray[np.float64]:
    """Return (M,) planar distances of the boxes from the sensor."""
    offset = labels.world_boxes[:, :2] - labels.world_SE3_lidar[:2, 3]
    distance: NDArray[np.float64] = np.linalg.norm(offset, axis=1)
    return distance


def _points_per_box(labels: AgentFrame, points: NDArray[np.float32]) -> NDArray[np.int64]:
    # In the world, where boxes stand upright: a tilted sensor's frame would tilt them.
    world = transform_points(labels.world_SE3_lidar, points.astype(np.float64))
    return count_points(world, labels.world_boxes)
