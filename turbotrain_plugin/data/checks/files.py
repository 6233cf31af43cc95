"""Which files a scene has: pairs of labels and clouds, gaps in time, names nobody reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final, NamedTuple

from turbotrain_plugin.data.checks.findings import Notes, runs
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.folders import (
    cloud_stems,
    frame_numbers,
    misnamed_files,
    misnamed_folders,
)
from turbotrain_plugin.data.formats.sequence import SequenceReader

__all__ = ["Rhythm", "check_files", "usual_step"]

_LONG_GAP: Final = 3
"""Missing frames in a row that are more than a lost packet. Two in a row happen by chance."""


class Rhythm(NamedTuple):
    """Usual distance of two frames, in 10 Hz frames: 1, or 5 where every fifth was kept."""

    labels: int
    clouds: int


def check_files(scene: SceneIndex, reader: type[SequenceReader], notes: Notes) -> Rhythm:
    """Compare the files of every agent with each other and with those of the other agents."""
    agents = scene.agents
    rhythm = Rhythm(
        usual_step([frames.label_frames for frames in agents.values()]),
        usual_step([frames.cloud_frames for frames in agents.values()]),
    )
    cloud = " or ".join(f".{suffix}" for suffix in reader.clouds)
    if not any(frames.cloud_frames for frames in agents.values()):
        message = f"empty scene: no agent has a frame with both .yaml and {cloud}"
        notes.add("empty-scene", None, None, message)
    for agent_id, frames in agents.items():
        clouds = cloud_stems(scene, agent_id, reader.clouds)
        _check_pairs(agent_id, set(frames.label_frames), clouds, cloud, rhythm, notes)
        _check_gaps(agent_id, set(frames.label_frames), rhythm.labels, notes)
    _check_names(scene, reader, notes)
    _check_times(
        {agent_id: set(frames.cloud_frames) for agent_id, frames in agents.items()}, rhythm, notes
    )
    return rhythm


def usual_step(agents: Sequence[Sequence[int]]) -> int:
    """Return the commonest distance of two frames of the agents of a scene; 1 of nothing."""
    steps = Counter(b - a for frames in agents for a, b in pairwise(frames))
    return steps.most_common(1)[0][0] if steps else 1


def _check_pairs(
    agent_id: int, labels: set[int], clouds: set[int], cloud: str, rhythm: Rhythm, notes: Notes
) -> None:
    if not clouds & labels:
        message = f"no frame: {len(labels)} label files and {len(clouds)} clouds, none in common"
        notes.add("no-frames", agent_id, None, message)
    # A root may keep clouds at fewer frames than labels: only those of its rhythm are missed.
    expected = _beats(labels, min(clouds & labels, default=0), rhythm.clouds) & labels
    for kind, frames, what in (
        (
            "label-without-cloud",
            (expected if clouds & labels else labels) - clouds,
            f"label files without {cloud} (used for futures only)",
        ),
        ("cloud-without-label", clouds - labels, f"{cloud} files without .yaml (left out)"),
    ):
        if frames:
            notes.add(kind, agent_id, min(frames), f"{len(frames)} {what}")


def _check_gaps(agent_id: int, labels: set[int], step: int, notes: Notes) -> None:
    gaps = runs(_beats(labels, min(labels, default=0), step) - labels, step)
    short = [frame for gap in gaps if len(gap) < _LONG_GAP for frame in gap]
    if short:
        message = f"{len(short)} frames missing inside the recording (short time gaps)"
        notes.add("frame-missing", agent_id, short[0], message)
    for gap in gaps:
        if len(gap) >= _LONG_GAP:
            message = f"{len(gap)} frames in a row missing inside the recording (time gap)"
            notes.add("frame-gap", agent_id, gap[0], message)


def _beats(frames: set[int], start: int, step: int) -> set[int]:
    """Return every ``step``-th frame through ``start``, within the span of ``frames``."""
    if not frames:
        return set()
    first = min(frames) + (start - min(frames)) % step
    return set(range(first, max(frames) + 1, step))


def _check_times(agents: Mapping[int, set[int]], rhythm: Rhythm, notes: Notes) -> None:
    present = {agent_id: frames for agent_id, frames in agents.items() if frames}
    if len(present) < 2:
        return
    union, common = set.union(*agents.values()), set.intersection(*agents.values())
    if union - common:
        message = f"{len(union - common)} frames that not all agents have"
        notes.add("frames-differ", None, min(union - common), message)
    first, last = min(union), max(union)
    for agent_id, frames in present.items():
        late, early = min(frames) - first, last - max(frames)
        if max(late, early) >= _LONG_GAP * rhythm.clouds:
            message = (
                f"the agent begins {late / 10:g} s after and ends {early / 10:g} s before the "
                "longest recording of the scene"
            )
            notes.add("span-differs", agent_id, min(frames), message)
    if not any(a & b for a, b in combinations(present.values(), 2)):
        message = "no two agents have a frame at the same time, there is nothing to fuse"
        notes.add("no-shared-frames", None, None, message)


def _check_names(scene: SceneIndex, reader: type[SequenceReader], notes: Notes) -> None:
    for agent_id in scene.agents:
        folder = scene.folder / str(agent_id)
        odd = misnamed_files(folder, reader.clouds)
        if odd:
            message = f"{len(odd)} files are passed over, names have six digits: {_some(odd)}"
            notes.add("odd-file-name", agent_id, None, message)
        between = [
            stem
            for stem in frame_numbers(folder, "yaml")
            if (stem - scene.stem_offset) % scene.stem_step
        ]
        if between:
            message = (
                f"{len(between)} label files lie between the frames of 10 Hz (every "
                f"{scene.stem_step} file numbers) and are left out, the first is {between[0]:06d}"
            )
            notes.add("off-grid-files", agent_id, None, message)
    for folder in misnamed_folders(scene.folder):
        message = f"{folder.name} holds frames, but its name is no whole number: passed over"
        notes.add("odd-folder", None, None, message)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
