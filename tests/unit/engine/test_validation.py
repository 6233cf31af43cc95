"""Which samples a validation sees, which are drawn."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from turbotrain_plugin.engine.validation import _spread, raw_key, sample_indices


def indices(count: int, limit: int) -> list[int]:
    dataset: Any = range(count)  # all that is asked of it is its length
    return sample_indices(dataset, limit)


@pytest.mark.parametrize("limit", [0, -1, 10, 11])
def test_without_a_limit_below_the_count_every_sample_is_seen_once(limit: int) -> None:
    assert indices(10, limit) == list(range(10))


def test_a_limit_spreads_evenly_from_the_first_to_the_last() -> None:
    assert indices(11, 3) == [0, 5, 10]
    assert indices(100, 2) == [0, 99]
    assert indices(100, 1) == [0]


def test_no_sample_is_seen_twice_and_gaps_are_even() -> None:
    for count in range(1, 60):
        for limit in range(1, count + 1):
            chosen = indices(count, limit)
            assert len(set(chosen)) == len(chosen) == limit
            assert chosen == sorted(chosen)
            assert 0 <= chosen[0] <= chosen[-1] < count
            gaps = {later - earlier for earlier, later in pairwise(chosen)}
            assert not gaps or max(gaps) - min(gaps) <= 2


def test_drawn_positions_lie_inside_and_differ() -> None:
    assert _spread(4, 4) == [0, 1, 2, 3]
    assert _spread(10, 1) == [5]
    assert _spread(10, 2) == [2, 7]
    for count in range(40):
        for wanted in range(45):
            found = _spread(count, wanted)
            assert len(set(found)) == len(found) == min(wanted, count)
            assert all(0 <= position < count for position in found)


def test_evaluation_sees_the_same_sample_in_every_epoch() -> None:
    assert (raw_key(7).epoch, raw_key(7).index) == (0, 7)
