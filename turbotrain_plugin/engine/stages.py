"""Strategies as lists of stages: which modules exist, what they learn, from what they start.

``turbotrain`` is the paper's: pretrain, then balance. ``one_time`` and ``manual`` are what its
supplement compares with (A.1, Table S1); the multi-agent single-frame row is ``one_time`` with
other keys. What the supplement does not say of the manual stages is our choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from turbotrain_plugin.config import BalanceConfig, OptimizerConfig, RunConfig, SchedulerConfig
from turbotrain_plugin.engine import checkpoints

PRETRAIN: Final = "pretrain"
FINETUNE: Final = "finetune"

_BACKBONE: Final = ("encoder", "projection", "neck")
_DETECTOR: Final = (*_BACKBONE, "detection")
_PRETRAINED: Final = (*_BACKBONE, "temporal", "compressor", "fusion")
_SINGLE_AGENT: Final = (*_DETECTOR, "temporal", "map_fusion", "prediction")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One training stage.

    Modules are named as the attributes of ``CooperativeNetwork``; those a network is built without
    are passed over.

    Attributes:
        name: Unique in its strategy; names the stage in logs and checkpoints.
        kind: ``PRETRAIN`` (masked reconstruction) or ``FINETUNE`` (the tasks).
        epoches: Epochs.
        batch_size: Samples per process and step.
        optimizer: Optimiser.
        lr_scheduler: Learning-rate schedule over the stage.
        balance: How the task gradients are balanced; None: every step is their plain sum.
        starts_from: Stage whose modules are carried over; None for fresh weights.
        init: File or run folder of somebody else's whose modules are carried over.
        carries: Modules that are carried over; all others start afresh.
        frozen: Modules that stay as they are, BatchNorm statistics included.
        single_agent: Whether samples hold the ego alone, with its own labels, and the network
            neither fuses agents nor compresses.
        detection_only: Whether the network has neither trajectory head nor map.
        frames: T of the stage's network and data; None: ``turbotrain.data.hist_frames``.
    """

    name: str
    kind: str
    epoches: int
    batch_size: int
    optimizer: OptimizerConfig
    lr_scheduler: SchedulerConfig
    balance: BalanceConfig | None = None
    starts_from: str | None = None
    init: str = ""
    carries: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    single_agent: bool = False
    detection_only: bool = False
    frames: int | None = None


def _pretrain(config: RunConfig) -> Stage:
    keys = config.turbotrain.pretrain
    return Stage(
        name="pretrain",
        kind=PRETRAIN,
        epoches=keys.epoches,
        batch_size=keys.batch_size,
        optimizer=keys.optimizer,
        lr_scheduler=keys.lr_scheduler,
        init=keys.init,
        carries=_PRETRAINED if keys.init else (),
        frames=keys.hist_frames or None,
    )


def _finetune(config: RunConfig, name: str) -> Stage:
    return Stage(
        name=name,
        kind=FINETUNE,
        epoches=config.train_params.epoches,
        batch_size=config.train_params.batch_size,
        optimizer=config.optimizer,
        lr_scheduler=config.lr_scheduler,
    )


def _pretrained(config: RunConfig, name: str) -> Stage:
    """Return fine-tuning after ``_pretrain``, or after somebody else's; without balancing."""
    stage = replace(_finetune(config, name), carries=_reached(config))
    if config.turbotrain.pretrain.epoches:
        return replace(stage, starts_from="pretrain")
    return replace(stage, init=config.turbotrain.pretrain.init)


def _after_pretraining(config: RunConfig, stage: Stage) -> tuple[Stage, ...]:
    return (_pretrain(config), stage) if stage.starts_from else (stage,)


def _reached(config: RunConfig) -> tuple[str, ...]:
    """Return the modules that pretraining hands on; the compressor only if it took part.

    A neck behind fusion stands where the decoders do: it turns the fused map into the answer, and
    starting the tasks from the answer to another question costs them more than it gives
    (docs/tour.md). ``transfer_neck`` hands it on all the same.
    """
    keys = config.turbotrain.pretrain
    behind_fusion = config.model.args.neck.position == "post_fusion"
    with_neck = not behind_fusion or (keys.agent_fusion and keys.transfer_neck)
    neck = ("neck",) if with_neck else ()
    fusion = ("fusion",) if keys.agent_fusion else ()
    compressor = ("compressor",) if keys.agent_fusion and keys.compression else ()
    return ("encoder", "projection", *neck, "temporal", *compressor, *fusion)


def _turbotrain(config: RunConfig) -> tuple[Stage, ...]:
    balanced = replace(_pretrained(config, "balance"), balance=config.turbotrain.balance)
    return _after_pretraining(config, balanced)


