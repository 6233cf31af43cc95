from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.made_detections import car, detected_of, evaluated, truth_of
from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation import AveragePrecision, DetectionValues, EvaluatedSample
from turbotrain_plugin.evaluation.average_precision import (
    ap_global,
    ap_opencood,
    area_under_envelope,
    distance_threshold,
    hits_of,
    match_greedily,
)

NOTHING = 1000.0
"""x of a detection that meets no object."""


def compute(
    samples: Sequence[EvaluatedSample], iou: tuple[float, ...] = (0.3, 0.5, 0.7)
) -> DetectionValues:
    metric = AveragePrecision(replace(EvaluationConfig(), iou=iou))
    for sample in samples:
        metric.update(sample)
    return metric.compute()


def two_samples() -> list[EvaluatedSample]:
    """List in order of samples: hit, miss, hit; in order of scores: miss, hit, hit."""
    first = evaluated(detected_of([car(5)], [0.3]), truth_of([car(5)]), key=("a", 0, 0))
    second = evaluated(
        detected_of([car(NOTHING), car(9)], [0.9, 0.8]), truth_of([car(9)]), key=("b", 0, 0)
    )
    return [first, second]


def test_the_two_definitions_differ_by_the_order_of_the_list() -> None:
    values = compute(two_samples())
    # Precision 1, 1/2, 2/3 -> envelope 1, 2/3, 2/3; hits are the first and the last.
    assert values.ap_opencood["0.50"] == pytest.approx((1 + 2 / 3) / 2)
    # Precision 0, 1/2, 2/3 -> envelope 2/3 throughout.
    assert values.ap_global["0.50"] == pytest.approx(2 / 3)
    assert (values.n_gt, values.n_det) == (2, 3)


def test_opencood_order_is_that_of_the_keys_not_of_arrival() -> None:
    forwards, backwards = compute(two_samples()), compute(two_samples()[::-1])
    assert forwards == backwards


def test_opencood_order_matters_and_global_order_does_not() -> None:
    hits = [hits_of(sample, (0.5,)) for sample in two_samples()]
    assert ap_opencood(hits, 0) == pytest.approx(5 / 6)
    assert ap_opencood(hits[::-1], 0) == pytest.approx(2 / 3)
    assert ap_global(hits, 0) == ap_global(hits[::-1], 0)


def test_compute_twice_gives_the_same() -> None:
    metric = AveragePrecision(EvaluationConfig())
    for sample in two_samples():
        metric.update(sample)
    assert metric.compute() == metric.compute()


@pytest.mark.parametrize(
    ("hits", "n_objects", "expected"),
    [
        ([], 0, None),
        ([True], 0, None),
        ([], 3, 0.0),
        ([False, False], 3, 0.0),
        ([True, True, True], 3, 1.0),
        ([True], 4, 0.25),
        ([False, True], 1, 0.5),
        # The second hit lifts the envelope over the miss before it.
        ([True, False, True, True], 4, (1 + 0.75 + 0.75) / 4),
    ],
)
def test_area_by_hand(hits: list[bool], n_objects: int, expected: float | None) -> None:
    area = area_under_envelope(np.asarray(hits, dtype=bool), n_objects)
    assert area == (expected if expected is None else pytest.approx(expected))


def test_earlier_detection_takes_the_object_and_the_next_takes_what_is_left() -> None:
    iou = np.array([[0.9, 0.6], [0.8, 0.55], [0.7, 0.1]])
    assert match_greedily(iou, [0.5]).tolist() == [[0, 1, -1]]


def test_detection_below_threshold_leaves_its_object_free() -> None:
    iou = np.array([[0.4], [0.6]])
    assert match_greedily(iou, [0.3, 0.5]).tolist() == [[0, -1], [-1, 0]]


def test_reaching_the_threshold_is_a_hit() -> None:
    assert match_greedily(np.array([[0.5]]), [0.5, 0.5000001]).tolist() == [[0], [-1]]


def test_zero_overlap_is_never_a_hit() -> None:
    assert match_greedily(np.zeros((2, 3)), [1e-6]).tolist() == [[-1, -1]]


def test_several_thresholds_in_one_pass_are_the_single_ones() -> None:
    rng = np.random.default_rng(0)
    iou = rng.random((40, 25))
    thresholds = (0.3, 0.5, 0.7, 0.95)
    together = match_greedily(iou, thresholds)
    for row, threshold in zip(together, thresholds, strict=True):
        assert row.tolist() == match_greedily(iou, [threshold])[0].tolist()


def test_scores_decide_who_chooses_first_whatever_the_order_of_the_rows() -> None:
    boxes, truth = [car(0.5), car(0.0)], truth_of([car(0)])
    better_second = evaluated(detected_of(boxes, [0.4, 0.8]), truth)
    better_first = evaluated(detected_of(boxes[::-1], [0.8, 0.4]), truth)
    assert compute([better_second]) == compute([better_first])
    assert compute([better_second]).ap_global["0.50"] == 1.0


