"""Average precision of BEV detection, under both definitions in use.

**Matching**, the same for both: within a sample the detections choose by falling score; each
looks at the object of highest BEV polygon IoU (no height) among those still free, is a hit when
that IoU reaches the threshold, and then takes the object away. Otherwise it is a false positive.

**Area**, the same for both: precision and recall are cumulated along a list of all detections,
and AP is the area under the monotone precision envelope at all points (VOC 2010).

**The list** is where they differ:

- ``ap_global`` sorts the detections of all samples together by falling score. This is AP as PASCAL
  VOC and COCO define it and as HEAL reports it.
- ``ap_opencood`` concatenates the samples one after the other, sorted by score only within a
  sample. This is what OpenCOOD prints unless ``--global_sort_detections`` is given, and the only
  form in V2X-Real and CooPre. It is no ranking measure: it depends on the order of the samples and
  tends towards the plain final precision times recall. It is here so that numbers can be compared
  with the ones published with that code. Our order is that of the sample keys (scene, frame,
  ego), so that batches and processes do not change it.

The hits are found once, from one IoU matrix a sample, for all thresholds. A sample without
detections still counts its objects; without any object at all AP is None, never NaN.

**By distance** (an extra): hits belong to the distance of their object, false positives to their
own, so that a detection on a border between bins is not punished twice (our choice; CooPre, whose
bins these are, names no rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation.matching import overlap_matrix
from turbotrain_plugin.evaluation.metric import (
    EvaluatedSample,
    SampleKey,
    measured,
    planar_distance,
)

DISTANCE_BINS_M: Final = ((0.0, 30.0), (30.0, 50.0), (50.0, 100.0))
"""Distance of the centre from the ego in x, y: lower end included, upper not."""


@dataclass(frozen=True, slots=True)
class SampleHits:
    """N detections by falling score against the M objects of one sample, at K thresholds.

    Attributes:
        scores: (N,) float64, falling.
        matched: (K, N) int64, the object each detection hit, -1 for a false positive.
        distance_m: (N,) distance of the detections from the ego.
        object_distance_m: (M,) distance of the objects from the ego.
    """

    scores: NDArray[np.float64]
    matched: NDArray[np.int64]
    distance_m: NDArray[np.float64]
    object_distance_m: NDArray[np.float64]

    @property
    def n_objects(self) -> int:
        """M."""
        return len(self.object_distance_m)


def match_greedily(iou: NDArray[np.float64], thresholds: Sequence[float]) -> NDArray[np.int64]:
    """Let detections choose objects one after the other, at several thresholds in one pass.

    Args:
        iou: (N, M), rows in the order in which detections choose.
        thresholds: K IoU values; reaching one is a hit.

    Returns:
        (K, N) chosen object, -1 where there was none.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    matched = np.full((len(limits), len(iou)), -1, dtype=np.int64)
    if iou.shape[1] == 0:
        return matched
    free = np.ones((len(limits), iou.shape[1]), dtype=bool)
    every = np.arange(len(limits))
    for row, overlaps in enumerate(iou):
        open_overlaps = np.where(free, overlaps, -1.0)
        best = open_overlaps.argmax(axis=1)
        hit = open_overlaps[every, best] >= limits
        matched[hit, row] = best[hit]
        free[every[hit], best[hit]] = False
    return matched


def hits_of(sample: EvaluatedSample, thresholds: Sequence[float]) -> SampleHits:
    """Return the hits of one sample (the update of this metric)."""
    order = np.argsort(-sample.detected.scores, kind="stable")
    boxes = sample.detected.boxes[order]
    return SampleHits(
        scores=sample.detected.scores[order].astype(np.float64),
        matched=match_greedily(overlap_matrix(boxes, sample.truth.boxes), thresholds),
        distance_m=planar_distance(boxes),
        object_distance_m=planar_distance(sample.truth.boxes),
    )


def area_under_envelope(hits: NDArray[np.bool_], n_objects: int) -> float | None:
    """Return the area under the monotone precision envelope of one list of detections.

    Args:
        hits: (N,) in list order.
        n_objects: Number of objects, found or not.

    Returns:
        A fraction in [0, 1]; None without objects.
    """
    if n_objects == 0:
        return None
    true_positives = np.cumsum(hits)
    precision = true_positives / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall rises by one object at each hit; where there is none, nothing is added.
    return float(envelope[hits].sum() / n_objects)


def ap_global(samples: Sequence[SampleHits], index: int) -> float | None:
    """Return AP at threshold ``index`` with all detections sorted together; ties keep their order.

    Args:
        samples: Hits of every sample.
        index: Which of the K thresholds.
    """
    scores = _concatenate([sample.scores for sample in samples])
    hits = _concatenate([sample.matched[index] >= 0 for sample in samples]).astype(bool)
    order = np.argsort(-scores, kind="stable")
    return area_under_envelope(hits[order], sum(sample.n_objects for sample in samples))


