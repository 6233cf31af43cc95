"""One stage: epochs, steps, validation, checkpoints; every random draw follows from the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import CooperativeDataset, make_loader
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.freezing import freeze
from turbotrain_plugin.engine.interrupts import Interrupted, StopRequest
from turbotrain_plugin.engine.optim import build_balancer, learning_rate, set_learning_rate
from turbotrain_plugin.engine.records import (
    LOG,
    Board,
    MetricsLog,
    Progress,
    balance_line,
    finite,
    mean,
)
from turbotrain_plugin.engine.stages import FINETUNE, Stage
from turbotrain_plugin.engine.steps import (
    Learner,
    StepResult,
    optimiser_step,
    refuse_endless,
    schedule_of,
)
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.structures import Batch

_LOSS_WINDOW: Final = 10
"""Steps averaged for the first and the last loss of a stage."""


@dataclass(slots=True)
class Position:
    """Where a run stands; all of it is in the checkpoint.

    Attributes:
        stage: Index of the stage.
        epoch: Epochs of the stage that are done.
        batch: Batches of the running epoch that are done.
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


@dataclass(slots=True)
class RunContext:
    """What all stages of a run share."""

    config: RunConfig
    folder: Path
    device: torch.device
    stop: StopRequest
    log: MetricsLog
    board: Board
    stage_records: list[dict[str, Any]]


