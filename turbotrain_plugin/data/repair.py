"""Known flaws of label tracks, mended while reading: reversed headings, second ids, gaps.

What is mended was seen in audits of V2XPnP-Seq (78 of 5,823 actors with reversed headings, 25 cars
with two ids in one scene, gaps of 0.1 - 2 s inside tracks). The rules are our choices, made after
those audits:

- A track is turned round when it moves in at least 3 steps of 0.5 s and by 2 m from end to end, and
  90 % of the steps that move point more than 135 degrees away from the heading. Only vehicles: the
  heading of people says little about where they walk. A car that reverses for the whole of its
  track is turned, too.
- Two ids are one object when, over the frames both exist in, the median distance of their centres
  is below 0.225 (length a + length b) + 0.4 m and the median difference of their headings below
  35 degrees, and no agent ever lists both at once. The smaller id stays.
- A gap of the union of all agents' labels is filled along a straight line, in the file of the agent
  that saw the object last.

Nothing is random. In this order, because each rule helps the next.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import RepairConfig
from turbotrain_plugin.data.disturb import FRAME_S
from turbotrain_plugin.data.formats.base import ScenarioReader, SceneIndex
from turbotrain_plugin.data.vector_map import VectorMap
from turbotrain_plugin.geometry.boxes import wrap_angle
from turbotrain_plugin.structures import AgentFrame

__all__ = ["RepairedReader", "repaired"]

_LOG = logging.getLogger(__name__)

VEHICLES: Final = frozenset(
    ("Car", "Van", "PoliceCar", "LongVehicle", "Bus", "Truck", "ConcreteTruck")
)
"""Raw types whose heading is the direction they drive in."""

_STEP_FRAMES: Final = 5
_MOVED_M: Final = 0.5
_MOVING_STEPS: Final = 3
_NET_M: Final = 2.0
_REVERSED_RAD: Final = np.deg2rad(135.0)
_REVERSED_SHARE: Final = 0.9

_SAME_PER_LENGTH: Final = 0.225
_SAME_M: Final = 0.4
_SAME_RAD: Final = np.deg2rad(35.0)
_SHARED_FRAMES: Final = 2

F64 = NDArray[np.float64]


class Track(NamedTuple):
    """One object over time: frames (n,) rising, boxes (n, 7) in the world, and its raw type."""

    frames: NDArray[np.int64]
    boxes: F64
    raw_type: str


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """What is mended in a scene.

    Attributes:
        turned: (agent, id) of reversed tracks.
        merged: Id to the id that stays.
        filled: (agent, frame) to the objects put in.
    """

    turned: frozenset[tuple[int, int]] = frozenset()
    merged: dict[int, int] = field(default_factory=dict)
    filled: dict[tuple[int, int], list[FilledBox]] = field(default_factory=dict)

    @property
    def counts(self) -> Counter[str]:
        """Return how much of each kind is mended."""
        boxes = sum(len(listed) for listed in self.filled.values())
        return Counter(turned=len(self.turned), merged=len(self.merged), filled=boxes)

    def apply(self, frame: AgentFrame) -> AgentFrame:
        """Return the labels of one file, mended."""
        frame = self._turn(frame)
        frame = self._merge(frame)
        for filled in self.filled.get((frame.agent_id, frame.frame), ()):
            frame = _with_object(frame, filled)
        return frame

    def _turn(self, frame: AgentFrame) -> AgentFrame:
        flags = [(frame.agent_id, one) in self.turned for one in frame.object_ids.tolist()]
        if not any(flags):
            return frame
        rows = np.flatnonzero(flags)
        boxes, tilts = frame.world_boxes.copy(), frame.roll_pitch_rad.copy()
        boxes[rows, 6] = wrap_angle(boxes[rows, 6] + np.pi)
        tilts[rows] *= -1  # half a turn about the own up axis
        return replace(frame, world_boxes=boxes, roll_pitch_rad=tilts)

    def _merge(self, frame: AgentFrame) -> AgentFrame:
        if not self.merged:
            return frame
        ids = [self.merged.get(one, one) for one in frame.object_ids.tolist()]
        return replace(frame, object_ids=np.array(ids, np.int64))


class FilledBox(NamedTuple):
    """An object put into a label file."""

    object_id: int
    box: F64
    raw_type: str


class RepairedReader:
    """A ``ScenarioReader`` whose labels are mended; clouds and maps are those of ``reader``.

    All scenes are looked through at once, so that what is mended is told once and every process
    that gets a copy of the reader mends the same.

    Args:
        reader: Where labels come from.
        repair: What is mended.
    """

    def __init__(self, reader: ScenarioReader, repair: RepairConfig) -> None:
        self._reader = reader
        self._plans: dict[Path, ScenePlan] = {}
        self.counts: Counter[str] = Counter(turned=0, merged=0, filled=0)
        for scene in reader.scenes:
            plan = plan_scene(_label_frames(reader, scene), repair)
            self._plans[scene.folder] = plan
            self.counts.update(plan.counts)
        _LOG.info(
            "Labels of %d scene(s) repaired: %d track(s) turned round, %d id(s) merged, %d box(es) "
            "put into gaps",
            len(reader.scenes),
            self.counts["turned"],
            self.counts["merged"],
            self.counts["filled"],
        )

    @property
    def scenes(self) -> tuple[SceneIndex, ...]:
        """All scenes of the reader."""
        return self._reader.scenes

    def read_frame(self, scene: SceneIndex, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and mended labels of one file."""
        read = self._reader.read_frame(scene, agent_id, frame)
        return self._plans[scene.folder].apply(read)

    def read_points(self, scene: SceneIndex, agent_id: int, frame: int) -> NDArray[np.float32]:
        """Return (P, 4) as the reader does."""
        return self._reader.read_points(scene, agent_id, frame)

    def read_map(self, scene: SceneIndex) -> VectorMap | None:
        """Return the map as the reader does."""
        return self._reader.read_map(scene)


