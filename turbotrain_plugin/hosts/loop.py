"""One stage of a host's run: epochs in the host's order, steps, validation, checkpoints."""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.data import DataLoader

from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import HostBlock
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.interrupts import Interrupted, StopRequest
from turbotrain_plugin.engine.position import another_number, spread
from turbotrain_plugin.engine.records import (
    LOG,
    Board,
    MetricsLog,
    Progress,
    balance_line,
    finite,
    mean,
)
from turbotrain_plugin.engine.steps import refuse_endless
from turbotrain_plugin.hosts import randomness
from turbotrain_plugin.hosts.learner import HostLearner, HostStep, StepKeys, take_step
from turbotrain_plugin.hosts.rates import Rates
from turbotrain_plugin.hosts.session import Session

_LOSS_WINDOW: Final = 10
"""Steps averaged for the first and the last loss of a stage."""


@dataclass(slots=True)
class HostPosition:
    """Where a host's run stands; all of it is in the checkpoint."""

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    stage_step: int = 0
    global_step: int = 0
    bad_in_a_row: int = 0
    best: float | None = None
    seconds: float = 0.0
    first_losses: list[float] = field(default_factory=list)
    last_losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HostStage:
    """A stage and what it works with.

    Attributes:
        name: In logs and checkpoints.
        index: In the run.
        epoches: Epochs.
        batch_size: Samples per step of a process.
        steps: Steps of an epoch.
        learner: What is trained.
        optimizer: Plain, or a ``GradientBalancer``.
        rates: Moves the learning rate.
        train_set: The host's.
        train_loader: The host's, for its own streams.
        validation_loader: The host's; None: the stage is not validated.
        hypes: Parsed.
    """

    name: str
    index: int
    epoches: int
    batch_size: int
    steps: int
    learner: HostLearner
    optimizer: torch.optim.Optimizer
    rates: Rates
    train_set: Any
    train_loader: DataLoader[Any]
    validation_loader: DataLoader[Any] | None
    hypes: dict[str, Any]


@dataclass(slots=True)
class HostRun:
    """What all stages of a host's run share; only the first process has a log, and writes files."""

    session: Session
    block: HostBlock
    folder: Path
    device: torch.device
    stop: StopRequest
    log: MetricsLog | None
    board: Board
    workers: int
    records: list[dict[str, Any]]

    def asked_to_stop(self) -> int:
        """Return the signal that came to this process or another one, 0 when none did."""
        return exchange.largest(self.stop.signal_number or 0)

    def stop_if_asked(self) -> None:
        """Leave when a signal has come; call it where ``last.ckpt`` holds the position.

        Raises:
            Interrupted: On all processes.
        """
        number = self.asked_to_stop()
        if number:
            raise Interrupted(number)


