"""All metrics of a run over a set of samples, in one mergeable object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.evaluation.average_precision import AveragePrecision
from turbotrain_plugin.evaluation.displacement import Displacement
from turbotrain_plugin.evaluation.end_to_end import EndToEnd
from turbotrain_plugin.evaluation.matching import MATCHERS
from turbotrain_plugin.evaluation.metric import EvaluatedSample, Metric, MetricValues, SampleKey
from turbotrain_plugin.evaluation.protocol import EvaluationProtocol, protocol_of
from turbotrain_plugin.geometry.boxes import inside_range
from turbotrain_plugin.structures import DetectedObjects, GroundTruth, UserError

SCHEMA: Final = 1
"""Version of ``results.json``."""

METRICS: Final[dict[str, type[Metric]]] = {
    "detection": AveragePrecision,
    "prediction": Displacement,
    "end_to_end": EndToEnd,
}
"""Part of ``results.json`` -> the metric that fills it."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """The numbers of an evaluation and the protocol they hold under.

    Attributes:
        values: By part of ``results.json``, as in ``METRICS``.
        protocol: Every choice behind them.
    """

    values: dict[str, MetricValues]
    protocol: EvaluationProtocol

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``results.json`` as plain values; None where not measured."""
        parts = {name: values.to_json() for name, values in self.values.items()}
        return {"schema": SCHEMA, "protocol": self.protocol.to_json(), **parts}

    def scalars(self) -> dict[str, float]:
        """Return what was measured under flat names, such as ``ap_0.50``, ``epa``, ``ade_m``.

        ``ap_0.50`` is ``ap_global``. What was not measured (no objects, no trajectories) is absent.
        """
        return {
            name: value
            for values in self.values.values()
            for name, value in values.scalars().items()
        }


