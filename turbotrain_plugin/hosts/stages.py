"""The stages of a host's run: masked pretraining, then the host's own tasks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.utils.data import DataLoader

from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning
from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import BalanceConfig
from turbotrain_plugin.data.loader import prepare_worker
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.optim import build_optimizer
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.engine.steps import schedule_of
from turbotrain_plugin.hosts.hypes import HostHypes
from turbotrain_plugin.hosts.learner import TaskLearner
from turbotrain_plugin.hosts.loop import HostStage
from turbotrain_plugin.hosts.pretraining import HostNetwork, MaskedLearner, module_paths
from turbotrain_plugin.hosts.rates import HostRates, OurRates
from turbotrain_plugin.hosts.session import Session
from turbotrain_plugin.pretraining import transfer_weights
from turbotrain_plugin.structures import UserError

PRETRAIN: Final = "pretrain"
_WITH_PRETRAINING: Final = ("turbotrain", "turbotrain_no_balance")
_BALANCED: Final = ("balance", "turbotrain")


@dataclass(frozen=True, slots=True)
class HostData:
    """Data sets and loaders of a run, made in the order of the host's train.py."""

    train_set: Any
    validation_set: Any
    train_loader: DataLoader[Any]
    validation_loader: DataLoader[Any]
    steps: int
    """Of an epoch: batches that every process has."""


