"""Who is let in when: a two-phase signal (arms 0 and 2, then 1 and 3), or stop signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

__all__ = ["CYCLE_S", "GREEN", "RED", "STOP", "YELLOW", "Control", "Signals", "StopSigns"]

GREEN: Final = "green"
YELLOW: Final = "yellow"
RED: Final = "red"
STOP: Final = "stop"
"""Not a light: halt, then go when nobody comes."""

_GREEN_S: Final = 12.0
_YELLOW_S: Final = 3.0
_ALL_RED_S: Final = 1.0
_HALF_S: Final = _GREEN_S + _YELLOW_S + _ALL_RED_S
CYCLE_S: Final = 2 * _HALF_S
_WALK_DELAY_S: Final = 1.5


class Control(Protocol):
    """What tells the arms of a layout to go or to wait."""

    def state(self, arm: int, time_s: float) -> str:
        """Return "green", "yellow", "red" or "stop" for traffic that comes from ``arm``."""
        ...


@dataclass(frozen=True, slots=True)
class StopSigns:
    """Priority for all arms but those with a stop sign."""

    arms: frozenset[int]

    def state(self, arm: int, time_s: float) -> str:  # noqa: ARG002 - signs do not change
        """Return "green" or "stop" for traffic that comes from ``arm``."""
        return STOP if arm in self.arms else GREEN


@dataclass(frozen=True, slots=True)
class Signals:
    """State of the signals over time.

    Attributes:
        offset_s: Time since the start of the green of arms 0 and 2, at time 0.
    """

    offset_s: float

    def state(self, arm: int, time_s: float) -> str:
        """Return "green", "yellow" or "red" for traffic that comes from ``arm``."""
        phase = (time_s + self.offset_s - (arm % 2) * _HALF_S) % CYCLE_S
        if phase < _GREEN_S:
            return GREEN
        return YELLOW if phase < _GREEN_S + _YELLOW_S else RED

    def walk_start(self, arm: int, time_s: float) -> float:
        """Return when people next start over the crosswalk of ``arm``, not before ``time_s``.

        They walk while the crossing road is green, a little after its start.
        """
        start = ((arm + 1) % 2) * _HALF_S + _WALK_DELAY_S - self.offset_s
        return time_s + (start - time_s) % CYCLE_S