def _turbotrain_no_balance(config: RunConfig) -> tuple[Stage, ...]:
    return _after_pretraining(config, _pretrained(config, "finetune"))


def _pretrain_only(config: RunConfig) -> tuple[Stage, ...]:
    """Return the first stage alone: for logs without labels. Our addition."""
    return (_pretrain(config),)


def _one_time(config: RunConfig) -> tuple[Stage, ...]:
    return (_finetune(config, "one_time"),)


def _one_time_single_agent(config: RunConfig) -> tuple[Stage, ...]:
    return (replace(_finetune(config, "one_time"), single_agent=True),)


def _manual(config: RunConfig) -> tuple[Stage, ...]:
    """Return the four stages of supplement A.1.

    Detection of one agent in one frame; its frozen detector with temporal fusion and prediction;
    all of it together; agent fusion with dynamic loss weighting. Our choices: every stage goes on
    from the last weights of the one before; temporal fusion starts afresh with the second stage,
    in which the detection loss trains it too, through the frozen head; a method that weighs losses
    runs in every step of the fourth.
    """
    keys = config.turbotrain.manual
    epoches = keys.epoches or (config.train_params.epoches,) * 4
    names = ("detection", "prediction", "joint", "cooperation")
    detection, prediction, joint, cooperation = (
        replace(_finetune(config, name), epoches=count)
        for name, count in zip(names, epoches, strict=True)
    )
    weighted = replace(config.turbotrain.balance, method=keys.weighting, schedule="every_step")
    return (
        replace(detection, single_agent=True, detection_only=True, frames=1),
        replace(
            prediction,
            single_agent=True,
            starts_from="detection",
            carries=_DETECTOR,
            frozen=_DETECTOR if keys.freeze_head else _BACKBONE,
        ),
        replace(joint, single_agent=True, starts_from="prediction", carries=_SINGLE_AGENT),
        replace(
            cooperation,
            starts_from="joint",
            carries=_SINGLE_AGENT,
            balance=None if keys.weighting == "none" else weighted,
        ),
    )


STRATEGIES: Final[dict[str, Callable[[RunConfig], tuple[Stage, ...]]]] = {
    "turbotrain": _turbotrain,
    "turbotrain_no_balance": _turbotrain_no_balance,
    "pretrain_only": _pretrain_only,
    "one_time": _one_time,
    "one_time_single_agent": _one_time_single_agent,
    "manual": _manual,
}


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """Return the stages of the configured strategy."""
    stages = STRATEGIES[config.turbotrain.strategy](config)
    keys = config.turbotrain.balance
    if not keys.probe_every:
        return stages
    probed = replace(keys, method="none", schedule="never")  # measured, never balanced
    return tuple(
        replace(stage, balance=probed)
        if stage.kind == FINETUNE and stage.balance is None
        else stage
        for stage in stages
    )


def network_config(config: RunConfig, stage: Stage) -> RunConfig:
    """Return the settings of a stage's network and of the data it is evaluated on.

    The latter hold every agent even where the network listens to none, because a stage of one
    agent is measured against what all of them have labelled, as the others are.
    """
    args, data = config.model.args, config.turbotrain.data
    if stage.single_agent:
        args = replace(
            args,
            fusion=replace(
                args.fusion,
                core_method="no_fusion",
                distill=replace(args.fusion.distill, teacher=""),
            ),
            compression=replace(args.compression, ratio=0),
        )
    if stage.detection_only:
        args = replace(args, prediction=False, map=replace(args.map, enabled=False))
    if stage.frames is not None:
        data = replace(data, hist_frames=stage.frames)
    return replace(
        config,
        model=replace(config.model, args=args),
        turbotrain=replace(config.turbotrain, data=data),
    )


def training_config(config: RunConfig, stage: Stage) -> RunConfig:
    """Return the settings of the data a stage learns from."""
    adapted = network_config(config, stage)
    logs = config.turbotrain.pretrain.root_dir
    if stage.kind == PRETRAIN and logs:
        adapted = replace(adapted, root_dir=logs)
    if not stage.single_agent:
        return adapted
    return replace(adapted, train_params=replace(config.train_params, max_cav=1))


def stage_behind(state: checkpoints.State, config: RunConfig, folder: Path) -> Stage:
    """Return the stage that weights are of: a run may have stopped in one with another network.

    ``best.ckpt`` names it; ``last.ckpt`` counts it, and the epochs' files are of the same stage.
    """
    stages = stages_of(config)
    last = folder / checkpoints.LAST
    by_name = {stage.name: stage for stage in stages}
    if "stage" in state:
        return by_name.get(state["stage"], stages[-1])
    if "position" not in state and last.is_file():
        state = checkpoints.load_run_state(last)
    index = state["position"]["stage"] if "position" in state else len(stages) - 1
    return stages[min(index, len(stages) - 1)]
