"""Where a run stands, and what all its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.engine.interrupts import StopRequest
from turbotrain_plugin.engine.records import Board, MetricsLog


@dataclass(slots=True)
class Position:
    """Where a run stands; all of it is in the checkpoint, and alike on all processes.

    Attributes:
        stage: Index of the stage.
        epoch: Epochs of the stage that are done.
        batch: Batches of the running epoch that each process has done.
        stage_step: Optimiser steps of the stage.
        global_step: Optimiser steps of the run.
        bad_in_a_row: Steps in a row that were not taken.
        best: Best validation score of the stage so far.
        since_best: Validations since then.
        seconds: Time spent in the stage.
        first_losses: Total losses of the first steps.
        last_losses: Total losses of the latest steps.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    stage_step: int = 0
    global_step: int = 0
    bad_in_a_row: int = 0
    best: float = -1.0
    since_best: int = 0
    seconds: float = 0.0
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)

    def spread(self, saved_by: int, processes: int) -> None:
        """Go on with another number of processes, at the same sample of the epoch.

        The order of an epoch does not depend on the number of processes, each batch of theirs is
        the next piece of it. Where the pieces do not meet, the one begun is begun again: at most
        one batch of each process is seen twice, none is left out. Steps keep counting.
        """
        self.batch = self.batch * saved_by // processes


@dataclass(slots=True)
class RunContext:
    """What all stages of a run share; only the first process has a log, and writes files."""

    config: RunConfig
    folder: Path
    device: torch.device
    stop: StopRequest
    log: MetricsLog | None
    board: Board
    stage_records: list[dict[str, Any]]
