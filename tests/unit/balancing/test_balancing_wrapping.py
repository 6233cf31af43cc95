"""The balancer in the place of an ordinary optimiser: schedulers, scalers, checkpoints, copies."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.helpers.resumed import resumed
from turbotrain_plugin.balancing import (
    BALANCERS,
    GradientBalancer,
    PlainSum,
    Schedule,
    ScheduleWarning,
    schedule_named,
)
from turbotrain_plugin.balancing.schedule import SCHEDULES
from turbotrain_plugin.balancing.sources import SOURCES
from turbotrain_plugin.config import BalanceConfig
from turbotrain_plugin.structures import UserError

MakeModel = Callable[..., Any]  # the TwoTasks of conftest.py
MakeBalancer = Callable[..., GradientBalancer]
MakeScheduler = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]

SCHEDULERS: dict[str, MakeScheduler] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (1 + step)),
    "warm": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_learning_rate_schedulers(
    name: str, make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model, other = make_model(), make_model()
    balancer = make_balancer(model)
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    with warnings.catch_warnings():
        # The one about calling the scheduler before the optimiser would show a broken wrapper.
        warnings.filterwarnings("error", message="Detected call of")
        ours, theirs = SCHEDULERS[name](balancer), SCHEDULERS[name](plain)
        for _ in range(6):
            balancer.zero_grad()
            balancer.backward(model(inputs))
            balancer.step()
            ours.step()
            plain.step()
            theirs.step()
            assert balancer.inner.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
            assert ours.get_last_lr() == theirs.get_last_lr()


def test_a_scheduler_reduces_on_a_plateau(
    make_model: MakeModel, make_balancer: MakeBalancer
) -> None:
    balancer = make_balancer(make_model())
    scheduler = lr_scheduler.ReduceLROnPlateau(balancer, patience=0, factor=0.5)
    for _ in range(3):
        scheduler.step(1.0)
    assert balancer.inner.param_groups[0]["lr"] == pytest.approx(0.025)


def test_a_scheduler_of_the_wrapped_optimizer_works_too(
    make_model: MakeModel, inputs: Tensor
) -> None:
    model = make_model()
    inner = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = lr_scheduler.StepLR(inner, 1, gamma=0.5)
    balancer = GradientBalancer(inner, free_steps=0, balance_steps=1)
    balancer.backward(model(inputs))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Detected call of")
        balancer.step()
        scheduler.step()
    assert balancer.param_groups[0]["lr"] == 0.5


def test_it_is_the_wrapped_optimizer_to_the_outside(make_model: MakeModel) -> None:
    model = make_model()
    inner = torch.optim.AdamW(model.parameters(), lr=0.3)
    balancer = GradientBalancer(inner)
    assert isinstance(balancer, torch.optim.Optimizer)
    assert balancer.param_groups is inner.param_groups
    assert balancer.state is inner.state
    assert balancer.defaults is inner.defaults
    balancer.param_groups[0]["lr"] = 0.7
    assert inner.param_groups[0]["lr"] == 0.7
    inner.load_state_dict(inner.state_dict())
    assert balancer.param_groups is inner.param_groups
    assert "AdamW" in repr(balancer)


def test_adding_a_parameter_group(make_model: MakeModel, inputs: Tensor) -> None:
    model = make_model()
    balancer = GradientBalancer(
        torch.optim.SGD(model.trunk[0].parameters(), lr=0.1),
        free_steps=0,
        balance_steps=1,
        named_parameters=model.named_parameters(),
    )
    balancer.add_param_group({"params": list(model.trunk[3].parameters()), "lr": 0.2})
    assert [group["lr"] for group in balancer.inner.param_groups] == [0.1, 0.2]
    balancer.backward(model(inputs))
    assert balancer.shared_names == (
        "trunk.0.weight",
        "trunk.0.bias",
        "trunk.3.weight",
        "trunk.3.bias",
    )


def test_step_hooks_run_once(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    called: list[str] = []
    balancer.register_step_pre_hook(lambda *_: called.append("pre"))
    balancer.register_step_post_hook(lambda *_: called.append("post"))
    balancer.backward(model(inputs))
    balancer.step()
    assert called == ["pre", "post"]


def test_an_ordinary_backward_and_step_still_work(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    sum(model(inputs).values()).backward()
    before = model.trunk[0].weight.clone()
    balancer.step()
    assert not torch.equal(model.trunk[0].weight, before)
    assert balancer.last_record is not None
    assert not balancer.last_record.balanced


def train(model: nn.Module, balancer: GradientBalancer, inputs: Tensor, steps: int) -> list[Any]:
    records = []
    for _ in range(steps):
        balancer.zero_grad()
        balancer.backward(model(inputs))
        balancer.step()
        records.append(balancer.last_record)
    return records


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 7])
def test_resume_in_the_middle_of_a_cycle(
    make_model: MakeModel, inputs: Tensor, tmp_path: Path, stop: int
) -> None:
    """Stopping, saving to a file and going on gives the same as going on."""

    def make() -> tuple[nn.Module, GradientBalancer]:
        model = make_model()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        return model, GradientBalancer(adam, free_steps=2, balance_steps=2)

    straight_model, straight = make()
    expected = train(straight_model, straight, inputs, 8)
    model, balancer = make()
    records = train(model, balancer, inputs, stop)
    model, balancer = resumed(model, balancer, make, tmp_path / "last.ckpt")
    assert balancer.steps_taken == stop
    records += train(model, balancer, inputs, 8 - stop)
    assert records == expected
    assert [record.balanced for record in records] == [False, False, True, True] * 2
    assert balancer.window == straight.window
    for left, right in zip(model.parameters(), straight_model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_of_a_bare_optimizer_loads(make_model: MakeModel, inputs: Tensor) -> None:
    model = make_model()
    bare = torch.optim.Adam(model.parameters(), lr=0.5)
    sum(model(inputs).values()).backward()
    bare.step()
    balancer = GradientBalancer(torch.optim.Adam(model.parameters(), lr=0.1))
    balancer.load_state_dict(bare.state_dict())
    assert balancer.param_groups[0]["lr"] == 0.5
    assert balancer.steps_taken == 0
    # And back: the wrapped state is a bare optimiser's with one key more.
    assert set(balancer.state_dict()) - set(bare.state_dict()) == {"turbotrain_balancer"}


def test_another_schedule_on_resume_is_said(
    make_model: MakeModel, make_balancer: MakeBalancer
) -> None:
    saved = make_balancer(make_model(), free_steps=2, balance_steps=1).state_dict()
    balancer = make_balancer(make_model(), free_steps=3, balance_steps=1)
    with pytest.warns(ScheduleWarning, match=r"'2 free steps, then 1 .* this run by '3 free"):
        balancer.load_state_dict(saved)
    assert str(balancer.schedule) == "3 free steps, then 1 balanced"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedule_named("every_step"), [1] * 6),
        (schedule_named("never"), [0] * 6),
        (schedule_named("after_warmup", warmup_steps=3), [0, 0, 0, 1, 1, 1]),
        (
            schedule_named(
                "hybrid", free_steps=0.34, balance_steps=0.16, unit="share", total_steps=6
            ),
            [0, 0, 1, 0, 0, 1],
        ),
    ],
    ids=str,
)
def test_other_schedules_survive_a_resume(
    make_model: MakeModel, inputs: Tensor, schedule: Schedule, expected: list[int]
) -> None:
    def make() -> tuple[nn.Module, GradientBalancer]:
        model = make_model()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, GradientBalancer(sgd, schedule=schedule)

    straight_model, straight = make()
    records = train(straight_model, straight, inputs, 6)
    assert [int(record.balanced) for record in records] == expected
    for stop in (2, 3, 5):
        model, balancer = make()
        train(model, balancer, inputs, stop)
        state = copy.deepcopy((model.state_dict(), balancer.state_dict()))
        model, balancer = make()
        model.load_state_dict(state[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            balancer.load_state_dict(state[1])
        assert train(model, balancer, inputs, 6 - stop) == records[stop:]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hybrid", [0, 0, 1, 0, 0, 1]),
        ("every_step", [1] * 6),
        ("never", [0] * 6),
        ("after_warmup", [0, 0, 1, 1, 1, 1]),
    ],
)
def test_a_schedule_goes_by_its_name(
    make_model: MakeModel, inputs: Tensor, name: str, expected: list[int]
) -> None:
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = GradientBalancer(sgd, schedule=name, free_steps=2, balance_steps=1)
    assert [int(r.balanced) for r in train(model, balancer, inputs, 6)] == expected
    with pytest.raises(UserError, match=r"no balancing schedule 'sometimes'.*every_step"):
        GradientBalancer(sgd, schedule="sometimes")


def test_copies_are_independent(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    lr_scheduler.StepLR(balancer, 1)
    train(model, balancer, inputs, 2)
    model2, balancer2 = copy.deepcopy((model, balancer))
    assert train(model2, balancer2, inputs, 1) == train(model, balancer, inputs, 1)
    for left, right in zip(model.parameters(), model2.parameters(), strict=True):
        assert torch.equal(left, right)
    train(model2, balancer2, inputs, 1)
    assert balancer.steps_taken == 3


# ---------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize(
    ("free_steps", "source"), [(9, "exact"), (0, "exact"), (0, "exact_low_memory"), (0, "feature")]
)
def test_the_scale_of_a_scaler_changes_nothing(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor, free_steps: int, source: str
) -> None:
    model, other = make_model(dtype=torch.float32), make_model(dtype=torch.float32)
    scaled = make_balancer(model, free_steps=free_steps)
    unscaled = make_balancer(other, free_steps=free_steps)
    scaled.source = unscaled.source = source
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x = inputs.float()
    for _ in range(3):
        scaled.zero_grad()
        scaled.backward(model(x), scaler=scaler)
        scaler.unscale_(scaled)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(scaled)
        scaler.update()
        unscaled.zero_grad()
        unscaled.backward(other(x))
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        unscaled.step()
        assert scaled.last_record is not None
        assert unscaled.last_record is not None
        assert scaled.last_record.norms == pytest.approx(unscaled.last_record.norms, rel=1e-5)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7)
    assert scaled.steps_taken == 3


def test_clipping_sees_the_combined_gradient(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    balancer.backward(model(inputs))
    free = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    balancer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.1 * free[name] * 1e-3 / (norm + 1e-6)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("free_steps", [0, 9])
@pytest.mark.parametrize("clear", ["balancer", "model"])
def test_overflow_is_left_to_the_scaler(
    make_model: MakeModel,
    make_balancer: MakeBalancer,
    inputs: Tensor,
    free_steps: int,
    clear: str,
) -> None:
    """The scaler skips the step and lowers its scale; the schedule does not move."""
    model = make_model(dtype=torch.float32)
    balancer = make_balancer(model, free_steps=free_steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    x = inputs.float()
    before = model.trunk[0].weight.detach().clone()
    losses = model(x)
    losses["prediction"] = losses["prediction"] * float("inf")
    balancer.backward(losses, scaler=scaler)
    scaler.step(balancer)
    scaler.update()
    assert torch.equal(model.trunk[0].weight, before)
    assert scaler.get_scale() == 2.0**7
    assert balancer.steps_taken == 0
    assert balancer.last_record is None
    (balancer if clear == "balancer" else model).zero_grad()
    balancer.backward(model(x), scaler=scaler)
    scaler.step(balancer)
    scaler.update()
    assert balancer.steps_taken == 1
    assert bool(model.trunk[0].weight.isfinite().all())
    assert not torch.equal(model.trunk[0].weight, before)


def test_autocast_in_bfloat16(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model(dtype=torch.float32)
    balancer = make_balancer(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(inputs.float())
    balancer.backward(losses)
    balancer.step()
    assert balancer.steps_taken == 1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


# -------------------------------------------------------------------------------------- constructor


def test_schedules_are_warned_about(make_model: MakeModel) -> None:
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.warns(ScheduleWarning, match="EVERY step is balanced"):
        GradientBalancer(optimizer, free_steps=0)
    with pytest.warns(ScheduleWarning, match="outside what the paper tried"):
        GradientBalancer(optimizer, free_steps=10, balance_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradientBalancer(optimizer)
        GradientBalancer(optimizer, free_steps=0, balance_steps=0)
        GradientBalancer(optimizer, free_steps=0, method="none")


def test_constructor_mistakes(make_model: MakeModel) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"no balance method 'pcgrd'; choose one of .*pcgrad"):
        GradientBalancer(optimizer, method="pcgrd")
    with pytest.raises(ValueError, match=r"`optimizer` should be a torch optimizer .* Found list"):
        GradientBalancer(list(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not wrapped yet\. Found GradientBalancer"):
        GradientBalancer(GradientBalancer(optimizer))


def test_a_closure_is_called_first_with_gradients(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    """Lightning and others call ``step`` so."""
    model, twin = make_model(), make_model()
    balancer, plain = make_balancer(model), make_balancer(twin)
    plain.backward(twin(inputs))
    plain.step()

    def closure() -> float:
        balancer.zero_grad()
        losses = model(inputs)
        balancer.backward(losses)
        return float(losses["detection"].detach())

    with torch.no_grad():
        assert balancer.step(closure) == pytest.approx(float(make_model()(inputs)["detection"]))
    assert balancer.last_record == plain.last_record
    assert balancer.last_record is not None
    assert balancer.last_record.balanced
    for name, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_method_none_never_balances(make_model: MakeModel, inputs: Tensor) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = GradientBalancer(optimizer, method="none", free_steps=0, balance_steps=1)
    assert not balancer.is_balanced
    assert isinstance(balancer.method, PlainSum)
    (record,) = train(model, balancer, inputs, 1)
    assert not record.balanced
    assert "off" in balancer.describe()


def test_description_names_the_shared_modules(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model, free_steps=3, balance_steps=2)
    assert "first backward" in balancer.describe()
    balancer.backward(model(inputs))
    text = balancer.describe()
    assert "3 free" in text
    assert "then 2 balanced" in text
    assert "trunk (6)" in text
    assert "detection 2, prediction 2" in text
    assert len(balancer.shared_names) == 6


def test_the_table_lists_what_yaml_may_name() -> None:
    (declared,) = (f for f in dataclasses.fields(BalanceConfig) if f.name == "method")
    assert {*BALANCERS, "torchjd:*"} == set(declared.metadata["choices"])
    keys = {field.name: field.metadata["choices"] for field in dataclasses.fields(BalanceConfig)}
    assert keys["source"] == SOURCES
    assert keys["schedule"] == SCHEDULES
