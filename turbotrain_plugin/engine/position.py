"""Where a run stands, and what all its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from turbotrain_plugin.balancing.processes import process_count
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
        self.batch = spread(self.batch, saved_by, processes)


def spread(batch: int, saved_by: int, processes: int) -> int:
    """Return the batches that each of ``processes`` has done where ``saved_by`` did ``batch``."""
    return batch * saved_by // processes


def samples_of_step(batch_size: int, batches: int = 1) -> str:
    """Return the samples of a step: 2, or 8 (2 x 4 processes) where there are more of them.

    Args:
        batch_size: Of a process.
        batches: That a process accumulates.
    """
    processes = process_count()
    factors = [str(batch_size)]
    factors += [f"{batches} batches"] if batches > 1 else []
    factors += [f"{processes} processes"] if processes > 1 else []
    total = str(batch_size * batches * processes)
    return total if len(factors) == 1 else f"{total} ({' x '.join(factors)})"


def another_number(checkpoint: Path, saved_by: int, samples: int) -> str:
    """Return what to say when a run goes on in another number of processes.

    Args:
        checkpoint: What it goes on from.
        saved_by: Processes that saved it.
        samples: Samples of a step of one process.
    """
    return (
        f"{checkpoint} was saved by {saved_by} process(es) and goes on with {process_count()}: the "
        f"same samples of the epoch are done, a step now holds {process_count() * samples} samples."
    )


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
