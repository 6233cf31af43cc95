"""Learning rates are pure functions of the step; optimisers are what the file says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from turbotrain_plugin.balancing import ScheduleWarning
from turbotrain_plugin.config import (
    BalanceArgs,
    BalanceConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from turbotrain_plugin.config.balancing import TorchJDArgs
from turbotrain_plugin.engine.optim import (
    build_balancer,
    build_optimizer,
    check_methods,
    learning_rate,
    set_learning_rate,
)
from turbotrain_plugin.errors import UserError


def test_cosine_agrees_with_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=0.1)
    keys = SchedulerConfig(core_method="cosine", lr_min=0.1)
    for epoch in range(11):
        assert learning_rate(keys, 0.5, epoch, 10) == pytest.approx(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()


def test_multistep_agrees_with_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], gamma=0.1)
    keys = SchedulerConfig(core_method="multistep", step_size=(2, 5), gamma=0.1)
    for epoch in range(8):
        assert learning_rate(keys, 1.0, epoch, 8) == pytest.approx(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()


@pytest.mark.parametrize(
    ("method", "epoch", "expected"),
    [
        ("none", 7.3, 1.0),
        ("step", 2.9, 1.0),
        ("step", 3.0, 0.5),
        ("step", 6.5, 0.25),
        ("exponential", 3.7, 0.125),
        ("cosine", 5.0, 0.5),
        ("cosine", 10.0, 0.0),
        ("cosine", 12.0, 0.0),
    ],
)
def test_hand_values(method: str, epoch: float, expected: float) -> None:
    keys = SchedulerConfig(core_method=method, gamma=0.5, step_size=(3,))
    assert learning_rate(keys, 1.0, epoch, 10) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_linearly_and_meets_the_schedule() -> None:
    keys = SchedulerConfig(core_method="cosine", warmup_epoches=2, warmup_lr=0.1)
    assert learning_rate(keys, 1.0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate(keys, 1.0, 1.0, 10) == pytest.approx(0.55)
    assert learning_rate(keys, 1.0, 2.0, 10) == pytest.approx(1.0)
    half = learning_rate(keys, 1.0, 6.0, 10)
    assert half == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_optimisers(name: str) -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = build_optimizer(OptimizerConfig(core_method=name, lr=0.3), module.parameters())
    assert type(optimizer).__name__ == name
    assert [p for group in optimizer.param_groups for p in group["params"]] == [module.weight]
    assert optimizer.param_groups[0]["weight_decay"] == 1e-4
    set_learning_rate(optimizer, 0.7)
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_a_stage_without_balancing_is_the_plain_sum() -> None:
    balancer = build_balancer(OptimizerConfig(lr=0.3), None, nn.Linear(2, 1))
    assert not any(balancer.schedule.is_balanced(step) for step in range(9))
    assert balancer.param_groups[0]["lr"] == 0.3


@pytest.mark.filterwarnings(f"error::{ScheduleWarning.__module__}.{ScheduleWarning.__name__}")
def test_a_balanced_stage_has_its_method_schedule_and_trained_parameters() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    keys = BalanceConfig(method="dwa", free_steps=0, balance_steps=1)
    balancer = build_balancer(OptimizerConfig(), keys, module)
    assert type(balancer.method).__name__ == "DynamicWeightAverage"
    assert balancer.schedule.is_balanced(0)
    assert balancer.param_groups[0]["params"] == list(module[1].parameters())


@pytest.mark.parametrize("name", ["nope", "torchjd:Nope"])
def test_wrong_methods_are_found_among_right_ones(name: str) -> None:
    with pytest.raises(UserError):
        check_methods([None, BalanceConfig(), BalanceConfig(method=name)])


def test_wrong_arguments_are_found() -> None:
    """Those of another method are none of its own."""
    pytest.importorskip("torchjd")
    args = BalanceArgs(torchjd=TorchJDArgs(momentum=0.5))
    keys = BalanceConfig(method="torchjd:MGDA", args=args)
    with pytest.raises(UserError, match="momentum"):
        check_methods([keys])
    check_methods([BalanceConfig(method="torchjd:MGDA"), None])