class HostLoop:
    """Runs one stage from a position to its end."""

    def __init__(self, stage: HostStage, run: HostRun, position: HostPosition) -> None:
        self.position = position
        self._stage = stage
        self._run = run
        self._host = run.session.host
        fp16_on_gpu = run.block.amp == "fp16" and run.device.type == "cuda"
        self._scaler = torch.amp.GradScaler("cuda") if fp16_on_gpu else None
        self._generator = torch.Generator(device=run.device)
        self._own_streams = run.block.host.random == "host"
        self._seed: tuple[int | str, ...] = (run.block.host.seed, stage.name)
        self._keys = StepKeys(run.block.host.tasks, run.block.amp, run.block.clip_norm)

    # ---------------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Train until the stage ends.

        Raises:
            Interrupted: When asked to stop; the state is saved.
            UserError: When steps stay non-finite.
        """
        position, stage = self.position, self._stage
        done = stage.steps * position.epoch + position.batch
        with Progress(stage.name, stage.steps * stage.epoches, done) as progress:
            while position.epoch < stage.epoches:
                self._epoch(progress)
        self._close()

    def _epoch(self, progress: Progress) -> None:
        position, stage = self.position, self._stage
        if position.epoch > 0:
            self._seed_step("between", position.epoch)
            self._host.between_epochs(stage.train_set)
        if position.batch == 0:
            stage.rates.epoch_begins(position.epoch)
        begin = time.monotonic()
        with closing(self._batches()) as batches:
            for batch in batches:
                done = position.batch
                position.batch += 1
                mine = not self._host.skips(batch)
                if not exchange.largest(mine):  # no process has one
                    continue
                result = self._step(batch if mine else None, done)
                now = time.monotonic()
                position.seconds += now - begin
                self._record(result, now - begin)
                progress.advance(
                    f"epoch {position.epoch + 1}/{stage.epoches}  loss {result.total:.4f}"
                )
                begin = now
                self._after_step()
        self._end_epoch()

    def _batches(self) -> Generator[Any, None, None]:
        position, stage = self.position, self._stage
        if self._own_streams:
            return randomness.walk(stage.train_loader)
        return randomness.walk(
            randomness.seeded_loader(
                stage.train_set,
                stage.batch_size,
                position.epoch,
                position.batch,
                self._run.workers,
                *self._seed,
            )
        )

    def _seed_step(self, *parts: int | str) -> None:
        seed = derive_seed(*self._seed, *parts)
        self._generator.manual_seed(seed)
        if not self._own_streams:
            randomness.seed_all(seed)

    def _step(self, batch: dict[str, Any] | None, done: int) -> HostStep:
        position, stage = self.position, self._stage
        own = (exchange.rank(),) if exchange.rank() else ()
        self._seed_step("step", position.stage_step, *own)
        stage.rates.step_begins(position.epoch, done)
        ego = None if batch is None else self._moved(batch)
        result = take_step(
            stage.learner, ego, stage.optimizer, self._scaler, self._keys, self._generator
        )
        if result.culprit:
            result.culprit += f" in batch {done + 1} of epoch {position.epoch + 1}"
        stage.rates.step_done(position.epoch, done)
        position.stage_step += 1
        position.global_step += 1
        return result

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return ``batch['ego']`` on the device, as the host hands it to its model."""
        moved = self._run.session.modules.train_utils.to_device(batch, self._run.device)
        self._host.tell_epoch(moved, self.position.epoch)
        ego: dict[str, Any] = moved["ego"]
        return ego

    def _record(self, result: HostStep, seconds: float) -> None:
        position, stage = self.position, self._stage
        line: dict[str, Any] = {
            "stage": stage.name,
            "step": position.global_step,
            "stage_step": position.stage_step,
            "epoch": position.epoch,
            "loss": finite({"": result.total}).get(""),
            "losses": finite(result.terms),
            "lr": stage.optimizer.param_groups[0]["lr"],
            "gradient_norm": finite({"": result.gradient_norm}).get(""),
            "balanced": bool(result.record is not None and result.record.balanced),
            "taken": result.taken,
            "seconds": round(seconds, 4),
        }
        if result.record is not None and result.record.balanced:
            assert isinstance(stage.optimizer, GradientBalancer)
            line |= balance_line(result.record, stage.optimizer.window)
        if self._run.log is not None:
            self._run.log.write(line)
        scalars = {f"{stage.name}/{name}": value for name, value in result.terms.items()}
        scalars |= {f"{stage.name}/loss": result.total, f"{stage.name}/lr": line["lr"]}
        self._run.board.scalars(scalars, position.global_step)
        self._count(result)

    def _count(self, result: HostStep) -> None:
        position = self.position
        if not result.taken:
            position.bad_in_a_row += 1
            LOG.warning("step %d not taken: %s", position.stage_step, result.culprit)
            refuse_endless(position.bad_in_a_row, self._run.block.max_bad_steps, result.culprit)
            return
        position.bad_in_a_row = 0
        if len(position.first_losses) < _LOSS_WINDOW:
            position.first_losses.append(result.total)
        position.last_losses = [*position.last_losses, result.total][-_LOSS_WINDOW:]

    def _after_step(self) -> None:
        every = self._run.block.logging.save_steps
        number = self._run.asked_to_stop()
        due = number or (every and self.position.stage_step % every == 0)
        if due and not self._own_streams:  # else last.ckpt holds the last epoch's end
            self.save()
        if number:
            raise Interrupted(number)

    def _end_epoch(self) -> None:
        position, stage, params = self.position, self._stage, self._stage.hypes["train_params"]
        validated = stage.validation_loader is not None
        if validated and position.epoch % params["save_freq"] == 0:
            self._keep_epoch(position.epoch + 1)
        if validated and position.epoch % params["eval_freq"] == 0:
            if not self._own_streams:
                self.save()  # a validation may be long: whoever stops it goes on right before it
            self._validate()
        stage.rates.epoch_ends(position.epoch)
        position.epoch += 1
        position.batch = 0
        self.save()
        self._run.stop_if_asked()

    # --------------------------------------------------------------------------------- validation

    def _validate(self) -> None:
        """Log the host's own measure, its mean loss over the validation set.

        The first process alone computes it, to the numbers of one process; the others ask with it
        whether to stop, and so know that it is there.
        """
        stage, position = self._stage, self.position
        self._seed_step("validation", position.epoch)
        losses: list[float] = []
        with closing(self._validation_batches()) as batches, torch.no_grad():
            for batch in batches:
                if not self._own_streams:
                    self._run.stop_if_asked()
                if batch is not None:
                    stage.learner.module.eval()
                    found = stage.learner.losses(self._moved(batch), self._generator)
                    losses.append(float(found.total.detach()))
        if self._run.log is not None:
            self._judge(losses, self._run.log)

    def _validation_batches(self) -> Generator[Any, None, None]:
        """Yield the host's batches; on other processes than the first as many None."""
        loader = self._stage.validation_loader
        assert loader is not None
        if exchange.is_main():
            return randomness.walk(loader)
        return (None for _ in range(len(loader)))

    def _judge(self, losses: list[float], log: MetricsLog) -> None:
        """Log a validation, and keep the weights when it is the best so far."""
        stage, position = self._stage, self.position
        if not losses:
            LOG.warning("the validation set holds no full batch: nothing was validated.")
            return
        value = statistics.mean(losses)
        record = {"event": "validation", "stage": stage.name, "step": position.global_step}
        log.write({**record, "epoch": position.epoch + 1, "loss": value})
        self._run.board.scalars({"validation/loss": value}, position.global_step)
        best = position.best is None or value < position.best
        if best:
            position.best = value
            state = {"format": checkpoints.FORMAT, "model": stage.learner.module.state_dict()}
            checkpoints.save(self._run.folder / checkpoints.BEST, state)
        mark = "  (best so far)" if best else ""
        LOG.info("validation after epoch %d: loss %.4f%s", position.epoch + 1, value, mark)

    def _keep_epoch(self, number: int) -> None:
        if not exchange.is_main():
            return
        folder = self._run.folder
        path = folder / f"net_epoch{number}.pth"
        checkpoints.save(path, self._stage.learner.module.state_dict())
        keep = self._run.block.logging.keep
        if keep:
            for old in list(checkpoints.epoch_files(folder).values())[:-keep]:
                old.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write ``last.ckpt``: everything needed to go on exactly; the same on all processes."""
        if self._run.log is None:
            return
        stage = self._stage
        state = {
            "format": checkpoints.FORMAT,
            "model": stage.learner.module.state_dict(),
            "optimizer": stage.optimizer.state_dict(),
            "rates": stage.rates.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler is not None else {},
            "position": asdict(self.position),
            "stage_records": self._run.records,
            "metrics_bytes": self._run.log.position(),
            "streams": randomness.streams() if self._own_streams else {},
        }
        if process_count() > 1:
            state["processes"] = process_count()
        checkpoints.save(self._run.folder / checkpoints.LAST, state)

    def restore(self, state: checkpoints.State) -> None:
        """Continue from a ``last.ckpt`` of this stage."""
        source = self._run.folder / checkpoints.LAST
        checkpoints.load_weights(self._stage.learner.module, state["model"], source)
        self._stage.optimizer.load_state_dict(state["optimizer"])
        self._stage.rates.load_state_dict(state["rates"])
        if self._scaler is not None and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.position = position = HostPosition(**state["position"])
        saved_by = int(state.get("processes", 1))
        if saved_by != process_count():
            position.batch = spread(position.batch, saved_by, process_count())
            LOG.warning("%s", another_number(source, saved_by, self._stage.batch_size))
        if state["streams"]:
            randomness.restore_streams(state["streams"])

    def _close(self) -> None:
        position, records = self.position, self._run.records
        record = {
            "name": self._stage.name,
            "steps": position.stage_step,
            "seconds": round(position.seconds, 1),
            "first_loss": mean(position.first_losses),
            "last_loss": mean(position.last_losses),
        }
        records[:] = [other for other in records if other["name"] != self._stage.name]
        records.append(record)
        self.save()
