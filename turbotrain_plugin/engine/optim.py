"""Optimisers, and learning rates as pure functions of the step (so that resuming is exact)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from turbotrain_plugin.config import OptimizerConfig, SchedulerConfig


def build_optimizer(
    keys: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the configured optimiser over the trainable ``parameters``."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if keys.core_method == "SGD":
        return torch.optim.SGD(
            trainable, lr=keys.lr, momentum=keys.args.betas[0], weight_decay=keys.args.weight_decay
        )
    arguments: dict[str, Any] = {
        "lr": keys.lr,
        "eps": keys.args.eps,
        "weight_decay": keys.args.weight_decay,
        "betas": keys.args.betas,
    }
    if keys.core_method == "AdamW":
        return torch.optim.AdamW(trainable, **arguments)
    return torch.optim.Adam(trainable, **arguments)


def learning_rate(keys: SchedulerConfig, base_lr: float, epoch: float, epochs: int) -> float:
    """Return the learning rate at a point of a stage.

    Args:
        keys: The schedule.
        base_lr: ``optimizer.lr``.
        epoch: Epochs done so far, with fraction.
        epochs: Epochs of the stage.
    """
    if epoch < keys.warmup_epoches:
        start = keys.warmup_lr
        return start + (base_lr - start) * epoch / keys.warmup_epoches
    if keys.core_method in ("cosine", "cosineannealwarm"):
        span = max(epochs - keys.warmup_epoches, 1e-9)
        share = min((epoch - keys.warmup_epoches) / span, 1.0)
        return keys.lr_min + (base_lr - keys.lr_min) * 0.5 * (1 + math.cos(math.pi * share))
    if keys.core_method == "exponential":
        return base_lr * keys.gamma ** int(epoch)
    if keys.core_method == "step":
        return base_lr * keys.gamma ** (int(epoch) // keys.step_size[0])
    if keys.core_method == "multistep":
        return base_lr * keys.gamma ** sum(epoch >= milestone for milestone in keys.step_size)
    return base_lr


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = value
