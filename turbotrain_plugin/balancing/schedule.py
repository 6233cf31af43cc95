"""Which steps are balanced: n free, then m balanced, again and again (TurboTrain), or other plans.

All schedules are functions of the optimiser step, which is part of the saved state: a resumed run
goes on where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from turbotrain_plugin.structures import UserError

__all__ = [
    "SCHEDULES",
    "HybridSchedule",
    "Schedule",
    "ScheduleWarning",
    "WarmupSchedule",
    "schedule_named",
    "schedule_warnings",
]

ABLATED_FREE: Final = (1000, 3000)
"""Smallest and largest number of free steps in the paper's ablation."""
ABLATED_BALANCED: Final = (500, 1500)
"""Smallest and largest number of balanced steps in the paper's ablation."""


class ScheduleWarning(UserWarning):
    """The schedule is allowed, but published or counted evidence speaks against it."""


class Schedule(Protocol):
    """A plan; its text, ``str(schedule)``, tells two plans apart."""

    @property
    def ever_balances(self) -> bool:
        """Whether there is a balanced step at all."""

    def is_balanced(self, step: int) -> bool:
        """Return whether optimiser step ``step`` (from 0) is balanced."""

    def cycle(self, step: int) -> int:
        """Return the number of full cycles before ``step``."""

    def warnings(self, total_steps: int | None = None) -> list[str]:
        """Return what speaks against it in a run of ``total_steps`` (None: unknown)."""


@dataclass(frozen=True, slots=True)
class HybridSchedule:
    """Which optimiser steps are balanced.

    Step s (from 0, counted over the whole training, never reset by an epoch) is balanced if and
    only if ``s mod (n + m) >= n``: the free phase comes first. ``m = 0`` balances never, ``n = 0``
    always.

    Attributes:
        free_steps: n.
        balance_steps: m.

    Raises:
        UserError: If one of them is not a whole number >= 0.
    """

    free_steps: int
    balance_steps: int

    def __post_init__(self) -> None:
        _check_steps("free_steps", self.free_steps)
        _check_steps("balance_steps", self.balance_steps)

    def __str__(self) -> str:
        if not self.ever_balances:
            return "no balanced step"
        if self.free_steps == 0:
            return "every step balanced"
        return f"{self.free_steps} free steps, then {self.balance_steps} balanced"

    @property
    def ever_balances(self) -> bool:
        """Whether there is a balanced step at all."""
        return self.balance_steps > 0

    def is_balanced(self, step: int) -> bool:
        """Return whether optimiser step ``step`` (from 0) is balanced."""
        if self.balance_steps == 0:
            return False
        return step % (self.free_steps + self.balance_steps) >= self.free_steps

    def cycle(self, step: int) -> int:
        """Return the number of full cycles before ``step`` (0 when nothing is scheduled)."""
        length = self.free_steps + self.balance_steps
        return step // length if length else 0

    def warnings(self, total_steps: int | None = None) -> list[str]:
        """Return what speaks against it; see :func:`schedule_warnings`."""
        return schedule_warnings(self.free_steps, self.balance_steps, total_steps)


@dataclass(frozen=True, slots=True)
class WarmupSchedule:
    """Free steps once, every step balanced from then on. Our choice; the paper has no such row.

    Attributes:
        warmup_steps: Free steps at the start.

    Raises:
        UserError: If it is not a whole number >= 0.
    """

    warmup_steps: int

    def __post_init__(self) -> None:
        _check_steps("warmup_steps", self.warmup_steps)

    def __str__(self) -> str:
        return f"{self.warmup_steps} free steps, then every step balanced"

    @property
    def ever_balances(self) -> bool:
        """Whether there is a balanced step at all."""
        return True

    def is_balanced(self, step: int) -> bool:
        """Return whether optimiser step ``step`` (from 0) is balanced."""
        return step >= self.warmup_steps

    def cycle(self, step: int) -> int:
        """Return 0: there is one cycle."""
        del step
        return 0

    def warnings(self, total_steps: int | None = None) -> list[str]:
        """Return what speaks against it, one sentence each."""
        if self.warmup_steps == 0:
            return schedule_warnings(0, 1, None)
        if total_steps is not None and total_steps <= self.warmup_steps:
            return [_ends_before(self.warmup_steps, total_steps)]
        return []


