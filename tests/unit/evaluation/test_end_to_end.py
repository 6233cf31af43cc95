from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.made_detections import (
    STEPS,
    car,
    detected_of,
    evaluated,
    random_sample,
    truth_of,
)
from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation import Displacement, EndToEnd, EndToEndValues, EvaluatedSample
from turbotrain_plugin.evaluation.end_to_end import EndToEndCounts, end_to_end_accuracy


def compute(*samples: EvaluatedSample, **settings: Any) -> EndToEndValues:  # noqa: ANN401
    metric = EndToEnd(replace(EvaluationConfig(), **settings))
    for sample in samples:
        metric.update(sample)
    return metric.compute()


def worked_example() -> EvaluatedSample:
    """10 objects, 8 detections, 7 matched, 5 of them right at the end."""
    objects = [car(10.0 * i) for i in range(10)]
    boxes = [*objects[:7], car(500.0)]
    errors = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 6.0, 0.0]
    return evaluated(detected_of(boxes, [0.5] * 8, end_error_m=errors), truth_of(objects))


def test_worked_example() -> None:
    values = compute(worked_example())
    assert values.epa == pytest.approx(0.45)
    assert (values.n_hit, values.n_fp, values.n_gt) == (5, 1, 10)
    assert compute(worked_example(), epa_alpha=1.0).epa == pytest.approx(0.40)
    assert compute(worked_example(), miss_m=3.0).epa == pytest.approx(0.55)


def test_self_comparison_is_perfect() -> None:
    boxes = [car(10.0 * i) for i in range(4)]
    assert compute(evaluated(detected_of(boxes, [0.9] * 4), truth_of(boxes))).epa == 1.0


def test_clipped_once_over_the_set() -> None:
    good = evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)]))
    bad = evaluated(detected_of([car(100.0 + 9 * i) for i in range(5)], [0.9] * 5), truth_of([]))
    values = compute(good, bad)
    assert values.epa_unclipped == pytest.approx(1 - 0.5 * 5)
    assert values.epa == 0.0


def test_matched_object_without_full_future_is_neither_hit_nor_false_positive() -> None:
    valid = np.ones((2, STEPS))
    valid[1, -1] = 0
    boxes = [car(0), car(10)]
    sample = evaluated(detected_of(boxes, [0.9, 0.8]), truth_of(boxes, valid=valid))
    vip3d = compute(sample)
    assert (vip3d.n_hit, vip3d.n_fp, vip3d.n_gt) == (1, 0, 1)
    assert vip3d.epa == 1.0
    uniad = compute(sample, epa_gt="all")
    assert (uniad.n_hit, uniad.n_fp, uniad.n_gt) == (1, 0, 2)
    assert uniad.epa == 0.5


@pytest.mark.parametrize(("count_empty_frames", "expected"), [(True, 0.0), (False, 1.0)])
def test_samples_without_objects(count_empty_frames: bool, expected: float) -> None:
    good = evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)]))
    empty = evaluated(detected_of([car(0), car(9)], [0.9, 0.8]), truth_of([]))
    assert compute(good, empty, count_empty_frames=count_empty_frames).epa == expected


def test_sample_whose_objects_have_no_future_is_not_empty() -> None:
    truth = truth_of([car(0)], valid=np.zeros((1, STEPS)))
    sample = evaluated(detected_of([car(50)], [0.9]), truth)
    assert compute(sample, count_empty_frames=False).n_fp == 1


@pytest.mark.parametrize("samples", [[], [(detected_of([car(0)], [0.9]), truth_of([]))]])
def test_without_objects_is_none(samples: list[Any]) -> None:
    values = compute(*(evaluated(*sample) for sample in samples))
    assert values.epa is None
    assert values.epa_unclipped is None
    assert values.scalars() == {}


def test_without_trajectories_is_none() -> None:
    detected = replace(detected_of([car(0)], [0.9]), trajectories=None)
    good = evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)]))
    values = compute(evaluated(detected, truth_of([car(0)])), good)
    assert values.epa is None
    assert (values.n_fp, values.n_gt) == (0, 2)


def test_objects_missed_in_a_sample_without_detections_count() -> None:
    found = evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)]))
    nothing = replace(detected_of([], []), trajectories=None)
    assert compute(found, evaluated(nothing, truth_of([car(0)]))).epa == 0.5


def test_counts_add_up() -> None:
    total = EndToEndCounts(5, 1, 10) + EndToEndCounts(1, 2, 3, predicted=False)
    assert total == EndToEndCounts(6, 3, 13, predicted=False)
    assert end_to_end_accuracy(EndToEndCounts(5, 1, 10), 0.5) == pytest.approx(0.45)
    assert end_to_end_accuracy(total, 0.5) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("match", ["center_2m", "center_1m", "iou_0.5"])
@pytest.mark.parametrize("epa_gt", ["valid_final", "all"])
def test_identity_with_recall_and_miss_rate(seed: int, match: str, epa_gt: str) -> None:
    """EPA = R (1 - MR) - alpha N_FP / N_GT, exactly, however incomplete the futures are."""
    rng = np.random.default_rng(seed)
    settings = replace(EvaluationConfig(), match=match, epa_gt=epa_gt)
    displacement, accuracy = Displacement(settings), EndToEnd(settings)
    for _ in range(5):
        n_objects, n_wrong = int(rng.integers(3, 15)), int(rng.integers(0, 5))
        made = random_sample(rng, objects=n_objects, false_positives=n_wrong)
        sample = evaluated(*made, match=match)
        displacement.update(sample)
        accuracy.update(sample)
    moved, values = displacement.compute(), accuracy.compute()
    assert moved.mr is not None
    recall = moved.n_matched_final / values.n_gt
    expected = recall * (1 - moved.mr) - 0.5 * values.n_fp / values.n_gt
    assert values.epa_unclipped == pytest.approx(expected, abs=1e-12)


def test_identity_with_plain_recall_needs_full_futures() -> None:
    rng = np.random.default_rng(3)
    for all_valid in (True, False):
        sample = evaluated(*random_sample(rng, objects=30, false_positives=4, all_valid=all_valid))
        displacement = Displacement(EvaluationConfig())
        displacement.update(sample)
        moved, values = displacement.compute(), compute(sample, epa_gt="all")
        assert moved.mr is not None
        with_plain_recall = (moved.n_matched * (1 - moved.mr) - 0.5 * values.n_fp) / values.n_gt
        assert (values.epa_unclipped == pytest.approx(with_plain_recall)) is all_valid


def test_merge_is_the_whole() -> None:
    rng = np.random.default_rng(2)
    samples = [evaluated(*random_sample(rng, objects=8, false_positives=2)) for _ in range(6)]
    first, second = EndToEnd(EvaluationConfig()), EndToEnd(EvaluationConfig())
    for sample in samples[:2]:
        first.update(sample)
    for sample in samples[2:]:
        second.update(sample)
    first.merge(second)
    assert first.compute() == compute(*samples)