def ap_opencood(samples: Sequence[SampleHits], index: int) -> float | None:
    """Return AP at threshold ``index`` with the samples concatenated as they come.

    Args:
        samples: Hits of every sample, in the order that defines the value.
        index: Which of the K thresholds.
    """
    hits = _concatenate([sample.matched[index] >= 0 for sample in samples]).astype(bool)
    return area_under_envelope(hits, sum(sample.n_objects for sample in samples))


def restrict(sample: SampleHits, index: int, low_m: float, high_m: float) -> SampleHits:
    """Return threshold ``index`` of a sample with only what lies in [low_m, high_m).

    Hits lie where their object lies, false positives where they are themselves. The restricted
    ``matched`` only tells hits from false positives; its object numbers mean nothing any more.
    """
    matched, objects = sample.matched[index], sample.object_distance_m
    distance = sample.distance_m.copy()
    distance[matched >= 0] = objects[matched[matched >= 0]]
    kept = (distance >= low_m) & (distance < high_m)
    return SampleHits(
        scores=sample.scores[kept],
        matched=matched[None, kept],
        distance_m=distance[kept],
        object_distance_m=objects[(objects >= low_m) & (objects < high_m)],
    )


def distance_threshold(thresholds: Sequence[float]) -> int:
    """Return the index of the threshold that is broken down by distance: 0.5, else the first."""
    return next((i for i, value in enumerate(thresholds) if abs(value - 0.5) < 1e-9), 0)


def threshold_name(iou: float) -> str:
    """Return the key of a threshold in ``results.json``, such as ``0.50``."""
    return f"{iou:.2f}"


@dataclass(frozen=True, slots=True)
class DetectionValues:
    """AP under both definitions, as fractions; None without objects.

    Attributes:
        ap_global: By IoU threshold such as ``0.50``.
        ap_opencood: The same, in the order of the samples.
        ap_global_by_distance: By bin such as ``30-50`` metres, at IoU 0.5.
        n_gt: Objects.
        n_det: Detections.
    """

    ap_global: dict[str, float | None]
    ap_opencood: dict[str, float | None]
    ap_global_by_distance: dict[str, float | None]
    n_gt: int
    n_det: int

    def to_json(self) -> dict[str, Any]:
        """Return the ``detection`` part of ``results.json``."""
        return {
            "ap_global": dict(self.ap_global),
            "ap_opencood": dict(self.ap_opencood),
            "ap_global_by_distance": dict(self.ap_global_by_distance),
            "n_gt": self.n_gt,
            "n_det": self.n_det,
        }

    def scalars(self) -> dict[str, float]:
        """Return ``ap_0.50`` (global), ``ap_opencood_0.50`` and so on."""
        named = {f"ap_{name}": value for name, value in self.ap_global.items()}
        named |= {f"ap_opencood_{name}": value for name, value in self.ap_opencood.items()}
        return measured(named)


class AveragePrecision:
    """Both APs over a set of samples.

    Args:
        settings: ``iou`` is what counts.

    Raises:
        ValueError: When the thresholds are none, out of (0, 1] or equal to two decimals.
    """

    def __init__(self, settings: EvaluationConfig) -> None:
        names = {threshold_name(iou) for iou in settings.iou}
        if (
            not names
            or len(names) != len(settings.iou)
            or not all(0 < t <= 1 for t in settings.iou)
        ):
            raise ValueError(
                "`iou` must hold thresholds in (0, 1] that differ in two decimals. "
                f"Found {list(settings.iou)}."
            )
        self._thresholds = settings.iou
        self._samples: dict[SampleKey, SampleHits] = {}

    def update(self, sample: EvaluatedSample) -> None:
        """Take in one sample."""
        self._samples[sample.key] = hits_of(sample, self._thresholds)

    def merge(self, other: AveragePrecision) -> None:
        """Take in the samples of another instance."""
        self._samples |= other._samples

    def compute(self) -> DetectionValues:
        """Return the values over all samples in the order of their keys."""
        samples = [self._samples[key] for key in sorted(self._samples)]
        names = {i: threshold_name(iou) for i, iou in enumerate(self._thresholds)}
        shown = distance_threshold(self._thresholds)
        return DetectionValues(
            ap_global={name: ap_global(samples, i) for i, name in names.items()},
            ap_opencood={name: ap_opencood(samples, i) for i, name in names.items()},
            ap_global_by_distance={
                f"{low:g}-{high:g}": ap_global([restrict(s, shown, low, high) for s in samples], 0)
                for low, high in DISTANCE_BINS_M
            },
            n_gt=sum(sample.n_objects for sample in samples),
            n_det=sum(len(sample.scores) for sample in samples),
        )


def _concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0)
