from __future__ import annotations

from dataclasses import replace

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
from turbotrain_plugin.evaluation import Displacement, DisplacementValues, EvaluatedSample
from turbotrain_plugin.evaluation.displacement import average_displacement, final_displacement


def compute(*samples: EvaluatedSample, moving_m: float = 2.0) -> DisplacementValues:
    metric = Displacement(replace(EvaluationConfig(), moving_m=moving_m))
    for sample in samples:
        metric.update(sample)
    return metric.compute()


def driving(speed: float, count: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(count, F, 2) positions of cars that start at x = 10 i and move along x, m per step."""
    x = 10.0 * np.arange(count)[:, None] + speed * np.arange(1, STEPS + 1)
    return np.stack([x, np.zeros_like(x)], axis=-1)


def test_pure_functions_by_hand() -> None:
    truth = np.zeros((1, 3, 2), np.float32)
    predicted = np.array([[[3, 4], [0, 1], [0, 2]]], np.float32)
    every = np.ones((1, 3), bool)
    assert average_displacement(predicted, truth, every).tolist() == pytest.approx([8 / 3])
    assert average_displacement(predicted, truth, np.array([[1, 0, 1]], bool)).tolist() == [3.5]
    assert final_displacement(predicted, truth).tolist() == [2.0]


def test_self_comparison_has_no_error() -> None:
    paths = driving(3.0, count=4)
    boxes = [car(10.0 * i) for i in range(4)]
    values = compute(
        evaluated(detected_of(boxes, [0.9] * 4, paths=paths), truth_of(boxes, futures=paths))
    )
    assert (values.ade_m, values.fde_m, values.mr) == (0.0, 0.0, 0.0)
    assert values.fde_static_m == pytest.approx(3.0 * STEPS)
    assert values.n_matched == values.n_matched_final == values.n_matched_moving == 4


def test_steps_that_are_not_valid_do_not_count() -> None:
    valid = np.array([[True, True, False, False, False, False]])
    futures = driving(1.0)
    futures[~valid] = np.nan
    sample = evaluated(
        detected_of([car(0)], [0.9]), truth_of([car(0)], futures=futures, valid=valid)
    )
    values = compute(sample)
    assert values.ade_m == pytest.approx(1.5)
    assert values.fde_m is None
    assert values.mr is None
    assert values.fde_static_m is None
    assert (values.n_matched, values.n_matched_final) == (1, 0)


def test_pair_without_any_future_is_matched_but_not_measured() -> None:
    truth = truth_of([car(0)], valid=np.zeros((1, STEPS)))
    values = compute(evaluated(detected_of([car(0)], [0.9]), truth))
    assert values.ade_m is None
    assert values.n_matched == 1


def test_last_step_alone_is_enough_for_fde() -> None:
    valid = np.zeros((1, STEPS))
    valid[:, -1] = 1
    detected = detected_of([car(0)], [0.9], end_error_m=[1.5])
    values = compute(evaluated(detected, truth_of([car(0)], valid=valid)))
    assert values.fde_m == values.ade_m == 1.5


@pytest.mark.parametrize(("error", "missed"), [(2.0, 0.0), (2.01, 1.0)])
def test_miss_is_above_the_limit(error: float, missed: float) -> None:
    detected = detected_of([car(0)], [0.9], end_error_m=[error])
    assert compute(evaluated(detected, truth_of([car(0)]))).mr == missed


def test_all_pairs_weigh_the_same_not_all_samples() -> None:
    one = evaluated(detected_of([car(0)], [0.9], end_error_m=[4.0]), truth_of([car(0)]))
    boxes = [car(10.0 * i) for i in range(3)]
    three = evaluated(detected_of(boxes, [0.9] * 3), truth_of(boxes))
    values = compute(one, three)
    assert values.fde_m == 1.0
    assert values.mr == 0.25


def test_objects_and_detections_without_partner_do_not_count() -> None:
    detected = detected_of([car(0), car(50)], [0.9, 0.8], end_error_m=[1.0, 9.0])
    values = compute(evaluated(detected, truth_of([car(0), car(-40)])))
    assert values.fde_m == 1.0
    assert values.n_matched == 1


def test_static_baseline_stays_at_the_detected_centre() -> None:
    truth = truth_of([car(0)], futures=driving(2.0))
    values = compute(evaluated(detected_of([car(1.0)], [0.9]), truth))
    assert values.fde_static_m == pytest.approx(2.0 * STEPS - 1.0)


def test_moving_objects_are_those_that_end_elsewhere() -> None:
    boxes = [car(0), car(10), car(20)]
    futures = driving(0.0, count=3)
    futures[1, -1, 0] += 2.0
    futures[2, 2, 0] += 9.0  # leaves and comes back: net displacement 0
    truth = truth_of(boxes, futures=futures)
    detected = detected_of(boxes, [0.9] * 3, paths=driving(0.0, count=3), end_error_m=[5, 1, 7])
    values = compute(evaluated(detected, truth))
    assert values.n_matched_moving == 1
    assert values.fde_moving_m == pytest.approx(1.0)
    assert values.fde_moving_static_m == pytest.approx(2.0)
    assert compute(evaluated(detected, truth), moving_m=2.01).fde_moving_m is None


def test_movement_is_the_objects_own_not_the_detections() -> None:
    truth = truth_of([car(0)])
    detected = detected_of([car(1.9)], [0.9], end_error_m=[30.0])
    assert compute(evaluated(detected, truth), moving_m=1.0).n_matched_moving == 0


def test_trajectories_follow_their_detection() -> None:
    boxes = [car(0), car(10)]
    truth = truth_of(boxes, futures=driving(2.0, count=2))
    swapped = detected_of(boxes[::-1], [0.9, 0.8], paths=driving(2.0, count=2)[::-1])
    assert compute(evaluated(swapped, truth)).fde_m == 0.0


def test_without_trajectories_only_the_baseline_is_known() -> None:
    detected = replace(detected_of([car(0)], [0.9]), trajectories=None)
    values = compute(evaluated(detected, truth_of([car(0)], futures=driving(1.0))))
    assert (values.ade_m, values.fde_m, values.mr, values.fde_moving_m) == (None,) * 4
    assert values.fde_static_m == pytest.approx(STEPS)
    assert values.n_matched == 1
    assert values.scalars() == {
        "fde_static_m": pytest.approx(STEPS),
        "fde_moving_static_m": pytest.approx(STEPS),
    }


def test_sample_without_detections_says_nothing_about_trajectories() -> None:
    nothing = replace(detected_of([], []), trajectories=None)
    values = compute(
        evaluated(nothing, truth_of([car(0)])),
        evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)])),
    )
    assert values.fde_m == 0.0


@pytest.mark.parametrize("empty", [True, False])
def test_nothing_at_all_is_none(empty: bool) -> None:
    samples = [] if empty else [evaluated(detected_of([], []), truth_of([]))]
    values = compute(*samples)
    assert values.scalars() == {}
    assert values.n_matched == 0
    assert set(values.to_json().values()) == {None, 0}


def test_merge_is_the_whole_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    samples = [evaluated(*random_sample(rng, objects=9, false_positives=3)) for _ in range(12)]
    whole = compute(*samples)
    first, second = Displacement(EvaluationConfig()), Displacement(EvaluationConfig())
    for sample in samples[::3]:
        second.update(sample)
    for index, sample in enumerate(samples):
        if index % 3:
            first.update(sample)
    first.merge(second)
    assert first.compute() == whole
    assert whole.fde_m is not None
    assert whole.fde_m > 0
