"""One frame of 3 agents with 60,000 points each and 30 objects: files to network input.

Each recording has one frame, so that the first sample of each is cold (labels are parsed, the cache
is empty) and every further one warm. Network input is a batch of one sample: voxels, targets,
matrices as tensors. The peers are those of ``loader.py``; the third parses every label file as
often as OpenCOOD's base data set does for one sample (the ego's for the distance, each agent's for
the distance, and four per agent for its parameters), with PyYAML's pure Python loader as it does.
OpenCOOD itself needs Open3D and a compiled extension and is not run here.

A second part times windows of one to three agents and one to five frames of the same size, and fits
a line over agents x frames.

    python benchmarks/frame.py [--frames 12] [--repeats 5] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the two below

from benchmarks.loader import NaiveReader, check_same
from benchmarks.measure import write_result
from tests.helpers.made_scenes import (
    MadeAgent,
    MadeObject,
    MadeScene,
    rotation,
    world_box,
    world_SE3_lidar,
    write_scene,
)
from turbotrain_plugin.config import DataConfig, Preprocess, RunConfig, TrainParams, TurboTrainBlock
from turbotrain_plugin.data import CooperativeDataset, SampleKey, collate
from turbotrain_plugin.structures import Batch

POINTS: Final = 60_000
OBJECTS: Final = 30
BEAMS: Final = 64
GRID: Final = (-140.8, -40.0, -5.0, 140.8, 40.0, 3.0)
COLD_MS: Final = 60.0
WARM_MS: Final = 35.0
AGENTS: Final = (
    MadeAgent(1, (0.0, 0.0, 1.9)),
    MadeAgent(2, (25.0, 6.0, 1.9), yaw_deg=170.0),
    MadeAgent(-1, (12.0, -14.0, 4.1), yaw_deg=80.0, roll_deg=-2.9),
)
KEPT: Final = (1, -1, 2)
"""The ego, then the nearest."""
OPENCOOD_PARSES: Final = {"ego": 2 + 2 * 3 + 2, "other": 1 + 2}
"""Loads of a label file for a sample of three agents: distances, then own and ego's parameters."""

Cloud = NDArray[np.float32]


class OftenParsed(NaiveReader):
    """The naive reader, parsing as often as OpenCOOD does."""

    def labels(self, path: Path) -> dict[str, Any]:
        times = OPENCOOD_PARSES["ego" if path.parent.name == "1" else "other"]
        for _ in range(times - 1):
            super().labels(path)
        return super().labels(path)