def repaired(reader: ScenarioReader, repair: RepairConfig) -> ScenarioReader:
    """Return the reader itself when nothing is to be mended."""
    return reader if repair == RepairConfig() else RepairedReader(reader, repair)


def plan_scene(frames: Sequence[AgentFrame], repair: RepairConfig) -> ScenePlan:
    """Return what is to be mended in the label files of one scene.

    Args:
        frames: Every label file, in the order of the agents' trust, each agent's by time.
        repair: Which rules apply.
    """
    plan = ScenePlan()
    if repair.heading_flips:
        turned = (key for key, track in _tracks_by_agent(frames).items() if is_reversed(track))
        plan = replace(plan, turned=frozenset(turned))
    if repair.duplicate_ids:
        plan = replace(plan, merged=_same_objects([plan.apply(frame) for frame in frames]))
    max_missing = round(repair.fill_gaps_s / FRAME_S)
    if max_missing:
        mended = [plan.apply(frame) for frame in frames]
        plan = replace(plan, filled=_gap_boxes(mended, max_missing))
    return plan


# ----------------------------------------------------------------------------------- heading flips


def is_reversed(track: Track) -> bool:
    """Return whether a vehicle's boxes look back on its way; see the module's text."""
    if track.raw_type not in VEHICLES:
        return False
    place = np.searchsorted(track.frames, track.frames + _STEP_FRAMES)
    place = np.minimum(place, len(track.frames) - 1)
    known = track.frames[place] == track.frames + _STEP_FRAMES
    step = track.boxes[place, :2] - track.boxes[:, :2]
    moving = known & (np.hypot(step[:, 0], step[:, 1]) > _MOVED_M)
    net_m = float(np.hypot(*(track.boxes[-1, :2] - track.boxes[0, :2])))
    if moving.sum() < _MOVING_STEPS or net_m < _NET_M:
        return False
    course = np.arctan2(step[moving, 1], step[moving, 0])
    away = np.abs(wrap_angle(course - track.boxes[moving, 6])) > _REVERSED_RAD
    return bool(away.mean() >= _REVERSED_SHARE)


# ------------------------------------------------------------------------------------ duplicate ids


def _same_objects(frames: Sequence[AgentFrame]) -> dict[int, int]:
    """Return id to the smallest id of the same object, for ids that are not the smallest."""
    tracks = _union_tracks(frames)
    seen: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for frame in frames:
        for one in frame.object_ids.tolist():
            seen[one].add((frame.agent_id, frame.frame))
    group = {one: {one} for one in tracks}
    for _, a, b in sorted(_close_pairs(tracks)):
        first, second = group[a], group[b]
        listed = [set().union(*(seen[one] for one in ids)) for ids in (first, second)]
        if first is not second and not listed[0] & listed[1]:
            first |= second
            for one in second:
                group[one] = first
    return {one: min(ids) for one, ids in group.items() if min(ids) != one}


def _close_pairs(tracks: dict[int, Track]) -> Iterator[tuple[float, int, int]]:
    """Yield (median distance, id, id) of tracks that go together."""
    for a, b in sorted(_meeting(tracks)):
        first, second = tracks[a], tracks[b]
        _, i, j = np.intersect1d(first.frames, second.frames, return_indices=True)
        if len(i) < _SHARED_FRAMES:
            continue
        one, two = first.boxes[i], second.boxes[j]
        distance_m = float(np.median(np.linalg.norm(one[:, :2] - two[:, :2], axis=1)))
        turn = float(np.median(np.abs(wrap_angle(one[:, 6] - two[:, 6]))))
        if distance_m < _limit_m(one[0, 3], two[0, 3]) and turn < _SAME_RAD:
            yield distance_m, a, b


