"""What a metric is: pure functions inside, outside a small class that updates, merges, computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation.matching import Pairs
from turbotrain_plugin.structures import DetectedObjects, GroundTruth

SampleKey: TypeAlias = tuple[str, int, int]
"""Scene, frame on the 10 Hz grid, ego id."""


@dataclass(frozen=True, slots=True)
class EvaluatedSample:
    """One sample, checked, cut to the evaluation range and matched.

    Attributes:
        key: Scene, frame, ego id.
        detected: N detections by falling score.
        truth: M objects.
        pairs: Which detection stands for which object.
    """

    key: SampleKey
    detected: DetectedObjects
    truth: GroundTruth
    pairs: Pairs


class MetricValues(Protocol):
    """The numbers of one metric."""

    def to_json(self) -> dict[str, Any]:
        """Return them under the keys of ``results.json``; None where nothing was measured."""
        ...

    def scalars(self) -> dict[str, float]:
        """Return the measured ones under flat names for logs and model selection."""
        ...


Self = TypeVar("Self", bound="Metric")


class Metric(Protocol):
    """Accumulates samples; the order of updates and merges changes no value."""

    def __init__(self, settings: EvaluationConfig) -> None: ...

    def update(self, sample: EvaluatedSample) -> None:
        """Take in one sample."""
        ...

    def merge(self: Self, other: Self) -> None:
        """Take in what another instance of the same settings has seen."""
        ...

    def compute(self) -> MetricValues:
        """Return the values over everything taken in; does not change the state."""
        ...


def measured(values: dict[str, float | None]) -> dict[str, float]:
    """Return the entries that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def planar_distance(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the distance from the ego of (..., >= 2) points whose first columns are x, y."""
    return np.hypot(points[..., 0].astype(np.float64), points[..., 1].astype(np.float64))
