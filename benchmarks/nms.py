"""Rotated suppression of 1000 boxes: ours against greedy loops over shapely polygons.

The peer is what OpenCOOD and its forks do, written anew: polygons, then for each kept box one
intersection and one union with every box that is left. A second, stronger peer lets shapely find
the touching pairs with its spatial index and intersect them in one call. All get the same boxes
and must keep the same ones. Runs are interleaved, so that a busy machine slows all alike.

    python benchmarks/nms.py [--boxes 1000] [--repeats 9] [--out DIR]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from turbotrain_plugin.geometry.boxes import bev_corners
from turbotrain_plugin.geometry.iou import nms_bev

THRESHOLD = 0.15
TARGET = 50.0
Boxes = NDArray[np.float64]
Scores = NDArray[np.float64]
Suppress = Callable[[Boxes, Scores], list[int]]


def scattered(rng: np.random.Generator, count: int) -> Boxes:
    """Boxes anywhere: most are kept, and the peer's loop over what is left stays long."""
    low = [-102.4, -40, -2, 3.5, 1.5, 1.4, -np.pi]
    return rng.uniform(low, [102.4, 40, 0, 5.5, 2.2, 2.0, np.pi], size=(count, 7))


def heaps(rng: np.random.Generator, count: int) -> Boxes:
    """Sixteen boxes around each object, as a head makes them: the peer's loop is short."""
    objects = scattered(rng, -(-count // 16))
    boxes = np.repeat(objects, 16, axis=0)[:count]
    return boxes + rng.normal(size=boxes.shape) * [0.3, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05]


def ours(boxes: Boxes, scores: Scores) -> list[int]:
    kept = nms_bev(
        torch.from_numpy(boxes), torch.from_numpy(scores), THRESHOLD, max_candidates=len(boxes)
    )
    return [int(index) for index in kept]


def shapely_loop(boxes: Boxes, scores: Scores) -> list[int]:
    polygons = [shapely.Polygon(corners) for corners in bev_corners(boxes)]
    left = np.argsort(-scores, kind="stable").tolist()
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        polygon = polygons[best]
        left = [
            index
            for index in left
            if polygon.intersection(polygons[index]).area
            <= THRESHOLD * polygon.union(polygons[index]).area
        ]
    return kept


def shapely_indexed(boxes: Boxes, scores: Scores) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    polygons = np.asarray(shapely.polygons(bev_corners(boxes[order])))
    first, second = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    first, second = first[first < second], second[first < second]
    shared = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    areas = np.asarray(shapely.area(polygons))
    over = shared > THRESHOLD * (areas[first] + areas[second] - shared)
    weaker: dict[int, list[int]] = {}
    for i, j in zip(first[over].tolist(), second[over].tolist(), strict=True):
        weaker.setdefault(i, []).append(j)
    alive = np.ones(len(boxes), dtype=bool)
    for i in range(len(boxes)):
        if alive[i]:
            alive[weaker.get(i, [])] = False
    return [int(index) for index in order[alive]]


METHODS: dict[str, Suppress] = {
    "ours": ours,
    "shapely double loop": shapely_loop,
    "shapely spatial index": shapely_indexed,
}


def measure(boxes: Boxes, scores: Scores, repeats: int) -> dict[str, Any]:
    """Return median milliseconds of each method over interleaved repeats.

    Raises:
        RuntimeError: When the methods keep different boxes.
    """
    kept = {name: method(boxes, scores) for name, method in METHODS.items()}  # also warms up
    if any(result != kept["ours"] for result in kept.values()):
        raise RuntimeError(
            f"The methods keep different boxes: { ({n: len(k) for n, k in kept.items()}) }."
        )
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(repeats):
        for name, method in METHODS.items():
            start = time.perf_counter()
            method(boxes, scores)
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "kept": len(kept["ours"]),
        "median_ms": medians,
        "all_ms": times,
        "ratio_to_double_loop": medians["shapely double loop"] / medians["ours"],
        "ratio_to_spatial_index": medians["shapely spatial index"] / medians["ours"],
    }


def processor() -> str:
    """Return the processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def run(boxes: int, repeats: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    scenes = {"scattered": scattered(rng, boxes), "heaps": heaps(rng, boxes)}
    scores = rng.uniform(0.2, 1.0, boxes)
    results = {name: measure(scene, scores, repeats) for name, scene in scenes.items()}
    return {
        "benchmark": "nms",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "hardware": {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "shapely": shapely.__version__,
            "geos": shapely.geos_version_string,
        },
        "configuration": {
            "boxes": boxes,
            "repeats": repeats,
            "seed": seed,
            "iou_threshold": THRESHOLD,
            "torch_threads": torch.get_num_threads(),
            "device": "cpu",
        },
        "target_ratio_to_double_loop": TARGET,
        "scenes": results,
    }


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Rotated suppression (NMS)",
        "",
        f"{report['date']}. Medians of {report['configuration']['repeats']} interleaved repeats.",
        "",
        "| scene | kept | " + " | ".join(f"{name}, ms" for name in METHODS) + " | ours is faster |",
        "|---|---:|" + "---:|" * len(METHODS) + "---|",
    ]
    for scene, result in report["scenes"].items():
        times = " | ".join(f"{result['median_ms'][name]:.1f}" for name in METHODS)
        lines.append(
            f"| {scene} | {result['kept']} | {times} | {result['ratio_to_double_loop']:.0f}x than "
            f"the double loop, {result['ratio_to_spatial_index']:.1f}x than the spatial index |"
        )
    ratios = {name: scene["ratio_to_double_loop"] for name, scene in report["scenes"].items()}
    met = ", ".join(f"{name} {'met' if r >= TARGET else 'missed'}" for name, r in ratios.items())
    lines += ["", f"Target, {TARGET:.0f}x the double loop: {met}.", ""]
    for part in ("hardware", "versions", "configuration"):
        values = ", ".join(f"{key} {value}" for key, value in report[part].items())
        lines.append(f"- {part}: {values}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the dated .md and .json")
    options = parser.parse_args()
    report = run(options.boxes, options.repeats, options.seed)
    text = markdown(report)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        stem = options.out / f"nms_{report['date'][:10]}"
        stem.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        stem.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
