"""AP once more in plain Python: shapely polygons, one threshold at a time, no arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from shapely.geometry import Polygon

from tests.helpers.made_detections import evaluated, random_sample, run_config
from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation import AveragePrecision, Evaluator
from turbotrain_plugin.structures import DetectedObjects, GroundTruth


class Listed(NamedTuple):
    score: float
    is_hit: bool


def polygon(box: list[float]) -> Polygon:
    x, y, _, length, width, _, yaw = box
    cos, sin = math.cos(yaw), math.sin(yaw)
    corners = []
    for along, across in ((1, 1), (-1, 1), (-1, -1), (1, -1)):
        dx, dy = along * length / 2, across * width / 2
        corners.append((x + cos * dx - sin * dy, y + sin * dx + cos * dy))
    return Polygon(corners)


def iou(first: Polygon, second: Polygon) -> float:
    common = float(first.intersection(second).area)
    return common / (float(first.area) + float(second.area) - common)


def list_sample(detected: DetectedObjects, truth: GroundTruth, threshold: float) -> list[Listed]:
    """Let the detections choose in order of their scores; a taken object is removed."""
    remaining = [polygon(box) for box in truth.boxes.astype(float).tolist()]
    ranked = sorted(
        zip(detected.scores.tolist(), detected.boxes.astype(float).tolist(), strict=True),
        key=lambda item: -item[0],
    )
    listed = []
    for score, box in ranked:
        overlaps = [iou(polygon(box), other) for other in remaining]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= threshold:
            remaining.pop(best)
            listed.append(Listed(score, True))
        else:
            listed.append(Listed(score, False))
    return listed


def voc_2010(listed: list[Listed], n_objects: int) -> float:
    """Area under the envelope, with the sentinels of the PASCAL development kit."""
    recalls, precisions, hits = [0.0], [0.0], 0
    for count, item in enumerate(listed, start=1):
        hits += item.is_hit
        recalls.append(hits / n_objects)
        precisions.append(hits / count)
    recalls.append(1.0)
    precisions.append(0.0)
    for i in range(len(precisions) - 2, -1, -1):
        precisions[i] = max(precisions[i], precisions[i + 1])
    return sum((recalls[i] - recalls[i - 1]) * precisions[i] for i in range(1, len(recalls)))


@pytest.mark.parametrize("seed", range(6))
def test_both_definitions_equal_the_slow_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = [
        random_sample(rng, objects=int(rng.integers(0, 9)), false_positives=int(rng.integers(0, 5)))
        for _ in range(8)
    ]
    metric = AveragePrecision(EvaluationConfig())
    for frame, sample in enumerate(samples):
        metric.update(evaluated(*sample, key=("scene", frame, 0)))
    values = metric.compute()
    n_objects = sum(len(truth.boxes) for _, truth in samples)
    for threshold in (0.3, 0.5, 0.7):
        listed = [item for sample in samples for item in list_sample(*sample, threshold)]
        ranked = sorted(listed, key=lambda item: -item.score)
        name = f"{threshold:.2f}"
        assert values.ap_opencood[name] == pytest.approx(voc_2010(listed, n_objects), abs=1e-9)
        assert values.ap_global[name] == pytest.approx(voc_2010(ranked, n_objects), abs=1e-9)
    assert values.ap_global != values.ap_opencood


def test_range_cut_equals_the_slow_one() -> None:
    rng = np.random.default_rng(11)
    limits = (-20.0, -15.0, -5.0, 20.0, 15.0, 3.0)
    evaluator = Evaluator(run_config(), range_m=limits)
    expected_objects = expected_detections = 0
    for frame in range(10):
        detected, truth = random_sample(rng, objects=20, false_positives=5)
        evaluator.update([detected], [truth], [("scene", frame, 0)])
        expected_objects += sum(_inside(box, limits) for box in truth.boxes.tolist())
        expected_detections += sum(_inside(box, limits) for box in detected.boxes.tolist())
    counts = evaluator.compute().to_json()["detection"]
    assert (counts["n_gt"], counts["n_det"]) == (expected_objects, expected_detections)
    assert 0 < expected_objects < 200


def _inside(box: list[float], limits: tuple[float, ...]) -> bool:
    x_min, y_min, _, x_max, y_max, _ = limits
    low_x, low_y, high_x, high_y = polygon(box).bounds
    return bool(low_x >= x_min and high_x <= x_max and low_y >= y_min and high_y <= y_max)
