"""A run: its stages one after the other, each resumable, with weights handed on in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import CooperativeDataset
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import build_dataset, build_network, prepare_torch
from turbotrain_plugin.engine.initial import start_from
from turbotrain_plugin.engine.interrupts import Interrupted, StopRequest
from turbotrain_plugin.engine.optim import check_methods
from turbotrain_plugin.engine.position import Position, RunContext, samples_of_step
from turbotrain_plugin.engine.records import LOG, Board, MetricsLog
from turbotrain_plugin.engine.stage_loop import StageLoop
from turbotrain_plugin.engine.stages import (
    FINETUNE,
    PRETRAIN,
    Stage,
    network_config,
    stages_of,
    training_config,
)
from turbotrain_plugin.engine.steps import FinetuneLearner, Learner, PretrainLearner
from turbotrain_plugin.engine.teacher import load_teacher
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.pretraining import transfer_weights


class Trainer:
    """Runs the stages of a configuration in a run folder.

    In several processes (``torch.distributed``) each makes one, and all call ``run``; the first
    alone reads and writes checkpoints.
    """

    def __init__(self, config: RunConfig, folder: Path, device: torch.device) -> None:
        self._config = config
        self._folder = folder
        self._device = device
        self.stages = stages_of(config)

    def run(self, *, resume: bool) -> list[dict[str, Any]]:
        """Train all stages and return their records.

        Args:
            resume: Go on from ``last.ckpt`` of the folder.

        Raises:
            Interrupted: When asked to stop; the state is saved.
            UserError: On anything the user can mend.
        """
        check_methods(stage.balance for stage in self.stages)
        prepare_torch(self._config)
        for stage in self.stages:  # a teacher that does not fit stops the run before it begins
            if stage.kind == FINETUNE:
                load_teacher(network_config(self._config, stage), torch.device("cpu"))
        state = exchange.shared(self._saved) if resume else None
        start = Position(**state["position"]) if state else Position()
        with StopRequest(patient=process_count() > 1) as stop:
            context = self._context(stop, state)
            try:
                for index in range(start.stage, len(self.stages)):
                    loop = self._stage(index, context, state if index == start.stage else None)
                    loop.run()
                    self._hand_on(loop)
                    state = None
                    number = exchange.largest(stop.signal_number or 0)
                    if number:
                        raise Interrupted(number)
            finally:
                if context.log is not None:
                    context.log.close()
                context.board.close()
        return context.stage_records

    def _saved(self) -> checkpoints.State:
        return checkpoints.load_run_state(self._folder / checkpoints.LAST)

    def _context(self, stop: StopRequest, state: checkpoints.State | None) -> RunContext:
        step = int(state["position"]["global_step"]) if state else 0
        kept = int(state["metrics_bytes"]) if state else 0
        is_main = exchange.is_main()
        return RunContext(
            config=self._config,
            folder=self._folder,
            device=self._device,
            stop=stop,
            log=MetricsLog(self._folder, kept) if is_main else None,
            board=Board(
                self._folder,
                enabled=is_main and self._config.turbotrain.logging.tensorboard,
                purge_step=step + 1,  # TensorBoard drops events from this step on
            ),
            stage_records=list(state["stage_records"]) if state else [],
        )

    def _stage(self, index: int, context: RunContext, state: checkpoints.State | None) -> StageLoop:
        stage = self.stages[index]
        purpose = "pretrain" if stage.kind == PRETRAIN else "train"
        train_set = exchange.main_first(
            lambda: build_dataset(training_config(self._config, stage), "train", purpose)
        )
        validation_set = exchange.main_first(lambda: self._validation_set(stage))
        network = build_network(network_config(self._config, stage), train_set)
        if state is None:
            if index > 0 and self.stages[index - 1].kind == FINETUNE and exchange.is_main():
                checkpoints.forget_epochs(self._folder)
            self._transfer(stage, network)
        learner = self._learner(stage, network, train_set)
        if self._config.turbotrain.sync_batchnorm:
            exchange.synchronise_norms(learner.module, self._device)
        learner.module.to(self._device)
        exchange.synchronise(learner.module)
        loop = StageLoop(stage, learner, train_set, validation_set, context)
        loop.position.stage = index
        if state is not None:
            loop.restore(state)
            at = loop.position
            LOG.info("resuming %s at step %d (exact)", stage.name, at.stage_step)
        elif index > 0:
            loop.position.global_step = sum(r["steps"] for r in context.stage_records)
        self._announce(loop, len(train_set))
        return loop

    def _validation_set(self, stage: Stage) -> CooperativeDataset | None:
        if stage.kind != FINETUNE or not self._config.train_params.eval_freq:
            return None
        return build_dataset(network_config(self._config, stage), "validate", "evaluate")

    def _learner(
        self, stage: Stage, network: CooperativeNetwork, dataset: CooperativeDataset
    ) -> Learner:
        if stage.kind == PRETRAIN:
            return PretrainLearner(network, dataset.grid, self._config.turbotrain.pretrain)
        teacher = load_teacher(network_config(self._config, stage), self._device)
        return FinetuneLearner(network, self._config.loss.args, teacher)

    def _transfer(self, stage: Stage, network: CooperativeNetwork) -> None:
        keys = self._config.turbotrain.pretrain
        named = {name: getattr(network, name) for name in stage.carries}
        modules = {name: module for name, module in named.items() if module is not None}
        if stage.init:
            start_from(stage.init, network, modules, keys)
        if stage.starts_from is None:
            return
        source = checkpoints.stage_weights(self._folder, stage.starts_from)
        state = exchange.shared(lambda: checkpoints.load(source))
        report = transfer_weights(
            checkpoints.model_weights(state),
            network,
            min_coverage=keys.min_coverage,
            modules=modules,
        )
        LOG.info("%s", report.table())

    def _announce(self, loop: StageLoop, samples: int) -> None:
        stage = loop.stage
        parameters = sum(p.numel() for p in loop.learner.module.parameters() if p.requires_grad)
        LOG.info(
            "stage %s: %d samples, %d epochs, %d steps of %s, %.2f M parameters",
            stage.name,
            samples,
            stage.epoches,
            loop.total_steps,
            samples_of_step(stage.batch_size, self._config.turbotrain.accumulate),
            parameters / 1e6,
        )
        keys = self._config.turbotrain.balance
        if stage.balance == keys:  # and not a strategy's own, which wants every step
            for warning in loop.balancer.schedule.warnings(loop.total_steps):
                LOG.warning("%s", warning)

    def _hand_on(self, loop: StageLoop) -> None:
        """Leave the network of a finished stage for the next one, its heads for the pictures."""
        if not exchange.is_main():
            return
        state = {
            "format": checkpoints.FORMAT,
            "model": loop.learner.network.state_dict(),
            "learner": loop.learner.module.state_dict(),
        }
        checkpoints.save(checkpoints.stage_weights(self._folder, loop.stage.name), state)