def _meeting(tracks: dict[int, Track]) -> set[tuple[int, int]]:
    """Return pairs of ids that are ever near enough; a few per frame instead of all."""
    by_frame: dict[int, list[tuple[int, F64]]] = defaultdict(list)
    for one, track in tracks.items():
        for frame, box in zip(track.frames.tolist(), track.boxes, strict=True):
            by_frame[frame].append((one, box))
    pairs = set()
    for present in by_frame.values():
        ids = np.array([one for one, _ in present])
        boxes = np.array([box for _, box in present])
        apart = np.linalg.norm(boxes[:, None, :2] - boxes[None, :, :2], axis=-1)
        near = apart < _limit_m(boxes[:, None, 3], boxes[None, :, 3])
        for i, j in np.argwhere(np.triu(near, k=1)).tolist():
            a, b = sorted((int(ids[i]), int(ids[j])))
            pairs.add((a, b))
    return pairs


def _limit_m(first: F64, second: F64) -> F64:
    return np.asarray(_SAME_PER_LENGTH * (first + second) + _SAME_M)


# -------------------------------------------------------------------------------------------- gaps


def _gap_boxes(
    frames: Sequence[AgentFrame], max_missing: int
) -> dict[tuple[int, int], list[FilledBox]]:
    """Return (agent, frame) to the boxes that close short gaps of the union's tracks."""
    files = {(frame.agent_id, frame.frame) for frame in frames}
    labelled_by: dict[tuple[int, int], list[int]] = defaultdict(list)
    for frame in frames:
        for one in frame.object_ids.tolist():
            labelled_by[one, frame.frame].append(frame.agent_id)
    filled: dict[tuple[int, int], list[FilledBox]] = defaultdict(list)
    for one, track in _union_tracks(frames).items():
        gaps = np.flatnonzero(np.diff(track.frames) > 1)
        for left in gaps[np.diff(track.frames)[gaps] - 1 <= max_missing].tolist():
            first, last = track.frames[left : left + 2].tolist()
            watching = labelled_by[one, first] + labelled_by[one, last]
            for now in range(first + 1, last):
                share = (now - first) / (last - first)
                agent = next((a for a in watching if (a, now) in files), None)
                if agent is not None:
                    box = _between(track.boxes[left], track.boxes[left + 1], share)
                    filled[agent, now].append(FilledBox(one, box, track.raw_type))
    return dict(filled)


def _between(first: F64, last: F64, share: float) -> F64:
    box = (1 - share) * first + share * last
    box[6] = wrap_angle(first[6] + share * wrap_angle(last[6] - first[6]))
    return box


def _with_object(frame: AgentFrame, filled: FilledBox) -> AgentFrame:
    return replace(
        frame,
        object_ids=np.append(frame.object_ids, filled.object_id),
        world_boxes=np.concatenate([frame.world_boxes, filled.box[None]]),
        roll_pitch_rad=np.concatenate([frame.roll_pitch_rad, np.zeros((1, 2))]),
        raw_types=(*frame.raw_types, filled.raw_type),
    )


# ------------------------------------------------------------------------------------------ tracks


def _label_frames(reader: ScenarioReader, scene: SceneIndex) -> list[AgentFrame]:
    return [
        reader.read_frame(scene, agent_id, frame)
        for agent_id, frames in scene.agents.items()
        for frame in frames.label_frames
    ]


def _tracks_by_agent(frames: Sequence[AgentFrame]) -> dict[tuple[int, int], Track]:
    """Return (agent, id) to what that agent labelled."""
    rows: dict[tuple[int, int], list[tuple[int, F64, str]]] = defaultdict(list)
    for frame in frames:
        listed = zip(frame.object_ids.tolist(), frame.world_boxes, frame.raw_types, strict=True)
        for one, box, raw_type in listed:
            rows[frame.agent_id, one].append((frame.frame, box, raw_type))
    return {key: _track(listed) for key, listed in rows.items()}


def _union_tracks(frames: Sequence[AgentFrame]) -> dict[int, Track]:
    """Return id to its boxes, at every time those of the first agent that labelled it."""
    rows: dict[int, dict[int, tuple[int, F64, str]]] = defaultdict(dict)
    for frame in frames:
        listed = zip(frame.object_ids.tolist(), frame.world_boxes, frame.raw_types, strict=True)
        for one, box, raw_type in listed:
            rows[one].setdefault(frame.frame, (frame.frame, box, raw_type))
    return {one: _track(found.values()) for one, found in rows.items()}


def _track(rows: Iterable[tuple[int, F64, str]]) -> Track:
    ordered = sorted(rows, key=lambda row: row[0])
    return Track(
        np.array([frame for frame, _, _ in ordered], np.int64),
        np.stack([box for _, box, _ in ordered]),
        Counter(raw_type for _, _, raw_type in ordered).most_common(1)[0][0],
    )
