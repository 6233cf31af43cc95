"""How far predicted trajectories are off: ADE, FDE, miss rate, and the same for standing still.

One trajectory per object, over matched pairs only, all pairs of the set weighing the same:

- ADE: mean over the valid steps of a pair of the distance, then mean over pairs with any.
- FDE: distance at the last step, only over pairs where that step is valid.
- MR: share of the same pairs with FDE above ``miss_m`` (2 m as in ViP3D and UniAD).

Most vehicles stand or crawl, which flatters any predictor. So FDE is also given for the baseline
that says every detected object stays at its detected centre (``fde_static_m``: the same pairs, the
same detections, no motion), and for both over moving objects alone: those whose last position is
at least ``moving_m`` from their current one. A predictor that does not beat the baseline there has
not learned to predict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation.metric import EvaluatedSample, measured


def average_displacement(
    predicted: NDArray[np.float32], truth: NDArray[np.float32], valid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return (K,) mean distance over the valid steps, metres.

    Args:
        predicted: (K, F, 2) positions.
        truth: (K, F, 2) positions in the same frame.
        valid: (K, F), at least one step of each row.
    """
    distance = _distance(predicted, truth)
    total: NDArray[np.float64] = np.where(valid, distance, 0.0).sum(axis=1)
    mean: NDArray[np.float64] = total / valid.sum(axis=1)
    return mean


def final_displacement(
    predicted: NDArray[np.float32], truth: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return (K,) distance at the last step of (K, F, 2) positions, metres."""
    return _distance(predicted[:, -1], truth[:, -1])


@dataclass(frozen=True, slots=True)
class DisplacementErrors:
    """Errors of the pairs of one or many samples.

    Attributes:
        n_matched: Pairs.
        ade_m: (K,) of the pairs with a valid step.
        fde_m: (L,) of the pairs with a valid last step; as long as ``fde_static_m`` unless
            nothing was predicted.
        fde_static_m: (L,) of the prediction to stay.
        moving: (L,) whether the object moves.
        predicted: False when detections came without trajectories.
    """

    n_matched: int
    ade_m: NDArray[np.float64]
    fde_m: NDArray[np.float64]
    fde_static_m: NDArray[np.float64]
    moving: NDArray[np.bool_]
    predicted: bool


def errors_of(sample: EvaluatedSample, moving_m: float) -> DisplacementErrors:
    """Return the errors of one sample (the update of this metric).

    Args:
        sample: Matched sample.
        moving_m: Net displacement from which an object moves, metres.
    """
    detected, truth = sample.pairs.detected, sample.pairs.truth
    futures, valid = sample.truth.futures[truth], sample.truth.future_valid[truth]
    some, final = valid.any(axis=1), valid[:, -1]
    stay = np.broadcast_to(sample.detected.boxes[detected, None, :2], futures.shape)
    displaced = _distance(futures[final, -1], sample.truth.boxes[truth[final], :2])
    ade = fde = np.zeros(0)
    if sample.detected.trajectories is not None:
        paths = sample.detected.trajectories[detected]
        ade = average_displacement(paths[some], futures[some], valid[some])
        fde = final_displacement(paths[final], futures[final])
    return DisplacementErrors(
        n_matched=len(detected),
        ade_m=ade,
        fde_m=fde,
        fde_static_m=final_displacement(stay[final], futures[final]),
        moving=displaced >= moving_m,
        predicted=sample.detected.trajectories is not None or len(sample.detected.boxes) == 0,
    )


@dataclass(frozen=True, slots=True)
class DisplacementValues:
    """Displacement errors over a set; None where no pair was measured.

    Attributes:
        ade_m: Average displacement error, metres.
        fde_m: Final displacement error, metres.
        mr: Miss rate, a fraction.
        fde_static_m: Final displacement error of staying, metres.
        fde_moving_m: ``fde_m`` of moving objects.
        fde_moving_static_m: ``fde_static_m`` of moving objects.
        n_matched: Matched pairs.
        n_matched_final: Those with a valid last step: what FDE and MR are taken over.
        n_matched_moving: Those of them that move.
    """

    ade_m: float | None
    fde_m: float | None
    mr: float | None
    fde_static_m: float | None
    fde_moving_m: float | None
    fde_moving_static_m: float | None
    n_matched: int
    n_matched_final: int
    n_matched_moving: int

    def to_json(self) -> dict[str, Any]:
        """Return the ``prediction`` part of ``results.json``."""
        counts = {
            "n_matched": self.n_matched,
            "n_matched_final": self.n_matched_final,
            "n_matched_moving": self.n_matched_moving,
        }
        return self._errors() | counts

    def scalars(self) -> dict[str, float]:
        """Return ``ade_m``, ``fde_m``, ``mr`` and so on, where measured."""
        return measured(self._errors())

    def _errors(self) -> dict[str, float | None]:
        return {
            "ade_m": self.ade_m,
            "fde_m": self.fde_m,
            "mr": self.mr,
            "fde_static_m": self.fde_static_m,
            "fde_moving_m": self.fde_moving_m,
            "fde_moving_static_m": self.fde_moving_static_m,
        }


def summarise(samples: list[DisplacementErrors], miss_m: float) -> DisplacementValues:
    """Return the values over samples; their order changes nothing (the sums are exact).

    Args:
        samples: Errors of every sample.
        miss_m: FDE above which a prediction misses, metres.
    """
    static = _join([sample.fde_static_m for sample in samples])
    moving = _join([sample.moving for sample in samples]).astype(bool)
    ade = _join([sample.ade_m for sample in samples])
    fde = _join([sample.fde_m for sample in samples])
    known = all(sample.predicted for sample in samples)
    return DisplacementValues(
        ade_m=_mean(ade) if known else None,
        fde_m=_mean(fde) if known else None,
        mr=_mean(fde > miss_m) if known else None,
        fde_moving_m=_mean(fde[moving]) if known else None,
        fde_static_m=_mean(static),
        fde_moving_static_m=_mean(static[moving]),
        n_matched=sum(s.n_matched for s in samples),
        n_matched_final=len(static),
        n_matched_moving=int(moving.sum()),
    )


class Displacement:
    """ADE, FDE and miss rate over a set of samples.

    Args:
        settings: ``miss_m`` and ``moving_m`` are what counts.
    """

    def __init__(self, settings: EvaluationConfig) -> None:
        self._miss_m = settings.miss_m
        self._moving_m = settings.moving_m
        self._samples: list[DisplacementErrors] = []

    def update(self, sample: EvaluatedSample) -> None:
        """Take in one sample."""
        self._samples.append(errors_of(sample, self._moving_m))

    def merge(self, other: Displacement) -> None:
        """Take in the samples of another instance."""
        self._samples.extend(other._samples)

    def compute(self) -> DisplacementValues:
        """Return the values over all samples."""
        return summarise(self._samples, self._miss_m)


def _distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    offset = first.astype(np.float64) - second.astype(np.float64)
    return np.hypot(offset[..., 0], offset[..., 1])


def _mean(values: NDArray[Any]) -> float | None:
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0)
