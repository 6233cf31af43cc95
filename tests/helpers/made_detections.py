"""Detections and objects made by hand or at random, to test evaluation on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import EvaluationConfig, RunConfig
from turbotrain_plugin.evaluation import EvaluatedSample, SampleKey
from turbotrain_plugin.evaluation.matching import MATCHERS
from turbotrain_plugin.structures import DetectedObjects, GroundTruth

STEPS = 6
"""Future steps F of everything made here."""


def run_config(**evaluation: Any) -> RunConfig:  # noqa: ANN401 - any key of the block
    """Return the default configuration with other ``turbotrain.evaluation`` keys."""
    config = RunConfig()
    settings = replace(config.turbotrain.evaluation, **evaluation)
    return replace(config, turbotrain=replace(config.turbotrain, evaluation=settings))


def car(x: float, y: float = 0.0, yaw: float = 0.0, length: float = 4.0) -> tuple[float, ...]:
    """Return a box 2 m wide."""
    return (x, y, -1.0, length, 2.0, 1.5, yaw)


def box_array(boxes: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Return (N, 7) float32, also for none."""
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 7)


def truth_of(
    boxes: Sequence[Sequence[float]],
    *,
    futures: NDArray[Any] | None = None,
    valid: NDArray[Any] | None = None,
) -> GroundTruth:
    """Return objects that stay where they are, with all steps valid, unless told otherwise."""
    array = box_array(boxes)
    count = len(array)
    stay = np.repeat(array[:, None, :2], STEPS, axis=1)
    return GroundTruth(
        boxes=array,
        object_ids=np.arange(count, dtype=np.int64),
        futures=stay if futures is None else futures.astype(np.float32),
        future_valid=np.ones((count, STEPS), bool) if valid is None else valid.astype(bool),
        past=array[:, None, :2].copy(),
        past_valid=np.ones((count, 1), bool),
        point_counts=np.full(count, 10, dtype=np.int64),
    )


def detected_of(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    *,
    paths: NDArray[Any] | None = None,
    end_error_m: Sequence[float] | None = None,
) -> DetectedObjects:
    """Return detections predicted to stay, or whose last position is off along x."""
    array = box_array(boxes)
    if paths is None:
        paths = np.repeat(array[:, None, :2], STEPS, axis=1)
    if end_error_m is not None:
        paths = paths.copy()
        paths[:, -1, 0] += np.asarray(end_error_m, dtype=np.float32)
    return DetectedObjects(array, np.asarray(scores, np.float32), paths.astype(np.float32))


def evaluated(
    detected: DetectedObjects,
    truth: GroundTruth,
    *,
    key: SampleKey = ("scene", 0, 0),
    match: str = EvaluationConfig().match,
) -> EvaluatedSample:
    """Return the sample as metrics get it, not cut to any range."""
    return EvaluatedSample(key, detected, truth, MATCHERS[match](detected.boxes, truth.boxes))


def random_sample(
    rng: np.random.Generator, *, objects: int, false_positives: int, all_valid: bool = False
) -> tuple[DetectedObjects, GroundTruth]:
    """Return moving objects, most of them detected with noise, and detections of nothing.

    Objects stand in a loose crowd, so that matches compete; some futures end early.
    """
    boxes = np.zeros((objects, 7))
    boxes[:, :2] = rng.uniform(-30, 30, (objects, 2))
    boxes[:, 2:6] = (-1.0, 4.2, 1.9, 1.6)
    boxes[:, 6] = rng.uniform(-np.pi, np.pi, objects)
    steps = np.arange(1, STEPS + 1)[None, :, None]
    speed = rng.choice([0.0, 1.0], (objects, 1, 1)) * rng.normal(0, 3, (objects, 1, 2))
    futures = boxes[:, None, :2] + speed * steps
    ends = rng.integers(0, STEPS + 3, (objects, 1))
    valid = np.ones((objects, STEPS), bool) if all_valid else np.arange(STEPS)[None] < ends

    seen = rng.random(objects) < 0.8
    near = boxes[seen] + rng.normal(0, 1, (int(seen.sum()), 7)) * (0.5, 0.5, 0.1, 0, 0, 0, 0.1)
    wrong = np.zeros((false_positives, 7))
    wrong[:, :2] = rng.uniform(-30, 30, (false_positives, 2))
    wrong[:, 2:6] = (-1.0, 4.0, 2.0, 1.5)
    near_paths = futures[seen] + rng.normal(0, 0.5, (len(near), 1, 2)) * steps
    paths = np.concatenate([near_paths, np.repeat(wrong[:, None, :2], STEPS, axis=1)])
    scores = np.sort(rng.uniform(0.2, 1, len(paths)))[::-1]
    order = rng.permutation(len(paths))
    everything = np.concatenate([near, wrong])[order].astype(np.float32)
    detected = DetectedObjects(
        everything, scores.astype(np.float32), paths[order].astype(np.float32)
    )
    return detected, truth_of(boxes.tolist(), futures=futures, valid=valid)
