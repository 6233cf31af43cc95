from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.made_detections import box_array, car
from turbotrain_plugin.config.training import EvaluationConfig
from turbotrain_plugin.evaluation.matching import (
    MATCHERS,
    assign,
    match_centres,
    match_overlap,
    overlap_matrix,
)


def pairs_of(detected: list[float], truth: list[float], gate_m: float) -> list[tuple[int, int]]:
    """Match boxes along x."""
    found = match_centres(
        box_array([car(x) for x in detected]), box_array([car(x) for x in truth]), gate_m=gate_m
    )
    return list(zip(found.detected.tolist(), found.truth.tolist(), strict=True))


def test_closest_pairs_are_matched() -> None:
    assert pairs_of([0.0, 10.0], [10.5, 0.5], gate_m=2.0) == [(0, 1), (1, 0)]


def test_total_cost_counts_not_the_first_choice() -> None:
    # Greedy would pair 1.0 with 1.2 and leave 0 alone with 2.9, beyond the gate.
    assert pairs_of([1.0, 2.9], [1.2, -0.5], gate_m=2.0) == [(0, 1), (1, 0)]


def test_gate_itself_is_allowed_and_beyond_it_is_not() -> None:
    assert pairs_of([0.0], [2.0], gate_m=2.0) == [(0, 0)]
    assert pairs_of([0.0], [2.001], gate_m=2.0) == []


def test_forbidden_pairs_do_not_take_part_in_the_result() -> None:
    assert pairs_of([0.0, 50.0], [0.1, 90.0], gate_m=2.0) == [(0, 0)]


def test_more_pairs_win_over_closer_ones() -> None:
    cost = np.array([[0.0, 1.9], [1.9, 5.0]])
    pairs = assign(cost, cost <= 2.0)
    assert pairs.detected.tolist() == [0, 1]
    assert pairs.truth.tolist() == [1, 0]


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("name", sorted(MATCHERS))
def test_nothing_to_match(name: str, n: int, m: int) -> None:
    pairs = MATCHERS[name](box_array([car(i) for i in range(n)]), box_array([car(0)] * m))
    assert pairs.detected.shape == pairs.truth.shape == (0,)
    assert pairs.detected.dtype == pairs.truth.dtype == np.int64


def test_each_object_is_taken_once() -> None:
    assert len(pairs_of([0.0, 0.1, 0.2], [0.0], gate_m=2.0)) == 1


def test_distance_is_in_the_plane() -> None:
    low, high = list(car(0)), list(car(0))
    high[2] = 10.0
    assert len(match_centres(box_array([low]), box_array([high]), gate_m=2.0).truth) == 1


def test_overlap_needs_half() -> None:
    # IoU of boxes 4 m long moved by d: (4 - d) / (4 + d); d = 4/3 gives 0.5.
    for moved, expected in ((1.3, 1), (1.4, 0)):
        pairs = match_overlap(box_array([car(moved)]), box_array([car(0)]), min_iou=0.5)
        assert len(pairs.truth) == expected


def test_overlap_matrix_is_float64_and_has_a_shape_without_boxes() -> None:
    assert overlap_matrix(box_array([car(0)]), box_array([])).shape == (1, 0)
    matrix = overlap_matrix(box_array([car(0), car(2)]), box_array([car(0)]))
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix, [[1.0], [1 / 3]], atol=1e-6)


def test_every_choice_of_the_configuration_has_a_matcher() -> None:
    choices = next(
        field.metadata["choices"]
        for field in EvaluationConfig.__dataclass_fields__.values()
        if field.name == "match"
    )
    assert set(MATCHERS) == set(choices)