class Evaluator:
    """Accumulates every metric over samples, batch by batch and process by process.

    Detections and objects are cut to the same range by the same rule, matched once, and handed to
    each of ``METRICS``. No value depends on the order of samples, batches or processes. Instances
    are plain data and can be pickled, to be gathered from other processes and merged.

    Args:
        config: The resolved hypes; what counts is recorded in the protocol.
        range_m: Evaluation range x, y, z min, then max; by default ``evaluation.range``, or the
            point range where that is not set.
    """

    def __init__(self, config: RunConfig, *, range_m: Sequence[float] | None = None) -> None:
        settings = config.turbotrain.evaluation
        chosen = range_m
        if chosen is None:
            chosen = settings.range or config.preprocess.cav_lidar_range
        if len(chosen) != 6:
            raise ValueError(f"`range_m` must hold x, y, z min, then max. Found {list(chosen)}.")
        self._range_m = tuple(float(limit) for limit in chosen)
        self._match = settings.match
        self._protocol = protocol_of(config, self._range_m)
        self._metrics = {name: metric(settings) for name, metric in METRICS.items()}
        self._keys: set[SampleKey] = set()

    def update(
        self,
        detections: Sequence[DetectedObjects],
        truths: Sequence[GroundTruth | None],
        keys: Sequence[SampleKey],
    ) -> None:
        """Take in the samples of a batch.

        Args:
            detections: Detections of each sample.
            truths: Objects of each sample.
            keys: Scene, frame and ego of each sample.

        Raises:
            UserError: When a sample has no labels.
            ValueError: When the lengths differ, a sample comes twice, a shape is wrong or a number
                is not finite. Nothing of the batch is taken in then.
        """
        if not len(detections) == len(truths) == len(keys):
            raise ValueError(
                "`detections`, `truths` and `keys` must be equally many. "
                f"Found {len(detections)}, {len(truths)} and {len(keys)}."
            )
        samples = [
            self._prepare(detected, truth, key)
            for detected, truth, key in zip(detections, truths, keys, strict=True)
        ]
        self._claim([sample.key for sample in samples])
        for sample in samples:
            for metric in self._metrics.values():
                metric.update(sample)

    def merge(self, other: Evaluator) -> None:
        """Take in what another evaluator of the same configuration has seen.

        Raises:
            ValueError: When the protocols differ or a sample was evaluated by both.
        """
        if self._protocol != other._protocol:
            raise ValueError("`other` must have been made with the same configuration and range.")
        self._claim(sorted(other._keys))
        for name, metric in self._metrics.items():
            metric.merge(other._metrics[name])

    def compute(self) -> EvaluationResult:
        """Return the values over everything taken in; more may be taken in afterwards."""
        return EvaluationResult(
            values={name: metric.compute() for name, metric in self._metrics.items()},
            protocol=self._protocol.with_samples(self._keys),
        )

    def _prepare(
        self, detected: DetectedObjects, truth: GroundTruth | None, key: SampleKey
    ) -> EvaluatedSample:
        if truth is None:
            raise UserError(
                f"Scene {key[0]!r}, frame {key[1]}, ego {key[2]} has no labels and cannot be "
                "evaluated; name a labelled split."
            )
        _check_truth(truth, key)
        _check_detected(detected, truth, key)
        detected = _select_detected(detected, self._inside(detected.boxes))
        truth = _select_truth(truth, self._inside(truth.boxes))
        pairs = MATCHERS[self._match](detected.boxes, truth.boxes)
        return EvaluatedSample(key, detected, truth, pairs)

    def _inside(self, boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.asarray(inside_range(boxes, self._range_m), dtype=bool)

    def _claim(self, keys: Sequence[SampleKey]) -> None:
        twice = self._keys.intersection(keys)
        if twice or len(set(keys)) != len(keys):
            example = sorted(twice or {key for key in keys if keys.count(key) > 1})[0]
            raise ValueError(f"`keys` must name every sample once. Found {example} again.")
        self._keys.update(keys)


def _check_detected(detected: DetectedObjects, truth: GroundTruth, key: SampleKey) -> None:
    count = len(detected.scores)
    _check_array("detections.boxes", detected.boxes, (count, 7), key)
    _check_array("detections.scores", detected.scores, (count,), key)
    if detected.trajectories is not None:
        shape = (count, truth.futures.shape[1], 2)
        _check_array("detections.trajectories", detected.trajectories, shape, key)


def _check_truth(truth: GroundTruth, key: SampleKey) -> None:
    count, steps = truth.future_valid.shape
    if steps < 1:
        raise ValueError(f"`truths.futures` must hold at least one step. Found none in {key}.")
    _check_array("truths.boxes", truth.boxes, (count, 7), key)
    if truth.futures.shape != (count, steps, 2):
        raise ValueError(
            f"`truths.futures` must have shape {(count, steps, 2)}. "
            f"Found {truth.futures.shape} in {key}."
        )
    # Positions of invalid steps are nobody's business: they may hold anything.
    _check_array("truths.futures", truth.futures[truth.future_valid], (-1, 2), key)


def _check_array(
    name: str, values: NDArray[np.float32], shape: tuple[int, ...], key: SampleKey
) -> None:
    fits = values.ndim == len(shape) and all(
        wanted in (-1, found) for wanted, found in zip(shape, values.shape, strict=False)
    )
    if not fits:
        raise ValueError(f"`{name}` must have shape {shape}. Found {values.shape} in {key}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite. Found NaN or infinity in {key}.")


def _select_detected(detected: DetectedObjects, kept: NDArray[np.bool_]) -> DetectedObjects:
    paths = detected.trajectories
    return DetectedObjects(
        boxes=detected.boxes[kept],
        scores=detected.scores[kept],
        trajectories=None if paths is None else paths[kept],
    )


def _select_truth(truth: GroundTruth, kept: NDArray[np.bool_]) -> GroundTruth:
    return GroundTruth(**{f.name: getattr(truth, f.name)[kept] for f in fields(truth)})
