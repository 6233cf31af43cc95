"""EPA: one number for detecting an object and predicting where it goes.

EPA = (N_hit - alpha N_FP) / N_GT with alpha = 0.5 (Gu et al., ViP3D, CVPR 2023), one class:

- N_hit: matched detections whose object has a valid last step and whose FDE is at most ``miss_m``;
- N_FP: detections that matched no object;
- N_GT: objects with a valid last step (``epa_gt: valid_final``, ViP3D), or all (``all``, UniAD).

A matched object without a full future is neither a hit nor a false positive. The value is clipped
at 0 once, over the whole set; the unclipped one is given too. False positives of samples without
any object count (``count_empty_frames``); ViP3D's script leaves them out.

With R the share of the N_GT objects that are matched and have a valid last step, and MR the miss
rate of `displacement`, EPA before clipping is exactly R (1 - MR) - alpha N_FP / N_GT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation.displacement import final_displacement
from turbotrain_plugin.evaluation.metric import EvaluatedSample, measured


@dataclass(frozen=True, slots=True)
class EndToEndCounts:
    """What EPA is made of.

    Attributes:
        n_hit: Matched objects whose last position was predicted.
        n_fp: Detections without an object.
        n_gt: Objects that count.
        predicted: False when detections came without trajectories.
    """

    n_hit: int = 0
    n_fp: int = 0
    n_gt: int = 0
    predicted: bool = True

    def __add__(self, other: EndToEndCounts) -> EndToEndCounts:
        return EndToEndCounts(
            n_hit=self.n_hit + other.n_hit,
            n_fp=self.n_fp + other.n_fp,
            n_gt=self.n_gt + other.n_gt,
            predicted=self.predicted and other.predicted,
        )


def counts_of(sample: EvaluatedSample, settings: EvaluationConfig) -> EndToEndCounts:
    """Return the counts of one sample (the update of this metric)."""
    paths, truth, pairs = sample.detected.trajectories, sample.truth, sample.pairs
    final = truth.future_valid[:, -1]
    n_hit = 0
    if paths is not None:
        kept = final[pairs.truth]
        errors = final_displacement(paths[pairs.detected[kept]], truth.futures[pairs.truth[kept]])
        n_hit = int((errors <= settings.miss_m).sum())
    ignored = len(truth.boxes) == 0 and not settings.count_empty_frames
    return EndToEndCounts(
        n_hit=n_hit,
        n_fp=0 if ignored else len(sample.detected.boxes) - len(pairs.detected),
        n_gt=int(final.sum()) if settings.epa_gt == "valid_final" else len(truth.boxes),
        predicted=paths is not None or len(sample.detected.boxes) == 0,
    )


def end_to_end_accuracy(counts: EndToEndCounts, alpha: float) -> float | None:
    """Return EPA before clipping; None without objects or without predictions."""
    if counts.n_gt == 0 or not counts.predicted:
        return None
    return (counts.n_hit - alpha * counts.n_fp) / counts.n_gt


@dataclass(frozen=True, slots=True)
class EndToEndValues:
    """EPA over a set, as a fraction; None without objects or without predictions.

    Attributes:
        epa: Clipped at 0.
        epa_unclipped: Not clipped; the one to compare weak models by.
        n_hit: Hits.
        n_fp: False positives.
        n_gt: Objects that count.
    """

    epa: float | None
    epa_unclipped: float | None
    n_hit: int
    n_fp: int
    n_gt: int

    def to_json(self) -> dict[str, Any]:
        """Return the ``end_to_end`` part of ``results.json``."""
        return {
            "epa": self.epa,
            "epa_unclipped": self.epa_unclipped,
            "n_hit": self.n_hit,
            "n_fp": self.n_fp,
            "n_gt": self.n_gt,
        }

    def scalars(self) -> dict[str, float]:
        """Return ``epa`` and ``epa_unclipped``, where measured."""
        return measured({"epa": self.epa, "epa_unclipped": self.epa_unclipped})


class EndToEnd:
    """EPA over a set of samples.

    Args:
        settings: ``miss_m``, ``epa_alpha``, ``epa_gt`` and ``count_empty_frames`` are what counts.
    """

    def __init__(self, settings: EvaluationConfig) -> None:
        self._settings = settings
        self._counts = EndToEndCounts()

    def update(self, sample: EvaluatedSample) -> None:
        """Take in one sample."""
        self._counts += counts_of(sample, self._settings)

    def merge(self, other: EndToEnd) -> None:
        """Take in the samples of another instance."""
        self._counts += other._counts

    def compute(self) -> EndToEndValues:
        """Return the values over all samples."""
        value = end_to_end_accuracy(self._counts, self._settings.epa_alpha)
        return EndToEndValues(
            epa=None if value is None else max(value, 0.0),
            epa_unclipped=value,
            n_hit=self._counts.n_hit,
            n_fp=self._counts.n_fp,
            n_gt=self._counts.n_gt,
        )