@dataclass(frozen=True, slots=True)
class StageMaker:
    """Makes the stages of a host's run.

    Attributes:
        session: The host.
        hypes: The file.
        parsed: As the host's scripts see it.
        data: Its data.
        folder: The run folder.
        device: Where to compute.
    """

    session: Session
    hypes: HostHypes
    parsed: dict[str, Any]
    data: HostData
    folder: Path
    device: torch.device

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the stages."""
        strategy = self.hypes.block.strategy
        last = "balance" if strategy in _BALANCED else "train"
        return (PRETRAIN, last) if strategy in _WITH_PRETRAINING else (last,)

    def make(self, index: int, *, fresh: bool) -> tuple[HostStage, nn.Module]:
        """Return a stage and the host's model in it.

        Args:
            index: Of the stage.
            fresh: Whether it starts, and takes up what an earlier stage has left.
        """
        if self.hypes.block.host.random == "step":
            torch.manual_seed(derive_seed(self.hypes.block.host.seed, "weights"))
        model: nn.Module = self.session.modules.train_utils.create_model(self.parsed)
        model.to(self.device)
        if self.names[index] == PRETRAIN:
            return self._pretrain(index, model), model
        if fresh and index > 0:
            self._transfer(model)
        return self._tasks(index, model), model

    def leave(self, model: nn.Module, name: str) -> None:
        """Keep the model of a finished stage for the next."""
        if not exchange.is_main():
            return
        state = {"format": checkpoints.FORMAT, "model": model.state_dict()}
        checkpoints.save(checkpoints.stage_weights(self.folder, name), state)

    def _transfer(self, model: nn.Module) -> None:
        keys = self.hypes.block.pretrain
        paths = module_paths(self.parsed["model"]["core_method"], model, keys.modules)
        left = checkpoints.stage_weights(self.folder, PRETRAIN)
        source = exchange.shared(lambda: checkpoints.load(left))
        named = {path: model.get_submodule(path) for path in (*paths.encoder, *paths.fusion)}
        target: Any = model
        report = transfer_weights(
            checkpoints.model_weights(source),
            target,
            min_coverage=keys.min_coverage,
            modules={path: module for path, module in named.items() if module.state_dict()},
        )
        LOG.info("%s", report.table())

    def _pretrain(self, index: int, model: nn.Module) -> HostStage:
        keys, steps = self.hypes.block.pretrain, self.data.steps
        paths = module_paths(self.parsed["model"]["core_method"], model, keys.modules)
        first = self.data.train_set.collate_batch_train([self.data.train_set[0]])
        ego = self.session.modules.train_utils.to_device(first, self.device)["ego"]
        network = HostNetwork(model, paths.fusion[-1], ego, self.parsed)
        learner = MaskedLearner(network, keys)
        learner.module.to(self.device)
        optimizer = build_optimizer(keys.optimizer, learner.module.parameters())
        return HostStage(
            name=PRETRAIN,
            index=index,
            epoches=keys.epoches,
            batch_size=int(self.parsed["train_params"]["batch_size"]),
            steps=steps,
            learner=learner,
            optimizer=optimizer,
            rates=OurRates(optimizer, keys.lr_scheduler, keys.optimizer.lr, keys.epoches, steps),
            train_set=self.data.train_set,
            train_loader=self.data.train_loader,
            validation_loader=None,
            hypes=self.parsed,
        )

    def _tasks(self, index: int, model: nn.Module) -> HostStage:
        parsed, block, session = self.parsed, self.hypes.block, self.session
        steps, epoches = self.data.steps, int(parsed["train_params"]["epoches"])
        learner = TaskLearner(session, parsed, model, self.data.train_set)
        optimizer = session.modules.train_utils.setup_optimizer(parsed, model)
        scheduler = session.host.make_scheduler(session.modules, parsed, optimizer, steps)
        balanced = block.strategy in _BALANCED
        return HostStage(
            name=self.names[index],
            index=index,
            epoches=epoches,
            batch_size=int(parsed["train_params"]["batch_size"]),
            steps=steps,
            learner=learner,
            optimizer=_balancer(optimizer, model, block.balance, steps * epoches)
            if balanced
            else optimizer,
            rates=HostRates(session.host, scheduler, parsed, steps),
            train_set=self.data.train_set,
            train_loader=self.data.train_loader,
            validation_loader=self.data.validation_loader,
            hypes=parsed,
        )


def make_data(session: Session, hypes: HostHypes, parsed: dict[str, Any]) -> HostData:
    """Return the host's data sets with loaders as in its train.py.

    Raises:
        UserError: When the training set makes no batch.
    """
    build = session.modules.datasets.build_dataset
    train_set = build(parsed, visualize=False, train=True)
    validation_set = build(parsed, visualize=False, train=False)
    keys, wanted = session.host.loader, hypes.block.host.workers
    size = int(parsed["train_params"]["batch_size"])
    pin = keys.pin_memory and torch.cuda.is_available()
    train_loader = DataLoader(
        train_set,
        batch_size=size,
        num_workers=keys.workers if wanted < 0 else wanted,
        collate_fn=train_set.collate_batch_train,
        worker_init_fn=prepare_worker,
        shuffle=True,
        pin_memory=pin,
        drop_last=True,
    )
    validation_loader = DataLoader(
        validation_set,
        batch_size=size,
        num_workers=keys.validation_workers if wanted < 0 else wanted,
        collate_fn=train_set.collate_batch_train,
        worker_init_fn=prepare_worker,
        shuffle=keys.shuffle_validation,
        pin_memory=pin,
        drop_last=True,
    )
    steps = len(train_set) // (size * process_count())
    if not steps:
        several = f" for each of {process_count()} processes" if process_count() > 1 else ""
        raise UserError(
            f"{parsed['root_dir']}: {len(train_set)} frames make no batch of {size} "
            f"(train_params.batch_size){several}."
        )
    return HostData(train_set, validation_set, train_loader, validation_loader, steps)


def _balancer(
    optimizer: torch.optim.Optimizer, model: nn.Module, keys: BalanceConfig, total_steps: int
) -> GradientBalancer:
    schedule = schedule_of(keys, total_steps)
    for warning in schedule.warnings(total_steps):
        LOG.warning("%s", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)  # said above, with the run's length
        return GradientBalancer(
            optimizer,
            method=keys.method,
            schedule=schedule,
            shared=keys.shared or None,
            named_parameters=list(model.named_parameters()),
            source=keys.source,
            cut=keys.cut,
            args=keys.args.of(keys.method),
        )
