from __future__ import annotations

import pytest

from turbotrain_plugin.balancing import HybridSchedule, schedule_warnings
from turbotrain_plugin.structures import UserError


def test_free_phase_first_then_balanced_then_again() -> None:
    schedule = HybridSchedule(3, 2)
    kinds = [schedule.is_balanced(step) for step in range(12)]
    assert kinds == [False, False, False, True, True] * 2 + [False, False]


@pytest.mark.parametrize(
    ("step", "balanced"), [(0, 0), (1999, 0), (2000, 1), (2999, 1), (3000, 0), (5000, 1), (5999, 1)]
)
def test_the_papers_schedule(step: int, balanced: int) -> None:
    assert HybridSchedule(2000, 1000).is_balanced(step) == bool(balanced)


@pytest.mark.parametrize("free", [0, 1, 7])
def test_without_balanced_steps_nothing_is_balanced(free: int) -> None:
    assert not any(HybridSchedule(free, 0).is_balanced(step) for step in range(20))


def test_without_free_steps_everything_is_balanced() -> None:
    assert all(HybridSchedule(0, 3).is_balanced(step) for step in range(20))


def test_cycle_counts_full_cycles() -> None:
    assert [HybridSchedule(2, 1).cycle(step) for step in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert HybridSchedule(0, 0).cycle(9) == 0


@pytest.mark.parametrize("value", [-1, 2.5, "2000", True, None])
def test_anything_but_a_whole_number_is_refused(value: object) -> None:
    with pytest.raises(UserError, match="whole number >= 0 for free_steps"):
        HybridSchedule(value, 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="whole number >= 0 for balance_steps"):
        HybridSchedule(1, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(("free", "balanced"), [(1000, 500), (2000, 1000), (3000, 1500)])
def test_nothing_is_said_about_ablated_schedules(free: int, balanced: int) -> None:
    assert schedule_warnings(free, balanced, 10**6) == []


def test_balancing_every_step_is_warned_about_loudly() -> None:
    (message,) = schedule_warnings(0, 1000)
    assert "EVERY step" in message
    assert "AP 0.0" in message


@pytest.mark.parametrize(("free", "balanced"), [(999, 500), (1000, 499), (3001, 1500), (10, 5)])
def test_outside_the_ablated_band(free: int, balanced: int) -> None:
    (message,) = schedule_warnings(free, balanced)
    assert "outside what the paper tried" in message


def test_never_balancing_needs_no_warning() -> None:
    assert schedule_warnings(0, 0, 5) == []
    assert schedule_warnings(5, 0, 5) == []


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (2000, "ends before its first balanced step"),
        (2001, "fewer than two full cycles"),
        (5999, "fewer than two full cycles"),
        (6000, None),
    ],
)
def test_runs_too_short_for_the_schedule(total: int, expected: str | None) -> None:
    found = schedule_warnings(2000, 1000, total)
    if expected is None:
        assert found == []
    else:
        (message,) = found
        assert expected in message