SCHEDULES: Final = ("hybrid", "every_step", "never", "after_warmup")
"""Names in YAML (``turbotrain.balance.schedule``)."""


def schedule_named(
    name: str,
    *,
    free_steps: float = 2000,
    balance_steps: float = 1000,
    warmup_steps: float = 2000,
    unit: str = "steps",
    total_steps: int | None = None,
) -> Schedule:
    """Return the schedule called ``name``.

    Args:
        name: One of ``SCHEDULES``.
        free_steps: n, read by ``hybrid``.
        balance_steps: m, read by ``hybrid``.
        warmup_steps: Read by ``after_warmup``.
        unit: ``steps``, or ``share``: the three numbers are shares of the run. A share above 0
            comes to one step at least.
        total_steps: Optimiser steps of the run; needed for shares.

    Raises:
        UserError: If a name is unknown or a number does not fit its unit.
    """
    if name not in SCHEDULES or unit not in ("steps", "share"):
        raise UserError(
            f"There is no balancing schedule {name!r} by {unit!r}; choose one of "
            f"{', '.join(SCHEDULES)}, by steps or by share."
        )
    if name == "every_step":
        return HybridSchedule(0, 1)
    if name == "never":
        return HybridSchedule(1, 0)

    def steps(which: str, value: float) -> int:
        return _whole(which, value) if unit == "steps" else _share(which, value, total_steps)

    if name == "after_warmup":
        return WarmupSchedule(steps("warmup_steps", warmup_steps))
    return HybridSchedule(steps("free_steps", free_steps), steps("balance_steps", balance_steps))


def _whole(name: str, value: float) -> int:
    """Return a number of steps; YAML keys that may be shares come as floats."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    _check_steps(name, value)
    return int(value)


def _share(name: str, value: float, total_steps: int | None) -> int:
    if total_steps is None:
        raise ValueError("Parameter `total_steps` should be given with unit 'share'. Found None.")
    if not 0.0 <= value <= 1.0:
        raise UserError(
            f"The balancing schedule needs a share of the run in [0, 1] for {name}, not {value!r}; "
            "with unit 'steps' it is a number of steps."
        )
    return max(round(value * total_steps), 1 if value > 0.0 else 0)


def _check_steps(name: str, value: object) -> None:
    """Raise UserError unless ``value`` is a whole number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(
            f"The balancing schedule needs a whole number >= 0 for {name}, not {value!r}; "
            "the paper's best is free_steps 2000 and balance_steps 1000."
        )


def schedule_warnings(
    free_steps: int, balance_steps: int, total_steps: int | None = None
) -> list[str]:
    """Return what speaks against a schedule, one sentence each; empty when nothing does.

    Args:
        free_steps: n.
        balance_steps: m; nothing is said about a schedule that never balances (0).
        total_steps: Optimiser steps of the run; None when unknown.
    """
    if balance_steps == 0:
        return []
    found: list[str] = []
    if free_steps == 0:
        found.append(
            "EVERY step is balanced (free_steps = 0): the paper's ablation reports AP 0.0 for "
            "balancing at every step from the start; use free_steps 2000 and balance_steps 1000."
        )
    elif not (
        ABLATED_FREE[0] <= free_steps <= ABLATED_FREE[1]
        and ABLATED_BALANCED[0] <= balance_steps <= ABLATED_BALANCED[1]
    ):
        found.append(
            f"free_steps {free_steps} and balance_steps {balance_steps} lie outside what the paper "
            f"tried (1000/500 to 3000/1500); at 1000/500 balancing was already worse than none."
        )
    if total_steps is not None:
        found.extend(_length_warnings(free_steps, balance_steps, total_steps))
    return found


def _length_warnings(free_steps: int, balance_steps: int, total_steps: int) -> list[str]:
    """Return what a run of ``total_steps`` is too short for."""
    cycle = free_steps + balance_steps
    if total_steps <= free_steps:
        return [_ends_before(free_steps, total_steps)]
    if total_steps < 2 * cycle:
        return [
            f"The run of {total_steps} steps holds fewer than two full cycles of {free_steps} free "
            f"and {balance_steps} balanced steps ({2 * cycle} steps)."
        ]
    return []


def _ends_before(free_steps: int, total_steps: int) -> str:
    return (
        f"The run of {total_steps} steps ends before its first balanced step "
        f"({free_steps} free steps come first): nothing is balanced."
    )
