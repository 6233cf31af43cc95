"""Optimisers, balanced or not; learning rates as pure functions of the step (exact to resume)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning, method_named
from turbotrain_plugin.config import BalanceConfig, OptimizerConfig, SchedulerConfig


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


def build_balancer(
    keys: OptimizerConfig, balance: BalanceConfig | None, module: nn.Module
) -> GradientBalancer:
    """Return the configured optimiser over what is trained of ``module``, with its balancing.

    What speaks against a schedule is not said here: it depends on the length of the stage.

    Args:
        keys: The optimiser.
        balance: Method and schedule; None: every step is the plain sum of the losses.
        module: Network and what else is trained.

    Raises:
        UserError: When the method is unknown or its arguments do not fit.
    """
    chosen = balance or BalanceConfig(method="none", free_steps=1, balance_steps=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return GradientBalancer(
            build_optimizer(keys, module.parameters()),
            method=chosen.method,
            free_steps=chosen.free_steps,
            balance_steps=chosen.balance_steps,
            shared=chosen.shared or None,
            named_parameters=list(module.named_parameters()),
            source=chosen.source,
            cut=chosen.cut,
            args=chosen.args.of(chosen.method),
            probe_every=chosen.probe_every,
            modules={pattern: (pattern,) for pattern in chosen.modules},
        )


def check_methods(balances: Iterable[BalanceConfig | None]) -> None:
    """Build the balance methods of a run once, so that a wrong one fails before any stage runs.

    Raises:
        UserError: When a method is unknown, its arguments do not fit or a package is missing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever builds the method for its stage says it again
        for balance in balances:
            if balance is not None:
                method_named(balance.method, balance.args.of(balance.method))


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