def test_duplicates_of_a_detection_are_false_positives() -> None:
    sample = evaluated(detected_of([car(0), car(0)], [0.9, 0.8]), truth_of([car(0), car(20)]))
    assert compute([sample]).ap_global["0.70"] == pytest.approx(0.5)


def test_self_comparison_is_perfect() -> None:
    boxes = [car(10 * i, yaw=0.3 * i) for i in range(5)]
    values = compute([evaluated(detected_of(boxes, [0.9, 0.8, 0.7, 0.6, 0.5]), truth_of(boxes))])
    assert set(values.ap_global.values()) == {1.0}
    assert set(values.ap_opencood.values()) == {1.0}


def test_sample_without_detections_counts_its_objects() -> None:
    found = evaluated(detected_of([car(0)], [0.9]), truth_of([car(0)]), key=("a", 0, 0))
    missed = evaluated(detected_of([], []), truth_of([car(0)]), key=("a", 1, 0))
    assert compute([found, missed]).ap_global["0.50"] == pytest.approx(0.5)


def test_sample_without_objects_counts_its_false_positives() -> None:
    found = evaluated(detected_of([car(0)], [0.3]), truth_of([car(0)]), key=("a", 0, 0))
    wrong = evaluated(detected_of([car(0)], [0.9]), truth_of([]), key=("a", 1, 0))
    assert compute([found, wrong]).ap_global["0.50"] == pytest.approx(0.5)


def test_nothing_at_all_is_none() -> None:
    for samples in ([], [evaluated(detected_of([], []), truth_of([]))]):
        values = compute(samples)
        assert set(values.ap_global.values()) == {None}
        assert set(values.ap_global_by_distance.values()) == {None}
        assert values.scalars() == {}


def test_height_plays_no_part() -> None:
    high = (0.0, 0.0, 5.0, 4.0, 2.0, 1.5, 0.0)
    values = compute([evaluated(detected_of([high], [0.9]), truth_of([car(0)]))])
    assert values.ap_global["0.70"] == 1.0


def test_heading_the_wrong_way_plays_no_part() -> None:
    values = compute([evaluated(detected_of([car(0, yaw=np.pi)], [0.9]), truth_of([car(0)]))])
    assert values.ap_global["0.70"] == 1.0


# ------------------------------------------------------------------------------------- by distance


def test_bins_hold_what_lies_in_them() -> None:
    truth = truth_of([car(10), car(40), car(45), car(80), car(150)])
    found = detected_of([car(10), car(40), car(60), car(150)], [0.9, 0.8, 0.7, 0.6])
    by_distance = compute([evaluated(found, truth)]).ap_global_by_distance
    assert by_distance == {"0-30": 1.0, "30-50": 0.5, "50-100": 0.0}


def test_hit_across_a_border_belongs_to_the_bin_of_its_object() -> None:
    sample = evaluated(detected_of([car(30.2)], [0.9]), truth_of([car(29.8)]))
    assert compute([sample]).ap_global_by_distance == {"0-30": 1.0, "30-50": None, "50-100": None}


def test_lower_end_of_a_bin_belongs_to_it() -> None:
    sample = evaluated(detected_of([car(0, 30)], [0.9]), truth_of([car(0, 30)]))
    assert compute([sample]).ap_global_by_distance["30-50"] == 1.0


def test_bins_are_taken_at_half_overlap_wherever_it_stands_in_the_list() -> None:
    # IoU of boxes 4 m long moved by 1.8 m: 2.2 / 5.8 = 0.38.
    sample = evaluated(detected_of([car(1.8)], [0.9]), truth_of([car(0)]))
    assert compute([sample], (0.3, 0.5)).ap_global_by_distance["0-30"] == 0.0
    assert compute([sample], (0.5, 0.3)).ap_global_by_distance["0-30"] == 0.0
    assert compute([sample], (0.3, 0.7)).ap_global_by_distance["0-30"] == 1.0
    assert distance_threshold((0.7, 0.3)) == 0


# --------------------------------------------------------------------------------------- the class


def test_merge_is_the_whole() -> None:
    first, second = AveragePrecision(EvaluationConfig()), AveragePrecision(EvaluationConfig())
    first.update(two_samples()[1])
    second.update(two_samples()[0])
    first.merge(second)
    assert first.compute() == compute(two_samples())


def test_json_and_scalars_name_the_thresholds() -> None:
    values = compute(two_samples())
    assert list(values.to_json()["ap_global"]) == ["0.30", "0.50", "0.70"]
    assert values.scalars()["ap_0.50"] == values.ap_global["0.50"]
    assert values.scalars()["ap_opencood_0.50"] == values.ap_opencood["0.50"]


@pytest.mark.parametrize("iou", [(), (0.0,), (1.2,), (0.501, 0.5)])
def test_impossible_thresholds_are_refused(iou: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"`iou` must hold thresholds in \(0, 1\]"):
        AveragePrecision(replace(EvaluationConfig(), iou=iou))
