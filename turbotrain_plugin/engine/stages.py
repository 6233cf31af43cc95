"""Strategies as lists of stages: which modules exist, what they learn, from what they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from turbotrain_plugin.config import OptimizerConfig, RunConfig, SchedulerConfig

PRETRAIN: Final = "pretrain"
FINETUNE: Final = "finetune"


@dataclass(frozen=True, slots=True)
class Stage:
    """One training stage.

    Attributes:
        name: Unique in its strategy; names the stage in logs and checkpoints.
        kind: ``PRETRAIN`` (masked reconstruction) or ``FINETUNE`` (the tasks).
        epoches: Epochs.
        batch_size: Samples per process and step.
        optimizer: Optimiser.
        lr_scheduler: Learning-rate schedule over the stage.
        balanced: Whether the hybrid gradient balancing runs.
        starts_from: Stage whose shared modules are transferred; None for fresh weights.
    """

    name: str
    kind: str
    epoches: int
    batch_size: int
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig
    balanced: bool
    starts_from: str | None


def _pretrain(config: RunConfig) -> Stage:
    keys = config.turbotrain.pretrain
    return Stage(
        name="pretrain",
        kind=PRETRAIN,
        epoches=keys.epoches,
        batch_size=keys.batch_size,
        optimizer=keys.optimizer,
        lr_scheduler=keys.lr_scheduler,
        balanced=False,
        starts_from=None,
    )


def _finetune(config: RunConfig, name: str, *, balanced: bool, starts_from: str | None) -> Stage:
    return Stage(
        name=name,
        kind=FINETUNE,
        epoches=config.train_params.epoches,
        batch_size=config.train_params.batch_size,
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
        balanced=balanced,
        starts_from=starts_from,
    )


def _turbotrain(config: RunConfig) -> tuple[Stage, ...]:
    return (
        _pretrain(config),
        _finetune(config, "balance", balanced=True, starts_from="pretrain"),
    )


def _turbotrain_no_balance(config: RunConfig) -> tuple[Stage, ...]:
    return (
        _pretrain(config),
        _finetune(config, "finetune", balanced=False, starts_from="pretrain"),
    )


def _one_time(config: RunConfig) -> tuple[Stage, ...]:
    return (_finetune(config, "one_time", balanced=False, starts_from=None),)


STRATEGIES: Final[dict[str, Callable[[RunConfig], tuple[Stage, ...]]]] = {
    "turbotrain": _turbotrain,
    "turbotrain_no_balance": _turbotrain_no_balance,
    "one_time": _one_time,
}


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages of the configured strategy."""
    return STRATEGIES[config.turbotrain.strategy](config)
