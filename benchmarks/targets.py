"""Target generation on a grid of 352 x 100 cells with 2 anchors: ours against a loop over objects.

The peer lets every object look at every anchor, as OpenCOOD's and its forks' overlap function does
(theirs is compiled; this one is numpy over all anchors, object by object). Both must find the same
positive anchors, or the benchmark stops. Runs are interleaved.

    python benchmarks/targets.py [--objects 30] [--repeats 31] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the two below

from benchmarks.loader import targets as loop_over_objects
from benchmarks.measure import measure, write_result
from turbotrain_plugin.data import make_targets
from turbotrain_plugin.geometry.anchors import make_anchors
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import GroundTruth

TARGET: Final = 8.0
FUTURE: Final = 6
GRID: Final = BevGrid(
    range_m=(-140.8, -40.0, -5.0, 140.8, 40.0, 3.0), voxel_m=(0.1, 0.1, 0.2), stride=8
)


def objects(count: int) -> GroundTruth:
    """Cars apart from each other, some of them at the border of the grid."""
    rng = np.random.default_rng(0)
    low = [-140.0, -39.0, -1.8, 3.5, 1.5, 1.4, -np.pi]
    boxes = rng.uniform(low, [140.0, 39.0, -0.2, 5.5, 2.2, 2.0, np.pi], size=(count, 7))
    return GroundTruth(
        boxes=boxes.astype(np.float32),
        object_ids=np.arange(count),
        futures=np.zeros((count, FUTURE, 2), np.float32),
        future_valid=np.ones((count, FUTURE), np.bool_),
        past=np.zeros((count, 1, 2), np.float32),
        past_valid=np.ones((count, 1), np.bool_),
        point_counts=np.ones(count, np.int64),
    )


def run(count: int, repeats: int) -> dict[str, Any]:
    anchors: NDArray[np.float32] = make_anchors(
        GRID, length=3.9, width=1.6, height=1.56, z=-1.0, yaws_rad=(0.0, math.pi / 2)
    )
    truth = objects(count)

    def ours() -> int:
        made = make_targets(truth, anchors, pos_threshold=0.6, neg_threshold=0.45)
        return len(made.positive_index)

    def peer() -> int:
        return loop_over_objects(truth.boxes.astype(np.float64), anchors)

    if ours() != peer():  # also warms up
        raise RuntimeError(f"The two differ: {ours()} and {peer()} positive anchors.")
    times = measure({"loop over objects": _step(peer), "ours": _step(ours)}, repeats)
    return {
        "anchors": list(anchors.shape[:3]),
        "objects": count,
        "positive_anchors": ours(),
        "times": times,
        "ours_is_faster": 1 / times["ours"]["ratio"],
        "target": TARGET,
    }


def _step(function: Any) -> Any:  # noqa: ANN401 - a function whose value is dropped
    def step() -> None:
        function()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--out", type=Path, help="folder for the dated .json")
    options = parser.parse_args()
    results = run(options.objects, options.repeats)
    config = {"objects": options.objects, "repeats": options.repeats, "grid": str(GRID)}
    if options.out is None:
        sys.stdout.write(json.dumps({"config": config, "results": results}, indent=2) + "\n")
    else:
        write_result(options.out, "targets", config, results)


if __name__ == "__main__":
    main()
