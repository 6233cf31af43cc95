"""Ctrl-C and SIGTERM end a run at the next step boundary, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has saved its state."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Context in which the signals are remembered instead of raised.

    A second Ctrl-C raises ``KeyboardInterrupt`` at once, for somebody who does not want to wait.

    Args:
        patient: It is remembered like the first instead: a launcher passes on what a terminal has
            already sent to all processes.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        again = self.signal_number is not None and number == signal.SIGINT
        if again and not self._patient:
            raise KeyboardInterrupt
        self.signal_number = number
