"""Time per sample of our data set against the naive way to read the same files.

The peers do what a straightforward reader does for one window: parse every label file of history
and future (PyYAML's pure Python safe loader, or libyaml's), read and move the clouds, group points
with ``np.unique`` over rows, and match every object with all anchors. They must produce the same
voxels, objects and positive anchors, or the benchmark stops. Samples are those of an evaluation:
fixed ego, no augmentation, no map. ``ours`` reads parsed labels from the cache on disk; the cold
figure is a whole first epoch with an empty cache, the parsing of every file included.

    python benchmarks/loader.py [--root SPLIT_FOLDER] [--repeats 15] [--out DIR]
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the two below

from benchmarks.measure import measure, write_result
from tests.helpers.made_scenes import MadeObject, MadeScene, junction_scene, write_root
from turbotrain_plugin.config import DataConfig, RunConfig, TurboTrainBlock
from turbotrain_plugin.data import CooperativeDataset, PreparedSample, SampleKey
from turbotrain_plugin.geometry.anchors import encode_boxes
from turbotrain_plugin.geometry.boxes import bev_hulls, contains_origin, transform_boxes
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.geometry.poses import invert_rigid, pose_to_matrix, transform_points

CLASSES: Final = ("Car", "PoliceCar", "LongVehicle")
HISTORY: Final = (-20, -15, -10, -5, 0)
FUTURE: Final = (5, 10, 15, 20, 25, 30)
MAX_POINTS: Final = 5
Labels = dict[str, Any]
Step = Callable[[], None]


@dataclass(frozen=True)
class NaiveSample:
    """What is compared with ours: voxel sites, objects, positive anchors."""

    voxels: list[NDArray[np.int64]]
    objects: int
    positives: int


class NaiveReader:
    """One window at a time, nothing kept between two."""

    def __init__(self, dataset: CooperativeDataset, loader: Any) -> None:  # noqa: ANN401
        self.dataset, self.loader = dataset, loader
        self.folders = {scene.name: scene.folder for scene in dataset.reader.scenes}

    def __call__(self, scene: str, now: int, kept: tuple[int, ...]) -> NaiveSample:
        """``kept``: agents, ego first; who is near enough is not what is timed."""
        folder = self.folders[scene]
        agents = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        order = [str(agent) for agent in kept] + [a for a in agents if int(a) not in kept]
        files = {
            (agent, offset): self.labels(folder / agent / f"{now + offset:06d}.yaml")
            for agent in order
            for offset in (*HISTORY, *FUTURE)
            if (folder / agent / f"{now + offset:06d}.yaml").exists()
        }
        ego_SE3_world = invert_rigid(pose_to_matrix(files[order[0], 0]["lidar_pose"]))
        voxels, current = [], []
        for agent in order[: len(kept)]:
            for offset in HISTORY:
                if (agent, offset) not in files:
                    continue
                matrix = ego_SE3_world @ pose_to_matrix(files[agent, offset]["lidar_pose"])
                cloud = read_cloud(folder / agent / f"{now + offset:06d}.bin", agent, matrix)
                voxels.append(unique_voxels(cloud, self.dataset.grid)[0])
                current += [cloud] if offset == 0 else []
        boxes = self.objects(files, order[: len(kept)], ego_SE3_world, np.concatenate(current))
        futures(files, order, list(boxes), ego_SE3_world)
        positives = targets(np.array(list(boxes.values())).reshape(-1, 7), self.dataset.anchors)
        return NaiveSample(voxels, len(boxes), positives)

    def labels(self, path: Path) -> Labels:
        found: Labels = yaml.load(path.read_text(encoding="utf-8"), Loader=self.loader)
        return found

    def objects(
        self,
        files: dict[tuple[str, int], Labels],
        kept: list[str],
        ego_SE3_world: NDArray[np.float64],
        cloud: NDArray[np.float32],
    ) -> dict[int, NDArray[np.float64]]:
        """Union by id, in the ego frame, in range, hit by a point."""
        low, high = np.array(self.dataset.grid.range_m[:3]), np.array(self.dataset.grid.range_m[3:])
        found: dict[int, NDArray[np.float64]] = {}
        for agent in kept:
            for name, item in (files[agent, 0].get("vehicles") or {}).items():
                if int(name) in found or item["obj_type"] not in CLASSES:
                    continue
                box = transform_boxes(ego_SE3_world, world_box(item)[None])
                if contains_origin(box)[0] or not ((box[0, :3] >= low) & (box[0, :3] < high)).all():
                    continue
                if points_inside(cloud, box[0]):
                    found[int(name)] = box[0]
        return found


def world_box(item: Labels) -> NDArray[np.float64]:
    centre = np.array(item["location"]) + np.array(item["center"])
    size, yaw = 2 * np.array(item["extent"]), np.deg2rad(item["angle"][1])
    return np.concatenate([centre, size, [yaw]])


def points_inside(cloud: NDArray[np.float32], box: NDArray[np.float64]) -> int:
    offset = cloud[:, :3] - box[:3]
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    along = offset[:, 0] * cosine + offset[:, 1] * sine
    across = offset[:, 1] * cosine - offset[:, 0] * sine
    local = np.stack([along, across, offset[:, 2]], axis=1)
    return int((np.abs(local) <= box[3:6] / 2).all(axis=1).sum())


def read_cloud(path: Path, agent: str, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    points = points[~np.isnan(points[:, :3]).any(axis=1)]
    if int(agent) >= 0:
        x, y = points[:, 0], points[:, 1]
        points = points[~((x >= -1.95) & (x <= 2.95) & (y >= -1.1) & (y <= 1.1))]
    points[:, 3] = 0
    return np.asarray(transform_points(matrix, points))


def unique_voxels(
    points: NDArray[np.float32], grid: BevGrid
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sites (V, 3) as x, y, z and the first points of each (V, 5, 4)."""
    scaled = (points[:, :3] - np.array(grid.range_m[:3])) / np.array(grid.voxel_m)
    inside = ((scaled >= 0) & (scaled < grid.voxel_counts)).all(axis=1)
    points, index = points[inside], np.floor(scaled[inside]).astype(np.int64)
    sites, owner, counts = np.unique(index, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(owner.reshape(-1), kind="stable")
    owner = owner.reshape(-1)[order]
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    grouped = np.zeros((len(sites), MAX_POINTS, 4), np.float32)
    first = slot < MAX_POINTS
    grouped[owner[first], slot[first]] = points[order][first]
    return sites, grouped


def futures(
    files: dict[tuple[str, int], Labels],
    order: list[str],
    ids: list[int],
    ego_SE3_world: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Centres (M, steps, 2) at every other time, NaN where no agent has the object."""
    offsets = (*HISTORY, *FUTURE)
    track = np.full((len(ids), len(offsets), 2), np.nan)
    for step, offset in enumerate(offsets):
        for row, wanted in enumerate(ids):
            for agent in order:
                item = (files.get((agent, offset), {}).get("vehicles") or {}).get(wanted)
                if item is not None:
                    centre = world_box(item)[:3]
                    track[row, step] = (ego_SE3_world @ np.append(centre, 1.0))[:2]
                    break
    return track


def targets(boxes: NDArray[np.float64], anchors: NDArray[np.float32]) -> int:
    """Number of positive anchors; every object looks at every anchor."""
    flat = anchors.reshape(-1, 7)
    hulls = bev_hulls(flat)
    area = (hulls[:, 2] - hulls[:, 0]) * (hulls[:, 3] - hulls[:, 1])
    best, owner = np.zeros(len(flat)), np.zeros(len(flat), np.int64)
    forced: dict[int, int] = {}
    for row, hull in enumerate(bev_hulls(boxes)):
        width = np.minimum(hulls[:, 2], hull[2]) - np.maximum(hulls[:, 0], hull[0])
        height = np.minimum(hulls[:, 3], hull[3]) - np.maximum(hulls[:, 1], hull[1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        overlap = shared / (area + (hull[2] - hull[0]) * (hull[3] - hull[1]) - shared)
        owner[overlap > best] = row
        best = np.maximum(best, overlap)
        if overlap.max() > 0:
            forced[int(overlap.argmax())] = row
    positive = best > 0.6
    for place, row in forced.items():
        positive[place], owner[place] = True, row
    if positive.any():
        encode_boxes(boxes[owner[positive]], flat[positive].astype(np.float64))
    return int(positive.sum())


def busy_root(folder: Path) -> Path:
    """A junction with a hundred cars, for machines without a synthetic root."""
    rng = np.random.default_rng(0)
    places = itertools.product(np.arange(-60.0, 65.0, 10.0), np.arange(-36.0, 40.0, 9.0))
    cars = tuple(
        MadeObject(100 + i, (x + 4.0, y, 0.8), (float(rng.uniform(-8, 8)), 0.0))
        for i, (x, y) in enumerate(places)
    )
    base = junction_scene("busy_1_0", frames=60)
    return write_root(folder, {"train": [MadeScene(base.name, base.agents, cars, base.frames)]})


def config_for(cache: Path) -> RunConfig:
    data = DataConfig(use_map=False, num_workers=0, cache_dir=str(cache), future_fill="none")
    return RunConfig(turbotrain=TurboTrainBlock(data=data))


def opened(root: Path, cache: Path) -> CooperativeDataset:
    return CooperativeDataset(config_for(cache), [root], split="train", purpose="evaluate")


def check_same(ours: PreparedSample, naive: NaiveSample) -> None:
    """Refuse to time two different things."""
    sites = [
        ours.voxels.coordinates[ours.voxels.coordinates[:, 0] == number][:, :0:-1]
        for number in np.unique(ours.voxels.coordinates[:, 0])
    ]
    same = len(sites) == len(naive.voxels) and all(
        np.array_equal(a[np.lexsort(a.T[::-1])], b)
        for a, b in zip(sites, naive.voxels, strict=True)
    )
    objects = 0 if ours.truth is None else len(ours.truth.boxes)
    positives = 0 if ours.targets is None else len(ours.targets.positive_index)
    if not same or (objects, positives) != (naive.objects, naive.positives):
        raise RuntimeError(
            f"The two readers differ at {ours.key}: same voxels {same}, objects {objects} and "
            f"{naive.objects}, positive anchors {positives} and {naive.positives}."
        )


def timed_readers(dataset: CooperativeDataset, keys: list[SampleKey]) -> dict[str, Step]:
    """Return name -> function that makes one sample, each walking the same keys."""
    loaders = {"naive": yaml.SafeLoader, "naive, libyaml": getattr(yaml, "CSafeLoader", None)}
    found = {
        name: naive_step(NaiveReader(dataset, loader), keys)
        for name, loader in loaders.items()
        if loader is not None
    }
    turn = itertools.cycle(keys)

    def ours() -> None:
        dataset[next(turn)]

    return {**found, "ours": ours}


def naive_step(reader: NaiveReader, keys: list[SampleKey]) -> Step:
    windows = [reader.dataset.sample(key) for key in keys]
    turn = itertools.cycle([(sample.scene, sample.frame, sample.agent_ids) for sample in windows])

    def step() -> None:
        reader(*next(turn))

    return step


def run(root: Path, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        cold = opened(root, Path(folder))
        for index in range(len(cold)):
            cold[SampleKey(0, index)]
        cold_s = (time.process_time() - start) / len(cold)
        warm = opened(root, Path(folder))
        places = np.linspace(0, len(warm) - 1, min(repeats, len(warm))).astype(int)
        keys = [SampleKey(0, int(place)) for place in places]
        fast = NaiveReader(warm, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for key in keys:  # also warms up
            sample = warm.sample(key)
            check_same(warm[key], fast(sample.scene, sample.frame, sample.agent_ids))
        times = measure(timed_readers(warm, keys), repeats)
    return {
        "samples_in_root": len(warm),
        "cold_first_epoch_s_per_sample": cold_s,
        "per_sample": times,
        "ours_is_faster_than": {
            name: times[name]["median_s"] / times["ours"]["median_s"]
            for name in times
            if name.startswith("naive")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, help="split folder ('': a made-up junction)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for the dated .json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or busy_root(Path(folder))
        results = run(root, options.repeats)
        config: dict[str, Any] = {
            "root": "/".join(root.parts[-2:]) if options.root else "made junction",
            "repeats": options.repeats,
        }
        config["grid"] = str(opened(root, Path(folder) / "cache").grid)
        config["window"] = {"history": HISTORY, "future": FUTURE, "map": False, "augment": False}
        config["hypes"] = asdict(config_for(Path()))
    if options.out is None:
        sys.stdout.write(json.dumps({"config": config, "results": results}, indent=2) + "\n")
    else:
        write_result(options.out, "loader", config, results)


if __name__ == "__main__":
    main()