class StageLoop:
    """Runs one stage from a position to its end."""

    def __init__(
        self,
        stage: Stage,
        learner: Learner,
        train_set: CooperativeDataset,
        validation_set: CooperativeDataset | None,
        context: RunContext,
    ) -> None:
        self.stage = stage
        self.learner = learner
        self._train_set = train_set
        self._validation_set = validation_set
        self._context = context
        self._block = context.config.turbotrain
        freeze(learner.network, stage.frozen)  # the optimiser holds what is trained, nothing else
        self.balancer = build_balancer(stage.optimizer, stage.balance, learner.module)
        fp16_on_gpu = self._block.amp == "fp16" and context.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda") if fp16_on_gpu else None
        self.position = Position()
        self._generator = torch.Generator(device=context.device)
        self.batches_per_epoch: Final = len(self._loader(0, 0))
        if stage.balance is not None:
            self.balancer.schedule = schedule_of(stage.balance, self.total_steps)

    # ------------------------------------------------------------------------------------- extent

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.batches_per_epoch // self._block.accumulate)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the stage."""
        return self.steps_per_epoch * self.stage.epoches

    def _loader(self, epoch: int, start_batch: int) -> Any:  # noqa: ANN401 - sized iterable
        return make_loader(
            self._train_set,
            batch_size=self.stage.batch_size,
            epoch=epoch,
            shuffle=True,
            start_batch=start_batch,
            seed=derive_seed(self._context.config.seed, self.stage.name, "order"),
        )

    # ---------------------------------------------------------------------------------------- run

    def run(self) -> None:
        """Train until the stage ends.

        Raises:
            Interrupted: When asked to stop; the state is saved.
            UserError: When steps stay non-finite.
        """
        self.learner.module.to(self._context.device).train()
        freeze(self.learner.network, self.stage.frozen)
        with Progress(self.stage.name, self.total_steps, self.position.stage_step) as progress:
            while self.position.epoch < self.stage.epoches and not self._out_of_patience():
                self._epoch(progress)
        self._close()

    def _out_of_patience(self) -> bool:
        patience = self._block.patience
        if patience and self.position.since_best >= patience:
            LOG.info("%s: no better validation in %d, stopping early.", self.stage.name, patience)
            return True
        return False

    def _epoch(self, progress: Progress) -> None:
        position = self.position
        begin = time.monotonic()
        for batches in self._groups():
            result = self._step(batches)
            now = time.monotonic()
            position.seconds += now - begin
            position.batch += len(batches)
            position.stage_step += 1
            position.global_step += 1
            self._record(result, now - begin)
            progress.advance(
                f"epoch {position.epoch + 1}/{self.stage.epoches}  "
                + "  ".join(f"{name} {value:.3f}" for name, value in result.tasks.items())
                + ("  balanced" if result.record is not None and result.record.balanced else "")
            )
            begin = now
            self._after_step()
        validation_set = self._validation_set if self._validation_due() else None
        if validation_set is not None:
            self.save()  # a validation may be long: whoever stops it goes on right before it
            self._validate(validation_set, position.epoch + 1)
        position.epoch += 1
        position.batch = 0
        if self.stage.kind == FINETUNE:
            self._keep_epoch()
        self.save()
        self._stop_if_asked()

    def _groups(self) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step of what is left of the epoch."""
        group: list[Batch] = []
        for batch in self._loader(self.position.epoch, self.position.batch):
            group.append(batch)
            if len(group) == self._block.accumulate:
                yield group
                group = []
        if group:
            yield group

    def _step(self, batches: list[Batch]) -> StepResult:
        # Everything random in a step follows from its number: nothing to save, exact to resume.
        seed = derive_seed(self._context.config.seed, self.stage.name, self.position.stage_step)
        torch.manual_seed(seed)
        self._generator.manual_seed(seed)
        epoch = self.position.stage_step / self.steps_per_epoch
        keys = self.stage.optimizer
        rate = learning_rate(self.stage.lr_scheduler, keys.lr, epoch, self.stage.epoches)
        set_learning_rate(self.balancer, rate)
        return optimiser_step(
            self.learner,
            [batch.to(self._context.device) for batch in batches],
            self.balancer,
            self.scaler,
            amp=self._block.amp,
            clip_norm=keys.clip_norm,
            generator=self._generator,
        )

    def _record(self, result: StepResult, seconds: float) -> None:
        position = self.position
        line: dict[str, Any] = {
            "stage": self.stage.name,
            "step": position.global_step,
            "stage_step": position.stage_step,
            "epoch": position.epoch,
            "losses": finite(result.tasks),
            "parts": finite(result.parts),
            "lr": self.balancer.param_groups[0]["lr"],
            "gradient_norm": finite({"": result.gradient_norm}).get(""),
            "balanced": bool(result.record is not None and result.record.balanced),
            "taken": result.taken,
            "seconds": round(seconds, 4),
        }
        if result.record is not None and result.record.measured:
            line |= balance_line(result.record, self.balancer.window_of(result.record))
        self._context.log.write(line)
        scalars = {f"{self.stage.name}/{name}": value for name, value in result.tasks.items()}
        scalars |= {f"{self.stage.name}/{name}": value for name, value in result.parts.items()}
        scalars[f"{self.stage.name}/lr"] = line["lr"]
        if "cosine" in line:
            scalars[f"{self.stage.name}/cosine"] = line["cosine"]
        self._context.board.scalars(scalars, position.global_step)
        self._count(result)

    def _count(self, result: StepResult) -> None:
        position = self.position
        if not result.taken:
            position.bad_in_a_row += 1
            LOG.warning(
                "%s step %d not taken: %s", self.stage.name, position.stage_step, result.culprit
            )
            refuse_endless(position.bad_in_a_row, self._block.max_bad_steps, result.culprit)
            return
        position.bad_in_a_row = 0
        total = sum(result.tasks.values())
        if len(position.first_losses) < _LOSS_WINDOW:
            position.first_losses.append(total)
        position.last_losses = [*position.last_losses, total][-_LOSS_WINDOW:]

    def _after_step(self) -> None:
        save_steps = self._block.logging.save_steps
        stopping = self._context.stop.signal_number is not None
        if stopping or (save_steps and self.position.stage_step % save_steps == 0):
            self.save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Leave when a signal has come; call it only where ``last.ckpt`` holds the position."""
        if self._context.stop.signal_number is not None:
            raise Interrupted(self._context.stop.signal_number)

    # --------------------------------------------------------------------------------- validation

    def _validation_due(self) -> bool:
        """Return whether the epoch that ends now is validated."""
        done, every = self.position.epoch + 1, self._context.config.train_params.eval_freq
        return self.stage.kind == FINETUNE and (
            done == self.stage.epoches or (every > 0 and done % every == 0)
        )

    def _keep_epoch(self) -> None:
        position, params = self.position, self._context.config.train_params
        if params.save_freq and position.epoch % params.save_freq == 0:
            path = self._context.folder / f"net_epoch{position.epoch}.pth"
            checkpoints.save(path, self.learner.network.state_dict())
            self._forget_old_epochs()

    def _validate(self, dataset: CooperativeDataset, epoch: int) -> None:
        position = self.position
        evaluated = evaluate_network(
            self.learner.network,
            dataset,
            self._context.config,
            limit=self._block.evaluation.max_samples,
            on_sample=self._stop_if_asked,
        )
        scalars = evaluated.result.scalars()
        self._context.log.write(
            {
                "event": "validation",
                "stage": self.stage.name,
                "step": position.global_step,
                "stage_step": position.stage_step,
                "epoch": epoch,
                "metrics": finite(scalars),
            }
        )
        self._context.board.scalars(
            {f"validation/{name}": value for name, value in scalars.items()}, position.global_step
        )
        mark = "  (best so far)" if self._is_best(scalars) else ""
        if mark:
            self._save_best(scalars, epoch)
        shown = ("ap_0.30", "ap_0.50", "ap_0.70", "ade_m", "fde_m", "epa")
        text = "  ".join(f"{name} {scalars[name]:.3f}" for name in shown if name in scalars)
        LOG.info("validation after epoch %d: %s%s", epoch, text, mark)

    def _is_best(self, scalars: dict[str, float]) -> bool:
        """Compare with the best so far; without a score nothing is better and patience waits."""
        position, score = self.position, scalars.get(self._block.monitor)
        if score is None:
            LOG.warning("no %s was measured: are there labels to validate on?", self._block.monitor)
            return False
        position.since_best += 1
        if not score > position.best:
            return False
        position.best, position.since_best = score, 0
        return True

    def _save_best(self, scalars: dict[str, float], epoch: int) -> None:
        state = {
            "format": checkpoints.FORMAT,
            "model": self.learner.network.state_dict(),
            "stage": self.stage.name,
            "epoch": epoch,
            "metrics": finite(scalars),
        }
        checkpoints.save(self._context.folder / checkpoints.BEST, state)

    def _forget_old_epochs(self) -> None:
        keep = self._block.logging.keep
        if keep:
            for path in list(checkpoints.epoch_files(self._context.folder).values())[:-keep]:
                path.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------- checkpoints

    def save(self) -> None:
        """Write ``last.ckpt``: everything needed to go on exactly."""
        checkpoints.save(
            self._context.folder / checkpoints.LAST,
            {
                "format": checkpoints.FORMAT,
                "model": self.learner.network.state_dict(),
                "learner": self.learner.module.state_dict(),
                "optimizer": self.balancer.state_dict(),
                "scaler": self.scaler.state_dict() if self.scaler is not None else {},
                "position": asdict(self.position),
                "stage_records": self._context.stage_records,
                "metrics_bytes": self._context.log.position(),
            },
        )

    def restore(self, state: checkpoints.State) -> None:
        """Continue from a ``last.ckpt`` of this stage."""
        self.learner.module.to(self._context.device)
        source = self._context.folder / checkpoints.LAST
        checkpoints.load_weights(self.learner.module, state["learner"], source)
        self.balancer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"]:  # empty when saved on a CPU
            self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    def _close(self) -> None:
        """Record the finished stage; doing so again, after a resume, changes nothing."""
        position, records = self.position, self._context.stage_records
        record = {
            "name": self.stage.name,
            "steps": position.stage_step,
            "seconds": round(position.seconds, 1),
            "first_loss": mean(position.first_losses),
            "last_loss": mean(position.last_losses),
        }
        records[:] = [other for other in records if other["name"] != self.stage.name]
        records.append(record)
        self.save()
