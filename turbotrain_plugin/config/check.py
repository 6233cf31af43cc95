"""Settings that are impossible together, refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from turbotrain_plugin.config.run import RunConfig
from turbotrain_plugin.errors import UserError

_VOXEL_ROUNDING: Final = 1e-3
"""As ``geometry.grid``: 204.8 m are 2048 voxels of 0.1 m in spite of binary fractions."""


def check(config: RunConfig) -> None:
    """Refuse impossible settings.

    Raises:
        UserError: Naming the keys and the remedy.
    """
    for problem in _problems(config):
        raise UserError(problem)


def _problems(config: RunConfig) -> Iterator[str]:
    yield from _positive(config)
    yield from _anchors(config)
    yield from _augment(config)
    yield from _disturbances(config)
    yield from _channels(config)
    yield from _distillation(config)
    yield from _training(config)
    yield from _stages(config)
    yield from _balance_args(config)
    yield from _optimizers(config)
    yield from _schedules(config)
    yield from _selection(config)


def _positive(config: RunConfig) -> Iterator[str]:
    data, voxel = config.turbotrain.data, config.preprocess.args
    at_least_one = {
        "train_params.batch_size": config.train_params.batch_size,
        "train_params.epoches": config.train_params.epoches,
        "train_params.max_cav": config.train_params.max_cav,
        "preprocess.args.max_points_per_voxel": voxel.max_points_per_voxel,
        "preprocess.args.max_voxel_train": voxel.max_voxel_train,
        "preprocess.args.max_voxel_test": voxel.max_voxel_test,
        "turbotrain.data.hist_frames": data.hist_frames,
        "turbotrain.data.future_steps": data.future_steps,
        "turbotrain.data.step_frames": data.step_frames,
        "turbotrain.data.sample_stride": data.sample_stride,
        "turbotrain.pretrain.batch_size": config.turbotrain.pretrain.batch_size,
        "turbotrain.pretrain.points.count": config.turbotrain.pretrain.points.count,
        "turbotrain.pretrain.points.max_targets": config.turbotrain.pretrain.points.max_targets,
        "turbotrain.pretrain.occ.bins": config.turbotrain.pretrain.occ.bins,
        "turbotrain.accumulate": config.turbotrain.accumulate,
        "turbotrain.max_bad_steps": config.turbotrain.max_bad_steps,
        "turbotrain.data.prefetch_factor": data.prefetch_factor,
        "postprocess.anchor_args.feature_stride": config.postprocess.anchor_args.feature_stride,
        "postprocess.nms_candidates": config.postprocess.nms_candidates,
        "model.args.channels": config.model.args.channels,
        "model.args.map.stride": config.model.args.map.stride,
        "model.args.map.segments": config.model.args.map.segments,
        "model.args.fusion.windows": min(config.model.args.fusion.windows, default=1),
        "model.args.fusion.rounds": config.model.args.fusion.rounds,
    }
    for name, value in at_least_one.items():
        if value < 1:
            yield f"{name} must be at least 1. Found {value}."
    not_negative = {
        "seed": config.seed,
        "train_params.eval_freq": config.train_params.eval_freq,
        "train_params.save_freq": config.train_params.save_freq,
        "turbotrain.data.num_workers": data.num_workers,
        "turbotrain.logging.keep": config.turbotrain.logging.keep,
        "turbotrain.logging.save_steps": config.turbotrain.logging.save_steps,
        "turbotrain.patience": config.turbotrain.patience,
        "turbotrain.pretrain.occ.empty_ratio": config.turbotrain.pretrain.occ.empty_ratio,
        "turbotrain.pretrain.epoches": config.turbotrain.pretrain.epoches,
    }
    for name, count in not_negative.items():
        if count < 0:
            yield f"{name} must not be negative. Found {count}."
    if not all(math.isfinite(size) and size > 0 for size in voxel.voxel_size):
        yield f"preprocess.args.voxel_size must be positive. Found {list(voxel.voxel_size)}."
    else:
        yield from _grid(config)
    if config.comm_range <= 0:
        yield f"comm_range must be positive metres. Found {config.comm_range}."


def _grid(config: RunConfig) -> Iterator[str]:
    limits, sizes = config.preprocess.cav_lidar_range, config.preprocess.args.voxel_size
    stride = max(config.postprocess.anchor_args.feature_stride, 1)
    for axis, name in enumerate("xyz"):
        count = (limits[axis + 3] - limits[axis]) / sizes[axis]
        whole = count > 0 and abs(count - round(count)) < _VOXEL_ROUNDING
        if not whole or (name != "z" and round(count) % stride):
            yield (
                f"preprocess.cav_lidar_range along {name} must be a positive whole number of "
                f"voxels of {sizes[axis]:g} m"
                + (f", divisible by feature_stride {stride}" if name != "z" else "")
                + f". Found {limits[axis]:g} to {limits[axis + 3]:g} m, {count:g} voxels."
            )
    chosen = config.turbotrain.evaluation.range
    if chosen is not None and any(chosen[axis] >= chosen[axis + 3] for axis in range(3)):
        yield f"turbotrain.evaluation.range must give x, y, z min, then max. Found {list(chosen)}."


def _anchors(config: RunConfig) -> Iterator[str]:
    anchor, target = config.postprocess.anchor_args, config.postprocess.target_args
    if anchor.num != len(anchor.r):
        yield (
            "postprocess.anchor_args.num must equal the number of yaws r. "
            f"Found num {anchor.num} and r {list(anchor.r)}."
        )
    if min(anchor.l, anchor.w, anchor.h) <= 0:
        yield "postprocess.anchor_args l, w, h must be positive metres."
    given = anchor.cav_lidar_range
    if given is not None and given != config.preprocess.cav_lidar_range:
        yield (
            "postprocess.anchor_args.cav_lidar_range must equal preprocess.cav_lidar_range "
            f"{list(config.preprocess.cav_lidar_range)}. Found {list(given)}."
        )
    if not 0 <= target.neg_threshold <= target.pos_threshold <= 1:
        yield (
            "postprocess.target_args must satisfy 0 <= neg_threshold <= pos_threshold <= 1. "
            f"Found {target.neg_threshold} and {target.pos_threshold}."
        )


def _augment(config: RunConfig) -> Iterator[str]:
    for number, step in enumerate(config.data_augment):
        where = f"data_augment[{number}]"
        unknown = [axis for axis in step.ALONG_AXIS_LIST if axis not in ("x", "y")]
        if unknown:
            yield f"{where}.ALONG_AXIS_LIST must name x and y only. Found {unknown}."
        angles = step.WORLD_ROT_ANGLE
        if (
            len(angles) not in (1, 2)
            or angles[0] > angles[-1]
            or not all(map(math.isfinite, angles))
        ):
            yield (
                f"{where}.WORLD_ROT_ANGLE must be one angle or smallest and largest, rad. "
                f"Found {list(angles)}."
            )
        low, high = step.WORLD_SCALE_RANGE
        if not 0 < low <= high < math.inf:
            yield (
                f"{where}.WORLD_SCALE_RANGE must be positive, smallest first. Found {[low, high]}."
            )


def _disturbances(config: RunConfig) -> Iterator[str]:
    wild, data = config.wild_setting, config.turbotrain.data
    not_negative = {
        "wild_setting.async_overhead": wild.async_overhead,
        "wild_setting.xyz_std": wild.xyz_std,
        "wild_setting.ryp_std": wild.ryp_std,
        "wild_setting.seed": wild.seed,
        "wild_setting.data_size": wild.data_size,
        "wild_setting.backbone_delay": wild.backbone_delay,
        "turbotrain.data.repair.fill_gaps_s": data.repair.fill_gaps_s,
    }
    for name, value in not_negative.items():
        if not 0 <= value < math.inf:
            yield f"{name} must be finite and not negative. Found {value}."
    if not 0 < wild.transmission_speed < math.inf:
        yield f"wild_setting.transmission_speed must be positive. Found {wild.transmission_speed}."
    if not 0 <= data.drop_out <= 1:
        yield f"turbotrain.data.drop_out must lie in [0, 1]. Found {data.drop_out}."


def _channels(config: RunConfig) -> Iterator[str]:
    args = config.model.args
    heads = {"model.args.temporal.heads": args.temporal.heads}
    if args.fusion.core_method in ("v2xpnp", "v2xvit"):
        heads["model.args.fusion.heads"] = args.fusion.heads
        heads.update(
            {
                f"model.args.fusion.window_heads[{i}]": n
                for i, n in enumerate(args.fusion.window_heads)
            }
        )
        if len(args.fusion.windows) != len(args.fusion.window_heads):
            yield (
                "model.args.fusion.windows and window_heads must have the same length. Found "
                f"{list(args.fusion.windows)} and {list(args.fusion.window_heads)}."
            )
    if args.map.enabled:
        heads["model.args.map.heads"] = args.map.heads
    for name, count in heads.items():
        if count < 1 or args.channels % count:
            yield f"{name} must divide model.args.channels {args.channels}. Found {count}."
    for name, share in (
        ("temporal", args.temporal.dropout),
        ("fusion", args.fusion.dropout),
        ("map", args.map.dropout),
    ):
        if not 0 <= share < 1:
            yield f"model.args.{name}.dropout must lie in [0, 1). Found {share}."
    ratio = args.compression.ratio
    if ratio < 0 or (ratio and args.channels % ratio):
        yield f"model.args.compression.ratio must be 0 or divide {args.channels}. Found {ratio}."
    elif ratio and args.fusion.core_method in ("early", "late"):
        yield (
            "model.args.compression.ratio must be 0 with early or late fusion, which send points "
            f"or objects and no maps. Found {ratio}."
        )


def _distillation(config: RunConfig) -> Iterator[str]:
    fusion = config.model.args.fusion
    if fusion.distill.teacher and fusion.core_method != "disconet":
        yield (
            "model.args.fusion.distill.teacher needs core_method disconet, the one that learns "
            f"from a teacher. Found {fusion.core_method}."
        )
    if not fusion.distill.weight >= 0:
        yield (
            f"model.args.fusion.distill.weight must not be negative. Found {fusion.distill.weight}."
        )


def _training(config: RunConfig) -> Iterator[str]:
    block = config.turbotrain
    flows = config.model.args.fusion.core_method == "ffnet" and config.wild_setting.async_
    if block.sync_batchnorm and flows:
        yield (
            "turbotrain.sync_batchnorm and ffnet under wild_setting.async would wait for ever: the "
            "flow network runs on those processes alone to which a message came late. Leave out "
            "one of the three."
        )
    if block.pretrain.points.z_scale <= 0:
        scale = block.pretrain.points.z_scale
        yield f"turbotrain.pretrain.points.z_scale must be positive. Found {scale}."
    if not 0 <= block.pretrain.mask.ratio < 1:
        ratio = block.pretrain.mask.ratio
        yield f"turbotrain.pretrain.mask.ratio must lie in [0, 1). Found {ratio}."
    if not 0 <= block.pretrain.min_coverage <= 1:
        yield (
            "turbotrain.pretrain.min_coverage must lie in [0, 1]. "
            f"Found {block.pretrain.min_coverage}."
        )
    if block.pretrain.points.weight <= 0 and block.pretrain.occ.weight <= 0:
        yield "turbotrain.pretrain needs points.weight or occ.weight above 0; both are off."
    if block.balance.probe_every < 0:
        yield (
            "turbotrain.balance.probe_every must not be negative (0 is off). Found "
            f"{block.balance.probe_every}."
        )
    if block.balance.free_steps < 0 or block.balance.balance_steps < 0:
        yield (
            "turbotrain.balance free_steps and balance_steps must not be negative. Found "
            f"{block.balance.free_steps} and {block.balance.balance_steps}."
        )
    elif block.balance.free_steps + block.balance.balance_steps == 0:
        yield "turbotrain.balance free_steps and balance_steps cannot both be 0."


def _stages(config: RunConfig) -> Iterator[str]:
    epoches = config.turbotrain.manual.epoches
    if len(epoches) not in (0, 4) or min(epoches, default=1) < 1:
        yield (
            "turbotrain.manual.epoches must hold one number of at least 1 for each of the four "
            f"stages, or nothing. Found {list(epoches)}."
        )
    yield from _initial(config)
    pretrain, frames = config.turbotrain.pretrain, config.turbotrain.data.hist_frames
    if not 0 <= pretrain.hist_frames <= frames:
        yield (
            f"turbotrain.pretrain.hist_frames must lie in [0, {frames}], turbotrain.data."
            f"hist_frames. Found {pretrain.hist_frames}."
        )
    elif pretrain.hist_frames not in (0, frames) and pretrain.min_coverage == 1:
        yield (
            "turbotrain.pretrain.min_coverage must be below 1 where turbotrain.pretrain.hist_frames"
            f" {pretrain.hist_frames} differs from turbotrain.data.hist_frames {frames}: temporal "
            "fusion then cannot be carried over whole."
        )


def _initial(config: RunConfig) -> Iterator[str]:
    strategy, pretrain = config.turbotrain.strategy, config.turbotrain.pretrain
    pretrains = strategy in ("turbotrain", "turbotrain_no_balance", "pretrain_only")
    if pretrain.init and not pretrains:
        yield (
            f"turbotrain.pretrain.init is for strategies that pretrain. Found {strategy}; use "
            "turbotrain_no_balance with turbotrain.pretrain.epoches=0 to fine-tune from a file."
        )
    if pretrain.init_rename and not pretrain.init:
        yield "turbotrain.pretrain.init_rename has nothing to rename: init is empty."
    if not pretrains or pretrain.epoches > 0:
        return
    if strategy == "pretrain_only" or not pretrain.init:
        yield (
            "turbotrain.pretrain.epoches 0 skips pretraining, which needs weights in "
            "turbotrain.pretrain.init and a strategy that goes on (turbotrain or "
            "turbotrain_no_balance); without weights the strategy is one_time."
        )


def _balance_args(config: RunConfig) -> Iterator[str]:
    args = config.turbotrain.balance.args
    positive = {
        "dwa.temperature": args.dwa.temperature,
        "dwa.window": args.dwa.window,
        "gradnorm.initial_steps": args.gradnorm.initial_steps,
        "gradnorm.lr": args.gradnorm.lr,
        "moco.beta": args.moco.beta,
        "uncertainty.lr": args.uncertainty.lr,
    }
    for name, value in positive.items():
        if not value > 0:
            yield f"turbotrain.balance.args.{name} must be positive. Found {value}."
    not_negative = {
        "cagrad.c": args.cagrad.c,
        "gradnorm.alpha": args.gradnorm.alpha,
        "moco.decay": args.moco.decay,
        "moco.gamma": args.moco.gamma,
        "moco.rho": args.moco.rho,
        "pcgrad.seed": args.pcgrad.seed,
        "torchjd.seed": args.torchjd.seed,
    }
    for name, value in not_negative.items():
        if not value >= 0:
            yield f"turbotrain.balance.args.{name} must not be negative. Found {value}."
    if args.moco.beta > 1:
        yield f"turbotrain.balance.args.moco.beta must be at most 1. Found {args.moco.beta}."


def _optimizers(config: RunConfig) -> Iterator[str]:
    for name, optimizer in (
        ("optimizer", config.optimizer),
        ("turbotrain.pretrain.optimizer", config.turbotrain.pretrain.optimizer),
    ):
        args = optimizer.args
        if not optimizer.lr > 0:
            yield f"{name}.lr must be positive. Found {optimizer.lr}."
        if not all(0 <= beta < 1 for beta in args.betas):
            yield f"{name}.args.betas must lie in [0, 1). Found {list(args.betas)}."
        if args.weight_decay < 0 or args.eps < 0:
            yield (
                f"{name}.args weight_decay and eps must not be negative. "
                f"Found {args.weight_decay} and {args.eps}."
            )


def _schedules(config: RunConfig) -> Iterator[str]:
    for name, keys in (
        ("lr_scheduler", config.lr_scheduler),
        ("turbotrain.pretrain.lr_scheduler", config.turbotrain.pretrain.lr_scheduler),
    ):
        if keys.core_method == "step" and (not keys.step_size or keys.step_size[0] < 1):
            yield f"{name}.step_size must be at least 1 epoch. Found {list(keys.step_size)}."
        if keys.warmup_epoches < 0:
            yield f"{name}.warmup_epoches must not be negative. Found {keys.warmup_epoches}."


def _selection(config: RunConfig) -> Iterator[str]:
    block = config.turbotrain
    if block.patience and not config.train_params.eval_freq:
        yield "turbotrain.patience needs validations, but train_params.eval_freq is 0."
    thresholds = block.evaluation.iou
    measured = {f"ap_{threshold:.2f}" for threshold in thresholds}
    if not 0 < len(measured) == len(thresholds) or not all(0 < t <= 1 for t in thresholds):
        yield (
            "turbotrain.evaluation.iou must hold thresholds in (0, 1] that differ in two decimals. "
            f"Found {list(thresholds)}."
        )
    if block.monitor.startswith("ap_") and block.monitor not in measured:
        yield (
            f"turbotrain.monitor {block.monitor} is not measured: its threshold is missing in "
            f"turbotrain.evaluation.iou {list(block.evaluation.iou)}."
        )
