"""Read trajectories to replay from a CSV file.

One row says where one object is at one time: ``scene, time_s, id, type, x, y, z, yaw_deg, length,
width, height``; x, y, z is the centre of the box, in any right-handed metric frame with z up.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic.objects import HALF_SIZES_M, SceneObjects

__all__ = ["COLUMNS", "FRAME_S", "TrackScene", "read_tracks"]

F64 = NDArray[np.float64]

COLUMNS: Final = (
    "scene", "time_s", "id", "type", "x", "y", "z", "yaw_deg", "length", "width", "height",
)  # fmt: skip
"""Columns of the file, in any order; others are passed over."""
FRAME_S: Final = 0.1

_NUMBERS: Final = ("time_s", "x", "y", "z", "yaw_deg", "length", "width", "height")
_SHORT_GAP_S: Final = 0.5
_GAP_STEPS: Final = 1.5
_LONGEST_GAP_S: Final = 2.0
_MAX_FRAMES: Final = 100_000
_SLACK_S: Final = 1e-6


@dataclass(frozen=True, slots=True)
class TrackScene:
    """One scene of the file: its name and its objects on the 10 Hz grid, in the file's frame."""

    name: str
    objects: SceneObjects


@dataclass(slots=True)
class _Track:
    """Rows of one object, sorted by time later: (line, time, x, y, z, yaw_deg, l, w, h)."""

    kind: str
    rows: list[tuple[float, ...]]


def read_tracks(path: Path) -> tuple[TrackScene, ...]:
    """Return the scenes of a track file, in order of appearance.

    Positions are interpolated linearly between two rows and angles the short way round; nothing
    is made up before the first row of an object, after its last, or in longer gaps. How long a
    gap may be is our choice: 0.5 s, or one and a half steps of the recording where those are longer
    (median over all objects of the scene), and never more than 2 s.

    Raises:
        UserError: For a missing file, missing columns or a bad row, with the number of its line.
    """
    scenes: dict[str, dict[int, _Track]] = {}
    for line, row in _rows(path):
        number, values = _parse(path, line, row)
        tracks = scenes.setdefault(row["scene"].strip(), {})
        track = tracks.setdefault(number, _Track(row["type"].strip(), []))
        if track.kind != row["type"].strip():
            raise UserError(
                f"{path}, line {line}: object {number} is {row['type'].strip()!r} here and "
                f"{track.kind!r} before; give an object one type."
            )
        track.rows.append((float(line), *values))
    if not scenes:
        raise UserError(f"{path}: has no rows below its header; give at least one object.")
    return tuple(TrackScene(name, _scene(path, name, tracks)) for name, tracks in scenes.items())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, row) of all rows, columns checked."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="", skipinitialspace=True)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}, line 1: lacks the column(s) {', '.join(missing)}; "
                    f"the header should name {', '.join(COLUMNS)}."
                )
            for row in reader:
                yield reader.line_num, row
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV text ({error}).") from error


def _parse(path: Path, line: int, row: dict[str, str]) -> tuple[int, tuple[float, ...]]:
    """Return id and numbers of a row."""
    where = f"{path}, line {line}"
    if not row["scene"].strip():
        raise UserError(f"{where}: has no scene name; write one in the column 'scene'.")
    if row["type"].strip() not in HALF_SIZES_M:
        raise UserError(
            f"{where}: type {row['type']!r} is unknown; use one of {', '.join(HALF_SIZES_M)}."
        )
    try:
        number = int(row["id"])
    except ValueError as error:
        raise UserError(f"{where}: id {row['id']!r} should be a whole number.") from error
    if number < 0:
        raise UserError(f"{where}: id {number} should not be negative.")
    values = []
    for name in _NUMBERS:
        try:
            value = float(row[name])
        except ValueError as error:
            raise UserError(f"{where}: {name} {row[name]!r} should be a number.") from error
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} should be finite, found {row[name]}.")
        values.append(value)
    if min(values[-3:]) <= 0:
        raise UserError(f"{where}: length, width and height should be positive.")
    return number, tuple(values)


