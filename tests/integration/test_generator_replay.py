"""Replaying a log as irregular as real ones: nothing fails and nothing moves that did not.

The made-up log has 80 actors of 14 s at about 10 Hz with uneven time stamps, late starts and early
ends, gaps of 0.1 to 2 s, hops across gaps, tracks of one or two boxes, people who stand and
vehicles that creep. The sensors are coarse; what they look at is what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.recordings import Recording
from turbotrain_plugin.data.inspect import verify_root
from turbotrain_plugin.synthetic import PRESETS, SensorModel, generate
from turbotrain_plugin.synthetic.tracks import COLUMNS

F64 = NDArray[np.float64]

ACTORS = 80
LASTS_S = 14.0
BRIDGED_S = 0.5
"""Longest gap that may be filled in a recording of 10 Hz."""
SENSOR = SensorModel(tuple(float(angle) for angle in range(-20, 6, 2)), 300, 90.0)
PRESET = replace(
    PRESETS["tiny"], name="coarse", vehicle=SENSOR, roadside=SENSOR, cloud_stride=10, label_stride=2
)
SIZES = {
    "Car": (4.6, 1.9, 1.6),
    "Van": (5.2, 2.0, 2.1),
    "Bus": (12.0, 2.6, 3.2),
    "Pedestrian": (0.6, 0.6, 1.7),
    "BicycleRider": (1.7, 0.6, 1.7),
    "Bicycle": (1.7, 0.5, 1.0),
    "TrashCan": (0.7, 0.7, 1.1),
}


@dataclass(frozen=True)
class Track:
    """Rows of one actor: (N,) seconds and (N, 3) centres."""

    kind: str
    times: F64
    xyz: F64

    def around(self, time_s: float) -> tuple[float, float, float]:
        """Length of the gap that ``time_s`` is in, and its ends; 0 at a row, inf outside."""
        near = self.times[np.abs(self.times - time_s) < 1e-6]
        if len(near):
            return 0.0, float(near[0]), float(near[0])
        after = int(np.searchsorted(self.times, time_s))
        if after in (0, len(self.times)):
            return np.inf, np.nan, np.nan
        start, end = self.times[after - 1 : after + 1].tolist()
        return end - start, start, end

    def speeds(self) -> F64:
        """Speeds between rows that are no gap."""
        step = np.diff(self.times)
        way = np.linalg.norm(np.diff(self.xyz[:, :2], axis=0), axis=1)
        known = step <= BRIDGED_S + 1e-6
        return np.append(way[known] / step[known], 0.0)


def made_track(number: int, rng: np.random.Generator) -> Track:
    kind = list(SIZES)[number % len(SIZES)]
    first, last = 0.0, LASTS_S
    if number % 3:
        first, last = sorted(rng.uniform(0.0, LASTS_S, 2).tolist())
    times = np.arange(first, last + 0.1, 0.1)
    times = times + rng.uniform(-0.03, 0.03, len(times))
    for _ in range(int(rng.integers(0, 4))):
        gap, start = rng.uniform(0.1, 2.0), rng.uniform(first, last)
        times = times[(times < start) | (times > start + gap)]
    if number % 20 == 7:
        times = times[:1]
    elif number % 20 == 13:
        times = times[:2]
    if not len(times):
        times = np.array([first])
    top = {"Pedestrian": 1.6, "BicycleRider": 5.0, "Bicycle": 0.0, "TrashCan": 0.0}.get(kind, 12.0)
    speed = 0.0 if number % 2 else rng.uniform(0.0, top)
    heading = rng.uniform(-np.pi, np.pi)
    x, y = 2300.0 + rng.uniform(-60, 60), -900.0 + rng.uniform(-60, 60)
    # Some that stand hop while nobody looks, as converted tracks do.
    hop = 6.0 * (number % 10 == 5) * np.cumsum(np.append(0, np.diff(times) > BRIDGED_S + 1e-3))
    along = speed * (times - times[0]) + hop
    xy = np.stack([x + along * np.cos(heading), y + along * np.sin(heading)], axis=-1)
    z = 12.0 + 0.02 * (xy[:, :1] - 2300.0) + SIZES[kind][2] / 2
    return Track(kind, times, np.concatenate([xy, z], axis=1))


def write(path: Path, tracks: dict[int, Track]) -> Path:
    rows = [
        ",".join(
            map(
                str, ("log", 500.0 + t, number, track.kind, *xyz, 10.0 * number, *SIZES[track.kind])
            )
        )
        for number, track in tracks.items()
        for t, xyz in zip(track.times.tolist(), track.xyz.tolist(), strict=True)
    ]
    # Not in the order of time, and actors mixed.
    shuffled = np.random.default_rng(1).permutation(len(rows)).tolist()
    path.write_text("\n".join([",".join(COLUMNS), *(rows[i] for i in shuffled)]) + "\n")
    return path


@pytest.fixture(scope="module")
def tracks() -> dict[int, Track]:
    rng = np.random.default_rng(0)
    return {100 + number: made_track(number, rng) for number in range(ACTORS)}


@pytest.fixture(scope="module")
def root(tracks: dict[int, Track], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("irregular")
    table = write(folder / "log.csv", tracks)
    return generate(PRESET, folder / "root", seed=0, workers=1, tracks=table)


@pytest.fixture(scope="module")
def recording(root: Path) -> Recording:
    return Recording(next((root / "train").iterdir()))


def labels(
    recording: Recording, tracks: dict[int, Track]
) -> Iterator[tuple[int, float, dict[str, list[float]]]]:
    """Yield actor, time in the log and label, of all agents and frames."""
    start = min(track.times[0] for track in tracks.values())
    for agent in recording.agents:
        for path in sorted((recording.folder / str(agent)).glob("*.yaml")):
            frame = int(path.stem)
            for number, entry in recording.label(agent, frame)["vehicles"].items():
                yield number, start + 0.1 * frame, entry


def test_the_log_is_as_irregular_as_it_says(tracks: dict[int, Track]) -> None:
    steps = np.concatenate([np.diff(track.times) for track in tracks.values()])
    assert len(tracks) == ACTORS
    assert 0.05 < np.median(steps) < 0.15
    assert steps.max() > 1.5
    assert ((steps > 0.15) & (steps < BRIDGED_S)).sum() > 5
    assert ((steps > BRIDGED_S) & (steps < 1.0)).sum() > 5
    assert {len(track.times) for track in tracks.values()} >= {1, 2}


def test_all_agents_look(recording: Recording) -> None:
    assert recording.agents == [-2, -1, 1, 2]
    assert recording.meta["layout"] == "replay"
    for agent in recording.agents:
        assert len(recording.frames(agent)) >= 2


def test_many_actors_are_seen(recording: Recording, tracks: dict[int, Track]) -> None:
    assert len({number for number, _, _ in labels(recording, tracks)}) > ACTORS / 2


def test_nobody_is_there_in_a_gap_before_or_after(
    recording: Recording, tracks: dict[int, Track]
) -> None:
    """Holds for the labels and for the clean states, hence for what the sensors met."""
    for number, time_s, _ in labels(recording, tracks):
        assert tracks[number].around(time_s)[0] <= BRIDGED_S + 1e-6, (number, time_s)
    start = min(track.times[0] for track in tracks.values())
    for key, entry in recording.meta["objects"].items():
        for first, last in entry["present"]:
            for frame in range(first, last + 1):
                gap, _, _ = tracks[int(key)].around(start + 0.1 * frame)
                assert gap <= BRIDGED_S + 1e-6, (key, frame)


def test_short_gaps_are_filled(recording: Recording, tracks: dict[int, Track]) -> None:
    """Between two rows at most half a second apart an actor is always there."""
    start = min(track.times[0] for track in tracks.values())
    filled = 0
    for key, entry in recording.meta["objects"].items():
        there = {f for first, last in entry["present"] for f in range(first, last + 1)}
        for frame in range(recording.meta["frames"]):
            gap = tracks[int(key)].around(start + 0.1 * frame)[0]
            if gap <= BRIDGED_S - 1e-6:
                assert frame in there, (key, frame)
                filled += gap > 0.2
    assert filled > 20


def test_places_lie_between_those_of_the_log(
    recording: Recording, tracks: dict[int, Track]
) -> None:
    for number, time_s, entry in labels(recording, tracks):
        track = tracks[number]
        expected = [np.interp(time_s, track.times, track.xyz[:, axis]) for axis in range(3)]
        # Boxes stand square on the slope, which shifts the centre of a high one a little.
        np.testing.assert_allclose(entry["location"], expected, atol=0.05)


def test_nobody_is_faster_than_in_the_log(recording: Recording, tracks: dict[int, Track]) -> None:
    moved = 0
    for key, entry in recording.meta["objects"].items():
        fastest = float(tracks[int(key)].speeds().max())
        for first, last in entry["present"]:
            states = np.array([recording.state(int(key), f) for f in range(first, last + 1)])
            steps = np.linalg.norm(np.diff(states[:, :2], axis=0), axis=1) / 0.1
            assert steps.max(initial=0.0) <= fastest + 1e-3, key
            assert states[:, 6].max() <= fastest + 1e-3, key
            moved += int((steps > 1.0).sum())
    assert moved > 100


def test_who_stands_does_not_stir(recording: Recording, tracks: dict[int, Track]) -> None:
    standing = 0
    for key, entry in recording.meta["objects"].items():
        # A single box between two frames is nowhere.
        if entry["states"] and (np.ptp(tracks[int(key)].xyz, axis=0) == 0).all():
            standing += 1
            assert np.ptp(np.array(entry["states"]), axis=0).max() == 0
            assert entry["states"][0][6] == 0.0
    assert standing > 20


def test_verify_finds_no_error(root: Path) -> None:
    assert verify_root([root]).ok


def test_vehicles_of_a_moment_carry_no_sensor(tmp_path: Path) -> None:
    """Nobody gets a LiDAR who is there for less than a second: its folder could stay empty."""
    walk = np.arange(0.0, 6.0, 0.1)
    brief = np.array([1.12, 1.22])
    short = {
        1: Track("Car", brief, np.array([[0.0, 0.0, 0.8]]).repeat(2, axis=0)),
        2: Track("Pedestrian", walk, np.stack([walk, 0 * walk + 5.0, 0 * walk + 0.85], axis=-1)),
    }
    made = generate(PRESET, tmp_path / "r", seed=0, workers=1, tracks=write(tmp_path / "t", short))
    recording = Recording(next((made / "train").iterdir()))
    assert recording.agents == [-2, -1]
    assert verify_root([made]).ok
