"""One stage: epochs, steps, validation, checkpoints; every random draw follows from the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, make_loader
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.collapse import warn_of_collapse
from turbotrain_plugin.engine.freezing import freeze
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.optim import build_balancer, learning_rate, set_learning_rate
from turbotrain_plugin.engine.position import Position, RunContext, another_number
from turbotrain_plugin.engine.records import LOG, Progress, finite, mean
from turbotrain_plugin.engine.stages import FINETUNE, PRETRAIN, Stage
from turbotrain_plugin.engine.step_lines import step_line, step_scalars
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
        self._waited_s = 0.0
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

    @property
    def steps_behind(self) -> int:
        """Steps of the way that are done: ``stage_step``, were there always as many processes."""
        done = -(-self.position.batch // self._block.accumulate)
        return self.position.epoch * self.steps_per_epoch + done

    def _loader(self, epoch: int, start_batch: int) -> BatchLoader:
        return make_loader(
            self._train_set,
            batch_size=self.stage.batch_size,
            epoch=epoch,
            shuffle=True,
            start_batch=start_batch,
            rank=exchange.rank(),
            world_size=process_count(),
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
        with Progress(self.stage.name, self.total_steps, self.steps_behind) as progress:
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
        start = begin = time.monotonic()
        waited_s = 0.0
        for batches in self._groups():
            result = self._step(batches)
            now = time.monotonic()
            position.seconds += now - begin
            position.batch += len(batches)
            position.stage_step += 1
            position.global_step += 1
            self._record(result, now - begin, self._waited_s - waited_s)
            waited_s = self._waited_s
            progress.advance(
                f"epoch {position.epoch + 1}/{self.stage.epoches}  "
                + "  ".join(f"{name} {value:.3f}" for name, value in result.tasks.items())
                + ("  balanced" if result.record is not None and result.record.balanced else "")
            )
            begin = now
            self._after_step()
        share = waited_s / max(time.monotonic() - start, 1e-9)
        LOG.info(
            "%s epoch %d: %.0f %% of the time was spent waiting for data",
            self.stage.name,
            position.epoch + 1,
            100 * share,
        )
        validation_set = self._validation_set if self._validation_due() else None
        if validation_set is not None:
            self.save()  # a validation may be long: whoever stops it goes on right before it
            self._validate(validation_set, position.epoch + 1)
        position.epoch += 1
        position.batch = 0
        if self.stage.kind == FINETUNE:
            self._keep_epoch()
        self.save()
        if self.stage.kind == PRETRAIN and position.epoch == 1 and exchange.is_main():
            warn_of_collapse(self._context.folder, self.stage.name)
        self._stop_if_asked()

    def _groups(self) -> Iterator[list[Batch]]:
        """Yield the batches of each optimiser step of what is left of the epoch."""
        group: list[Batch] = []
        loader = self._loader(self.position.epoch, self.position.batch)
        for batch in loader:
            self._waited_s = loader.waited_s
            group.append(batch)
            if len(group) == self._block.accumulate:
                yield group
                group = []
        if group:
            yield group

    def _step(self, batches: list[Batch]) -> StepResult:
        # Everything random in a step follows from its number: nothing to save, exact to resume.
        own = (exchange.rank(),) if exchange.rank() else ()
        step = self.position.stage_step
        seed = derive_seed(self._context.config.seed, self.stage.name, step, *own)
        torch.manual_seed(seed)
        self._generator.manual_seed(seed)
        epoch = self.steps_behind / self.steps_per_epoch
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

    def _record(self, result: StepResult, seconds: float, waited_s: float) -> None:
        if self._context.log is not None:
            line = step_line(
                self.stage.name,
                self.position,
                result,
                self.balancer,
                seconds=seconds,
                waited_s=waited_s,
            )
            self._context.log.write(line)
            self._context.board.scalars(step_scalars(line, result), self.position.global_step)
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
        number = self._asked_to_stop()
        if number or (save_steps and self.position.stage_step % save_steps == 0):
            self.save()
        if number:
            raise Interrupted(number)

    def _asked_to_stop(self) -> int:
        """Return the signal that came to this process or another one, 0 when none did.

        All processes ask at the same places, so that they stop at the same one.
        """
        return exchange.largest(self._context.stop.signal_number or 0)

    def _stop_if_asked(self) -> None:
        """Leave when a signal has come; call it only where ``last.ckpt`` holds the position."""
        number = self._asked_to_stop()
        if number:
            raise Interrupted(number)

    # --------------------------------------------------------------------------------- validation

    def _validation_due(self) -> bool:
        """Return whether the epoch that ends now is validated."""
        done, every = self.position.epoch + 1, self._context.config.train_params.eval_freq
        return self.stage.kind == FINETUNE and (
            done == self.stage.epoches or (every > 0 and done % every == 0)
        )

    def _keep_epoch(self) -> None:
        position, params = self.position, self._context.config.train_params
        due = params.save_freq and position.epoch % params.save_freq == 0
        if due and exchange.is_main():
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
        line = {
            "event": "validation",
            "stage": self.stage.name,
            "step": position.global_step,
            "stage_step": position.stage_step,
            "epoch": epoch,
            "metrics": finite(scalars),
        }
        if self._context.log is not None:
            self._context.log.write(line)
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
        if not exchange.is_main():
            return
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
        """Write ``last.ckpt``: everything needed to go on exactly; the same on all processes."""
        if self._context.log is None:
            return
        state = {
            "format": checkpoints.FORMAT,
            "model": self.learner.network.state_dict(),
            "learner": self.learner.module.state_dict(),
            "optimizer": self.balancer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
            "position": asdict(self.position),
            "stage_records": self._context.stage_records,
            "metrics_bytes": self._context.log.position(),
        }
        if process_count() > 1:
            state["processes"] = process_count()
        checkpoints.save(self._context.folder / checkpoints.LAST, state)

    def restore(self, state: checkpoints.State) -> None:
        """Continue from a ``last.ckpt`` of this stage."""
        self.learner.module.to(self._context.device)
        source = self._context.folder / checkpoints.LAST
        checkpoints.load_weights(self.learner.module, state["learner"], source)
        self.balancer.load_state_dict(state["optimizer"])
        if self.scaler is not None and state["scaler"]:  # empty when saved on a CPU
            self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        saved_by = int(state.get("processes", 1))
        if saved_by != process_count():
            self.position.spread(saved_by, process_count())
            samples = self.stage.batch_size * self._block.accumulate
            LOG.warning("%s", another_number(source, saved_by, samples))

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
