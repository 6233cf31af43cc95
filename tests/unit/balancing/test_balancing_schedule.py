from __future__ import annotations

from typing import Any

import pytest

from turbotrain_plugin.balancing import (
    HybridSchedule,
    WarmupSchedule,
    schedule_named,
    schedule_warnings,
)
from turbotrain_plugin.balancing.schedule import SCHEDULES
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


def kinds(name: str, steps: int = 10, **keys: Any) -> list[int]:  # noqa: ANN401
    schedule = schedule_named(name, **keys)
    return [int(schedule.is_balanced(step)) for step in range(steps)]


def test_schedules_by_name() -> None:
    assert kinds("hybrid", free_steps=3, balance_steps=1) == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert kinds("every_step") == [1] * 10
    assert kinds("never") == [0] * 10
    assert kinds("after_warmup", warmup_steps=4) == [0] * 4 + [1] * 6
    assert kinds("after_warmup", warmup_steps=0) == [1] * 10
    with pytest.raises(UserError, match=r"no balancing schedule 'evry' by 'steps'; choose .*never"):
        schedule_named("evry")
    with pytest.raises(UserError, match="by 'epochs'"):
        schedule_named("hybrid", unit="epochs")


def test_schedules_by_share() -> None:
    by_share: Any = {"unit": "share", "total_steps": 10}
    assert kinds("hybrid", free_steps=0.3, balance_steps=0.2, **by_share) == [0, 0, 0, 1, 1] * 2
    assert kinds("after_warmup", warmup_steps=0.5, **by_share) == [0] * 5 + [1] * 5
    # A share above nothing is a step at least, also in the shortest run.
    assert kinds("hybrid", 4, free_steps=1e-9, balance_steps=1e-9, **by_share) == [0, 1, 0, 1]
    assert kinds("hybrid", free_steps=1.0, balance_steps=0.0, **by_share) == [0] * 10


@pytest.mark.parametrize("value", [-0.1, 1.1, 2000])
def test_a_share_lies_between_nothing_and_all(value: float) -> None:
    with pytest.raises(UserError, match=r"share of the run in \[0, 1\] for warmup_steps"):
        schedule_named("after_warmup", warmup_steps=value, unit="share", total_steps=10)


def test_shares_need_the_length_of_the_run() -> None:
    with pytest.raises(ValueError, match="`total_steps` should be given with unit 'share'"):
        schedule_named("hybrid", unit="share")


def test_steps_are_whole_also_when_they_come_as_numbers() -> None:
    assert schedule_named("hybrid", free_steps=3.0, balance_steps=1) == HybridSchedule(3, 1)
    with pytest.raises(UserError, match=r"for warmup_steps, not 0\.5"):
        schedule_named("after_warmup", warmup_steps=0.5)


def test_what_balances_at_all() -> None:
    found = {name: schedule_named(name).ever_balances for name in SCHEDULES}
    assert found == {"hybrid": True, "every_step": True, "never": False, "after_warmup": True}
    assert not HybridSchedule(5, 0).ever_balances


def test_what_schedules_are_called() -> None:
    found = [str(schedule_named(name)) for name in SCHEDULES]
    assert found == [
        "2000 free steps, then 1000 balanced",
        "every step balanced",
        "no balanced step",
        "2000 free steps, then every step balanced",
    ]


def test_warnings_of_every_schedule() -> None:
    assert schedule_named("hybrid").warnings(6000) == []
    assert "fewer than two full cycles" in schedule_named("hybrid").warnings(5999)[0]
    assert "EVERY step" in schedule_named("every_step").warnings(6000)[0]
    assert schedule_named("never").warnings(10) == []
    assert schedule_named("after_warmup").warnings() == []
    assert schedule_named("after_warmup").warnings(2001) == []
    assert "nothing is balanced" in schedule_named("after_warmup").warnings(2000)[0]
    assert "EVERY step" in WarmupSchedule(0).warnings(6000)[0]


def test_a_warm_up_is_one_cycle() -> None:
    assert [WarmupSchedule(2).cycle(step) for step in (0, 1, 2, 5000)] == [0] * 4
