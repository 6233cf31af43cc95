"""Whole data sets: scenes in parallel, each moved into place when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic.presets import PRESETS, SPEC_VERSION, SPLITS, Preset
from turbotrain_plugin.synthetic.render import render_scene
from turbotrain_plugin.synthetic.replay import plan_replay_scene
from turbotrain_plugin.synthetic.scene import LAYOUTS
from turbotrain_plugin.synthetic.tracks import TrackScene, read_tracks
from turbotrain_plugin.synthetic.writer import META_NAME, trajectory_database

__all__ = ["MARKER_NAME", "Progress", "find_preset", "generate", "is_complete"]

MARKER_NAME: Final = "synthetic.json"
"""File at the top of a generated root that says what is in it."""
_PARTIAL: Final = ".partial"

Progress = Callable[[int, int, str], None]
"""Called with what is done, how much there is, and the name of the last."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One scene to build; everything a process needs to know."""

    root: Path
    preset: Preset
    seed: int
    split: str
    name: str
    number: int
    tracks: TrackScene | None

    @property
    def folder(self) -> Path:
        return self.root / self.split / self.name


def generate(
    preset: str | Preset,
    out: Path,
    *,
    seed: int,
    workers: int = 2,
    tracks: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a data set in the V2XPnP-Seq layout; one seed gives the same bytes every time.

    Args:
        preset: Name in ``PRESETS``, or a preset of one's own.
        out: Root folder; new, empty, or made by the same preset, seed and tracks before.
        seed: Seed of everything.
        workers: Processes; 1 builds in this one.
        tracks: CSV of trajectories to replay instead of simulated traffic.
        resume: Keep the scenes that are complete; False builds all anew.
        progress: Called with scenes done, scenes in all, and the name of the last.

    Returns:
        ``out``.

    Raises:
        UserError: For an unknown preset, a folder that holds something else, or bad tracks.
    """
    preset = find_preset(preset)
    out = Path(out)
    given = None if tracks is None else read_tracks(Path(tracks))
    marker = _marker(preset, seed, tracks)
    _claim(out, marker)
    jobs = list(_jobs(out, preset, seed, given))
    _write_marker(out, marker, complete=False)
    if given is None:
        _write_maps(out, preset, seed)
    left = [job for job in jobs if not (resume and (job.folder / META_NAME).is_file())]
    done = len(jobs) - len(left)
    for job in _build(left, workers):
        done += 1
        if progress is not None:
            progress(done, len(jobs), f"{job.split}/{job.name}")
    for split in SPLITS:
        folders = sorted(job.folder for job in jobs if job.split == split)
        _write_pickle(out / f"trajectory_database_{split}.pkl", trajectory_database(folders))
    shutil.rmtree(out / _PARTIAL, ignore_errors=True)
    _write_marker(out, marker, complete=True)
    return out


def is_complete(root: Path) -> bool:
    """Return whether ``generate`` has finished in ``root``."""
    content = _read_marker(root)
    return content is not None and bool(content.get("complete"))


def find_preset(preset: str | Preset) -> Preset:
    """Return the preset of that name, or the one given.

    Raises:
        UserError: For an unknown name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]


# ------------------------------------------------------------------------------------------- scenes


def _jobs(
    root: Path, preset: Preset, seed: int, tracks: tuple[TrackScene, ...] | None
) -> Iterator[_Job]:
    number = 0
    counts = preset.scenes if tracks is None else _split_counts(len(tracks))
    for day, (split, count) in enumerate(zip(SPLITS, counts, strict=True), start=1):
        for index in range(count):
            time = f"{8 + index // 60:02d}-{index % 60:02d}-00"
            name = f"2030-01-{day:02d}-{time}_{index + 1}_0"
            given = None if tracks is None else tracks[number]
            yield _Job(root, preset, seed, split, name, number, given)
            number += 1


def _split_counts(scenes: int) -> tuple[int, int, int]:
    """Return how many given scenes go to train, val and test: about 70, 15 and 15 %."""
    test = max(1, round(0.15 * scenes)) if scenes > 1 else 0
    val = max(1, round(0.15 * scenes)) if scenes > 2 else 0
    return scenes - val - test, val, test


def _build(jobs: list[_Job], workers: int) -> Iterator[_Job]:
    """Build all, in any order; yields each when it is in place."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            _build_scene(job)
            yield job
        return
    # A fresh interpreter per process: a fork would share threads and devices of a training run.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_build_scene, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            pool.shutdown(cancel_futures=True)


def _build_scene(job: _Job) -> None:
    """Build a scene under a temporary name and move it into place."""
    seed = (job.seed, SPEC_VERSION, job.number)
    if job.tracks is None:
        layout = LAYOUTS[job.preset.layout_of(job.number)]
        plan = layout.plan(layout.world(job.seed), job.preset.frames, seed, job.number)
    else:
        plan = plan_replay_scene(job.tracks, seed)
    partial = job.root / _PARTIAL / f"{job.split}-{job.name}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    head: dict[str, Any] = {"preset": job.preset.name, "seed": job.seed, "scene": job.number}
    if job.tracks is not None:
        head["source_scene"] = job.tracks.name
    render_scene(plan, job.preset, seed, partial, head)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(job.folder, ignore_errors=True)
    partial.rename(job.folder)


# --------------------------------------------------------------------------------------------- root


def _marker(preset: Preset, seed: int, tracks: Path | None) -> dict[str, Any]:
    digest = None if tracks is None else hashlib.sha256(tracks.read_bytes()).hexdigest()
    return {
        "made_by": "turbotrain_plugin.synthetic",
        "spec_version": SPEC_VERSION,
        "preset": preset.name,
        "preset_digest": preset.digest(),
        "seed": seed,
        "tracks": digest,
    }


def _read_marker(root: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((root / MARKER_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _claim(root: Path, marker: dict[str, Any]) -> None:
    """Refuse a folder with foreign content."""
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; give a new or empty folder for the synthetic data.")
    if not root.exists() or not any(root.iterdir()):
        return
    found = _read_marker(root)
    if found is None:
        raise UserError(
            f"{root}: is not empty and was not made by the generator; give a new or empty folder."
        )
    other = [key for key, value in marker.items() if found.get(key) != value]
    if other:
        raise UserError(
            f"{root}: holds synthetic data with another {', '.join(other)}; "
            "give another folder or remove this one."
        )


def _write_marker(root: Path, marker: dict[str, Any], *, complete: bool) -> None:
    text = json.dumps({**marker, "complete": complete}, indent=1, sort_keys=True) + "\n"
    _replace(root / MARKER_NAME, text.encode())


def _write_maps(root: Path, preset: Preset, seed: int) -> None:
    # Imported here: the data room loads torch, which the scene processes never need.
    from turbotrain_plugin.data.vector_map import write_map
    from turbotrain_plugin.synthetic.lane_map import LANE_MAPS

    (root / "map").mkdir(exist_ok=True)
    for name in dict.fromkeys(preset.layouts):
        layout = LAYOUTS[name]
        write_map(root / "map" / layout.map_file, LANE_MAPS[name](layout.world(seed)))


def _write_pickle(path: Path, content: object) -> None:
    # Protocol 3, as the released databases are.
    _replace(path, pickle.dumps(content, protocol=3))


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