def _scene(path: Path, name: str, tracks: dict[int, _Track]) -> SceneObjects:
    times = [row[1] for track in tracks.values() for row in track.rows]
    start = min(times)
    frames = int((max(times) - start) / FRAME_S + _SLACK_S) + 1
    if frames > _MAX_FRAMES:
        raise UserError(
            f"{path}: scene {name!r} lasts {frames * FRAME_S:.0f} s; time_s should be in seconds, "
            "split recordings of more than 10000 s into scenes."
        )
    grid: F64 = start + FRAME_S * np.arange(frames, dtype=np.float64)
    bridged_s = _bridged_gap(tracks)
    sampled = [_sample(path, number, track, grid, bridged_s) for number, track in tracks.items()]
    xyz, yaw, half, present = (np.stack([part[i] for part in sampled]) for i in range(4))
    return SceneObjects(
        ids=np.array(list(tracks), dtype=np.int64),
        types=tuple(track.kind for track in tracks.values()),
        half_sizes=half,
        xy=xyz[..., :2].transpose(1, 0, 2),
        yaw=yaw.T,
        speed=_speeds(xyz[..., :2], present.astype(np.bool_)).T,
        present=present.T.astype(np.bool_),
        bottom_z=(xyz[..., 2] - half[:, None, 2]).T,
    )


def _bridged_gap(tracks: dict[int, _Track]) -> float:
    """Return the longest gap in seconds that is filled."""
    steps = [np.diff(sorted(row[1] for row in track.rows)) for track in tracks.values()]
    every = np.concatenate(steps)
    usual = float(np.median(every)) if len(every) else 0.0
    return min(max(_SHORT_GAP_S, _GAP_STEPS * usual), _LONGEST_GAP_S)


def _speeds(xy: F64, present: NDArray[np.bool_]) -> F64:
    """Return (N, T) m/s from the neighbouring frames where an object is present; else 0.

    Args:
        xy: (N, T, 2) metres.
        present: (N, T); what lies in a gap is no motion.
    """
    step = np.where((present[:, 1:] & present[:, :-1])[..., None], np.diff(xy, axis=1), 0.0)
    moved = np.pad(step, ((0, 0), (1, 1), (0, 0)))
    known = np.pad(present[:, 1:] & present[:, :-1], ((0, 0), (1, 1))).astype(np.float64)
    sides = np.maximum(known[:, 1:] + known[:, :-1], 1.0)
    velocity: F64 = (moved[:, 1:] + moved[:, :-1]) / (sides[..., None] * FRAME_S)
    return np.asarray(np.linalg.norm(velocity, axis=-1), dtype=np.float64)


def _sample(
    path: Path, number: int, track: _Track, grid: F64, bridged_s: float
) -> tuple[F64, F64, F64, F64]:
    """Return (T, 3) positions, (T,) yaws, (3,) half sizes and (T,) presence of one object."""
    rows = np.array(sorted(track.rows, key=lambda row: row[1]))
    lines, times = rows[:, 0], rows[:, 1]
    same = np.nonzero(np.diff(times) <= 0)[0]
    if len(same):
        first, second = sorted(int(lines[same[0] + i]) for i in (0, 1))
        raise UserError(
            f"{path}, line {second}: object {number} already has a row for "
            f"time {times[same[0]]:g} s in line {first}."
        )
    xyz = np.stack([np.interp(grid, times, rows[:, column]) for column in (2, 3, 4)], axis=-1)
    yaw = np.interp(grid, times, np.unwrap(np.radians(rows[:, 5])))
    after = np.searchsorted(times, grid + _SLACK_S)
    before = np.clip(after - 1, 0, len(times) - 1)
    on_row = np.abs(times[before] - grid) <= _SLACK_S
    inside = (after > 0) & (after < len(times))
    gap = times[np.minimum(after, len(times) - 1)] - times[before]
    present = on_row | (inside & (gap <= bridged_s + _SLACK_S))
    return xyz, yaw, np.median(rows[:, 6:9], axis=0) / 2, present.astype(np.float64)
