"""The hybrid schedule: n free steps, then m balanced steps, again and again (TurboTrain)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from turbotrain_plugin.structures import UserError

__all__ = ["HybridSchedule", "ScheduleWarning", "schedule_warnings"]

ABLATED_FREE: Final = (1000, 3000)
"""Smallest and largest number of free steps in the paper's ablation."""
ABLATED_BALANCED: Final = (500, 1500)
"""Smallest and largest number of balanced steps in the paper's ablation."""


class ScheduleWarning(UserWarning):
    """The schedule is allowed, but published or counted evidence speaks against it."""


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
        for name in ("free_steps", "balance_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(
                    f"The balancing schedule needs a whole number >= 0 for {name}, not {value!r}; "
                    "the paper's best is free_steps 2000 and balance_steps 1000."
                )

    def is_balanced(self, step: int) -> bool:
        """Return whether optimiser step ``step`` (from 0) is balanced."""
        if self.balance_steps == 0:
            return False
        return step % (self.free_steps + self.balance_steps) >= self.free_steps

    def cycle(self, step: int) -> int:
        """Return the number of full cycles before ``step`` (0 when nothing is scheduled)."""
        length = self.free_steps + self.balance_steps
        return step // length if length else 0


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
        return [
            f"The run of {total_steps} steps ends before its first balanced step "
            f"({free_steps} free steps come first): nothing is balanced."
        ]
    if total_steps < 2 * cycle:
        return [
            f"The run of {total_steps} steps holds fewer than two full cycles of {free_steps} free "
            f"and {balance_steps} balanced steps ({2 * cycle} steps)."
        ]
    return []
