"""Settings that are impossible together, refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator

from turbotrain_plugin.config.run import RunConfig
from turbotrain_plugin.errors import UserError


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
    yield from _channels(config)
    yield from _training(config)


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
        "turbotrain.pretrain.epoches": config.turbotrain.pretrain.epoches,
        "turbotrain.pretrain.batch_size": config.turbotrain.pretrain.batch_size,
        "turbotrain.accumulate": config.turbotrain.accumulate,
    }
    for name, value in at_least_one.items():
        if value < 1:
            yield f"{name} must be at least 1. Found {value}."
    if not all(math.isfinite(size) and size > 0 for size in voxel.voxel_size):
        yield f"preprocess.args.voxel_size must be positive. Found {list(voxel.voxel_size)}."
    if config.comm_range <= 0:
        yield f"comm_range must be positive metres. Found {config.comm_range}."


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


def _channels(config: RunConfig) -> Iterator[str]:
    args = config.model.args
    heads = {"model.args.temporal.heads": args.temporal.heads}
    if args.fusion.core_method == "v2xpnp":
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
    ratio = args.compression.ratio
    if ratio < 0 or (ratio and args.channels % ratio):
        yield f"model.args.compression.ratio must be 0 or divide {args.channels}. Found {ratio}."


def _training(config: RunConfig) -> Iterator[str]:
    block = config.turbotrain
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
    if block.balance.free_steps < 0 or block.balance.balance_steps < 0:
        yield (
            "turbotrain.balance free_steps and balance_steps must not be negative. Found "
            f"{block.balance.free_steps} and {block.balance.balance_steps}."
        )
    elif block.balance.free_steps + block.balance.balance_steps == 0:
        yield "turbotrain.balance free_steps and balance_steps cannot both be 0."
    for name, optimizer in (
        ("optimizer", config.optimizer),
        ("turbotrain.pretrain.optimizer", block.pretrain.optimizer),
    ):
        if not optimizer.lr > 0:
            yield f"{name}.lr must be positive. Found {optimizer.lr}."