def scan(agent: MadeAgent, cars: tuple[MadeObject, ...], rng: np.random.Generator) -> Cloud:
    """``POINTS`` points as 64 beams see a street between walls, and every car."""
    boxes = [(car, world_box(car, 0)) for car in cars]
    on_cars = [_on_box(car, box, 100, rng) for car, box in boxes]
    count = POINTS - 100 * len(cars)
    low, high = np.linspace(-25.0, -6.0, BEAMS // 3), np.linspace(-5.8, 2.0, BEAMS - BEAMS // 3)
    elevation = np.deg2rad(np.concatenate([low, high]))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, -(-count // BEAMS), endpoint=False)[None]
    x, y, height = agent.start_xyz_m
    wall = np.minimum(
        np.where(np.sin(azimuth) > 0, 34.0 - y, 34.0 + y) / np.abs(np.sin(azimuth)).clip(1e-3),
        80.0 / np.abs(np.cos(azimuth)).clip(1e-3),
    )
    ground = np.where(elevation < 0, height / np.tan(-elevation.clip(None, -1e-4)), np.inf)
    reach = np.minimum(wall, ground) + rng.normal(0, 0.02, (BEAMS, azimuth.size))
    hit = np.stack(
        [
            x + reach * np.cos(azimuth),
            y + reach * np.sin(azimuth),
            height + reach * np.tan(elevation),
        ],
        axis=-1,
    )
    world = np.concatenate([*on_cars, hit.reshape(-1, 3)[:count]])
    pose = world_SE3_lidar(agent, 0)
    own = (world - pose[:3, 3]) @ pose[:3, :3]
    return np.concatenate([own, np.full((len(own), 1), 0.5)], axis=1).astype("<f4")


def _on_box(
    car: MadeObject, box: NDArray[np.float64], count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    inside = rng.uniform(-0.49, 0.49, (count, 3)) * box[3:6]
    turned: NDArray[np.float64] = inside @ rotation(0.0, car.yaw_deg, 0.0).T + box[:3]
    return turned


def frame_root(folder: Path, recordings: int, frames: tuple[int, ...] = (0,)) -> Path:
    """Write recordings that have nothing but the given frames; return their split folder."""
    rng = np.random.default_rng(0)
    columns, rows = np.arange(-60.0, 61.0, 10.0), (-27.0, -18.0, -8.0, 4.0, 12.0, 20.0, 28.0)
    places = [(x, y) for x in columns for y in rows]
    left_out = frozenset(range(frames[-1])) - set(frames)
    agents = tuple(replace(a, without_cloud=left_out, without_labels=left_out) for a in AGENTS)
    for number in range(recordings):
        chosen = rng.permutation(len(places))[:OBJECTS]
        cars = tuple(
            MadeObject(100 + i, (*places[place], 0.8), yaw_deg=float(rng.uniform(-180, 180)))
            for i, place in enumerate(chosen.tolist())
        )
        name = f"2023-01-01-00-00-{number:02d}_1_0"
        scene = write_scene(folder / "train", MadeScene(name, agents, cars, frames[-1] + 1))
        for agent in agents:
            for frame in frames:
                cloud = scan(agent, cars, rng)
                (scene / str(agent.agent_id) / f"{frame:06d}.bin").write_bytes(cloud.tobytes())
    return folder / "train"


def opened(root: Path, cache: Path, agents: int = 3, history: int = 1) -> CooperativeDataset:
    data = DataConfig(
        hist_frames=history, use_map=False, num_workers=0, cache_dir=str(cache), future_fill="none"
    )
    config = RunConfig(
        train_params=TrainParams(max_cav=agents),
        preprocess=Preprocess(cav_lidar_range=GRID),
        turbotrain=TurboTrainBlock(data=data),
    )
    return CooperativeDataset(config, [root], split="train", purpose="evaluate")


def timed(step: Callable[[], object]) -> float:
    """Return milliseconds of CPU time of this process."""
    begin = time.process_time()
    step()
    return 1000 * (time.process_time() - begin)


def run(frames: int, repeats: int) -> dict[str, Any]:
    """Interleave all ways frame by frame: what slows the machine down slows all of them."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = frame_root(Path(folder), frames)
        size = _checked(root, Path(folder) / "checked")
        for repeat in range(repeats):
            dataset = opened(root, Path(folder) / f"cache{repeat}")
            for index in range(frames):
                for way, step in _ways(dataset, index).items():
                    times.setdefault(way, []).append(timed(step))
    result: dict[str, Any] = {"sample": size, "median_ms": {}, "quartiles_ms": {}}
    for way, values in times.items():
        result["median_ms"][way] = statistics.median(values)
        result["quartiles_ms"][way] = statistics.quantiles(values, n=4)[::2]
    medians = result["median_ms"]
    result["faster_than"] = {
        way: {kind: medians[way] / medians[f"ours, {kind}"] for kind in ("cold", "warm")}
        for way in medians
        if not way.startswith("ours")
    }
    result["targets_ms"] = {"cold": COLD_MS, "warm": WARM_MS}
    return result


def scaling(repeats: int) -> dict[str, Any]:
    """Time windows of A agents and T frames, warm, and fit milliseconds = a + b A T."""
    sizes = [(agents, history) for agents in (1, 2, 3) for history in (1, 2, 3, 5)]
    times: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    with tempfile.TemporaryDirectory() as folder:
        root = frame_root(Path(folder), 1, (0, 5, 10, 15, 20))
        datasets = {size: opened(root, Path(folder) / "cache", *size) for size in sizes}
        for repeat in range(repeats + 1):
            for size, dataset in datasets.items():
                last = SampleKey(0, len(dataset) - 1)
                took = timed(partial(_input, dataset, last))
                if repeat:  # the first round warms up
                    times[size].append(took)
    clouds = np.array([agents * history for agents, history in sizes], dtype=np.float64)
    measured = np.array([statistics.median(times[size]) for size in sizes])
    slope, start = np.polyfit(clouds, measured, 1)
    rest = measured - (start + slope * clouds)
    return {
        "median_ms": {
            f"{a} x {t}": ms for (a, t), ms in zip(sizes, measured.tolist(), strict=True)
        },
        "ms_per_agent_and_frame": float(slope),
        "ms_at_zero": float(start),
        "r_squared": float(1 - (rest**2).sum() / ((measured - measured.mean()) ** 2).sum()),
    }


def _input(dataset: CooperativeDataset, key: SampleKey) -> Batch:
    return collate([dataset[key]])


def _ways(dataset: CooperativeDataset, index: int) -> dict[str, Callable[[], object]]:
    """Return name -> what makes one sample; cold comes first and leaves the labels in memory."""
    ours = partial(_input, dataset, SampleKey(0, index))
    scene = dataset.reader.scenes[index].name
    peers = {way: partial(reader, scene, 0, KEPT) for way, reader in _peers(dataset).items()}
    return {"ours, cold": ours, "ours, warm": ours, **peers}


def _peers(dataset: CooperativeDataset) -> dict[str, NaiveReader]:
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {
        "naive, libyaml": NaiveReader(dataset, fast),
        "naive": NaiveReader(dataset, yaml.SafeLoader),
        "naive, parsing as often as OpenCOOD": OftenParsed(dataset, yaml.SafeLoader),
    }


def _checked(root: Path, cache: Path) -> dict[str, Any]:
    """Warm up, and refuse to time two different things."""
    dataset = opened(root, cache)
    reader = _peers(dataset)["naive, libyaml"]
    for index in range(2):
        key = SampleKey(0, index)
        sample, prepared = dataset.sample(key), dataset[key]
        check_same(prepared, reader(sample.scene, sample.frame, sample.agent_ids))
    assert prepared.truth is not None
    assert prepared.targets is not None
    return {
        "agents": len(sample.agent_ids),
        "points_per_agent": [len(clouds[-1]) for clouds in sample.points],
        "voxels": len(prepared.voxels.counts),
        "objects": len(prepared.truth.boxes),
        "anchors": list(prepared.targets.labels.shape),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the dated .json")
    options = parser.parse_args()
    results = run(options.frames, options.repeats)
    results["scaling"] = scaling(options.repeats)
    config = {"frames": options.frames, "repeats": options.repeats, "range": GRID}
    if options.out is None:
        sys.stdout.write(json.dumps({"config": config, "results": results}, indent=2) + "\n")
    else:
        write_result(options.out, "frame", config, results)


if __name__ == "__main__":
    main()
