"""Methods with a memory inside the balancer: what they see, when they learn, how they resume."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.resumed import resumed
from turbotrain_plugin.balancing import BALANCERS, GradientBalancer, StepBalancer, TaskStep
from turbotrain_plugin.structures import UserError

MakeModel = Callable[..., Any]  # the TwoTasks of conftest.py

QUICK: dict[str, dict[str, Any]] = {
    "dwa": {"window": 1},
    "gradnorm": {"initial_steps": 1},
    "torchjd:CRMOGM": {"weighting": "MGDA"},
}
"""Arguments with which a method shows within a few steps that it remembers."""

METHODS = sorted({*BALANCERS} - {"none"})
TORCHJD = [
    "torchjd:CRMOGM",
    "torchjd:ExcessMTL",
    "torchjd:GradVac",
    "torchjd:PCD",
    "torchjd:Random",
]
LEARNING = ["dwa", "gradnorm", "moco", "uncertainty"]


def balance(
    model: nn.Module, method: str | StepBalancer, *, free_steps: int = 0, lr: float = 0.05
) -> GradientBalancer:
    if isinstance(method, str) and method.startswith("torchjd:"):
        pytest.importorskip("torchjd")
    return GradientBalancer(
        torch.optim.Adam(model.parameters(), lr=lr),
        method=method,
        args=QUICK.get(method) if isinstance(method, str) else None,
        free_steps=free_steps,
        balance_steps=3,
        named_parameters=model.named_parameters(),
    )


class ThreeTasks(nn.Module):
    """A trunk and three heads whose losses conflict, so that an order of tasks matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.heads = nn.ModuleList(nn.Linear(3, 1) for _ in range(3))
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        signs = torch.tensor([[1.0, 0.1, 0.0], [-0.6, 1.0, 0.0], [-0.6, -0.7, 0.3]]).double()
        return {
            f"task{i}": (z @ signs[i] + head(z)[:, 0] - 1.0).square().mean()
            for i, head in enumerate(self.heads)
        }


def train(model: nn.Module, balancer: GradientBalancer, inputs: Tensor, steps: int) -> list[Any]:
    records = []
    for _ in range(steps):
        x = inputs.roll(balancer.steps_taken, dims=1)
        balancer.zero_grad()
        balancer.backward(model(x))
        balancer.step()
        records.append(balancer.last_record)
    return records


def plain(state: Any) -> str:  # noqa: ANN401
    """Return a state in a form that compares by value."""
    if isinstance(state, Mapping):
        return repr({key: plain(value) for key, value in state.items()})
    return repr(state.tolist()) if isinstance(state, Tensor) else repr(state)


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("method", [*METHODS, *TORCHJD])
def test_resume_is_exact_to_the_bit(
    method: str, tasks: int, make_model: MakeModel, inputs: Tensor, tmp_path: Path
) -> None:
    def make() -> tuple[nn.Module, GradientBalancer]:
        model = make_model() if tasks == 2 else ThreeTasks()
        return model, balance(model, method, free_steps=1)

    straight_model, straight = make()
    expected = train(straight_model, straight, inputs, 11)
    for stop in (2, 5):
        model, balancer = make()
        records = train(model, balancer, inputs, stop)
        model, balancer = resumed(model, balancer, make, tmp_path / "last.ckpt")
        assert records + train(model, balancer, inputs, 11 - stop) == expected
        for left, right in zip(model.parameters(), straight_model.parameters(), strict=True):
            assert torch.equal(left, right)
        found = plain(balancer.state_dict()["turbotrain_balancer"])
        assert found == plain(straight.state_dict()["turbotrain_balancer"])


@pytest.mark.parametrize("method", [*LEARNING, "pcgrad", "torchjd:GradVac"])
def test_forgetting_the_memory_shows(method: str, inputs: Tensor) -> None:
    """Else the test of resuming would prove nothing."""
    model = ThreeTasks()
    balancer = balance(model, method)
    train(model, balancer, inputs, 4)
    twin, other = copy.deepcopy((model, balancer))
    state = other.state_dict()
    state["turbotrain_balancer"]["method"]["state"] = {}
    other.load_state_dict(state)
    expected = train(model, balancer, inputs, 4)
    assert train(twin, other, inputs, 4) != expected


@pytest.mark.parametrize("method", [*METHODS, *TORCHJD])
def test_a_step_that_is_not_taken_teaches_nothing(method: str, inputs: Tensor) -> None:
    model = ThreeTasks()
    balancer = balance(model, method)
    train(model, balancer, inputs, 2)
    before = plain(balancer.method.state_dict())
    losses = model(inputs)
    balancer.backward({**losses, "task0": losses["task0"] * float("nan")})
    with pytest.warns(UserWarning, match="was not taken"):
        balancer.step()
    assert plain(balancer.method.state_dict()) == before
    balancer.zero_grad()
    balancer.backward(model(inputs))
    balancer.zero_grad()  # given up
    assert plain(balancer.method.state_dict()) == before


@pytest.mark.parametrize("method", LEARNING)
def test_a_step_with_one_task_teaches_nothing_and_is_the_plain_gradient(
    method: str, make_model: MakeModel, inputs: Tensor
) -> None:
    model = make_model(norm=False)
    balancer = balance(model, method)
    train(model, balancer, inputs, 2)
    before = plain(balancer.method.state_dict())
    losses = model(inputs)
    expected = torch.autograd.grad(losses["detection"], model.trunk[0].weight, retain_graph=True)[0]
    balancer.zero_grad()
    balancer.backward({"detection": losses["detection"], "prediction": losses["prediction"] * 0.0})
    torch.testing.assert_close(model.trunk[0].weight.grad, expected)
    balancer.step()
    assert plain(balancer.method.state_dict()) == before


@pytest.mark.parametrize("method", LEARNING)
def test_free_steps_teach_nothing(method: str, make_model: MakeModel, inputs: Tensor) -> None:
    model = make_model()
    balancer = balance(model, method, free_steps=4)
    fresh = plain(balancer.method.state_dict())
    train(model, balancer, inputs, 4)
    assert plain(balancer.method.state_dict()) == fresh
    train(model, balancer, inputs, 1)
    assert plain(balancer.method.state_dict()) != fresh


class Watcher(StepBalancer):
    """Remembers the steps it saw."""

    needs_rows = True

    def __init__(self) -> None:
        self.weighed: list[TaskStep] = []
        self.accepted: list[TaskStep] = []

    def weigh_step(self, step: TaskStep) -> Tensor:
        self.weighed.append(step)
        return torch.ones(len(step.tasks), dtype=torch.float64)

    def accept(self, step: TaskStep) -> None:
        self.accepted.append(step)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_what_a_method_sees_of_a_step(make_model: MakeModel, inputs: Tensor, scale: float) -> None:
    """Two micro-batches; sums of losses and of gradients, without the loss scale."""
    model = make_model(norm=False)
    untrained = copy.deepcopy(model)
    method = Watcher()
    balancer = balance(model, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1.0 else None
    for batch in inputs.split(8):
        balancer.backward({t: loss / 2 for t, loss in model(batch).items()}, scaler=scaler)
    if scaler is not None:
        scaler.unscale_(balancer)
    balancer.step()
    assert len(method.weighed) == 2
    (step,) = method.accepted
    assert step.tasks == ("detection", "prediction")
    shared = dict(untrained.trunk.named_parameters(prefix="trunk"))
    halves = [untrained(batch) for batch in inputs.split(8)]
    for index, task in enumerate(step.tasks):
        loss = (halves[0][task] + halves[1][task]) / 2
        torch.testing.assert_close(step.losses[index], loss.detach())
        wanted = torch.autograd.grad(loss, list(shared.values()), retain_graph=True)
        torch.testing.assert_close(dict(step.rows[index]), dict(zip(shared, wanted, strict=True)))
        square = torch.stack([one.square().sum() for one in wanted]).sum()
        torch.testing.assert_close(step.gramian[index, index], square)


class Constant(Watcher):
    """Writes a direction of its own."""

    def direction(self, step: TaskStep, weights: Tensor) -> dict[str, Tensor]:
        del weights
        return {name: torch.full_like(row, 3.0) for name, row in step.rows[0].items()}


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_direction_takes_the_place_of_the_shared_gradient_only(
    make_model: MakeModel, inputs: Tensor, scale: float
) -> None:
    model = make_model(norm=False)
    losses = model(inputs)
    head = model.detection_head.weight
    expected = torch.autograd.grad(losses["detection"], head, retain_graph=True)[0]
    method = Constant()
    balancer = balance(model, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1.0 else None
    model.trunk[0].weight.grad = torch.full_like(model.trunk[0].weight, 0.5)
    balancer.backward(losses, scaler=scaler)
    assert model.trunk[0].weight.grad.unique().tolist() == [3.0 * scale + 0.5]
    assert model.trunk[3].bias.grad.unique().tolist() == [3.0 * scale]
    torch.testing.assert_close(head.grad, expected * scale)
    balancer.backward(model(inputs), scaler=scaler)
    torch.testing.assert_close(head.grad, expected * scale * 2)
    assert method.weighed[-1].tasks == ("detection", "prediction")


@pytest.mark.parametrize("method", ["moco", "torchjd:ExcessMTL", "gradnorm"])
def test_a_loss_scale_changes_nothing(method: str, make_model: MakeModel, inputs: Tensor) -> None:
    runs = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**16, enabled=True)):
        model = make_model()
        balancer = balance(model, method)
        for _ in range(5):
            balancer.zero_grad()
            balancer.backward(model(inputs), scaler=scaler)
            if scaler is None:
                balancer.step()
            else:
                scaler.unscale_(balancer)
                scaler.step(balancer)
                scaler.update()
        runs.append((model, balancer))
    (left, plain_run), (right, scaled_run) = runs
    assert plain_run.last_record is not None
    assert scaled_run.last_record is not None
    assert scaled_run.last_record.weights == pytest.approx(plain_run.last_record.weights, rel=1e-9)
    for one, other in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_another_methods_memory_is_left_out(make_model: MakeModel, inputs: Tensor) -> None:
    model = make_model()
    moco = balance(model, "moco")
    train(model, moco, inputs, 2)
    dwa = balance(model, "dwa")  # both call something "steps"
    fresh = plain(dwa.method.state_dict())
    dwa.load_state_dict(moco.state_dict())
    assert plain(dwa.method.state_dict()) == fresh
    assert dwa.steps_taken == 2


def test_arguments_reach_the_method_and_wrong_ones_are_named(make_model: MakeModel) -> None:
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    assert GradientBalancer(optimizer, method="cagrad", args={"c": 0.2}).method.c == 0.2  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"method 'cagrad' takes c, scale. Found alpha"):
        GradientBalancer(optimizer, method="cagrad", args={"alpha": 1.0})
    with pytest.raises(UserError, match=r"method 'none' takes no argument. Found alpha"):
        GradientBalancer(optimizer, method="none", args={"alpha": 1.0})


def test_the_description_names_the_method(make_model: MakeModel) -> None:
    pytest.importorskip("torchjd")
    assert "MoCo, every step balanced" in balance(make_model(), "moco").describe()
    assert "torchjd:PCGrad, every step" in balance(make_model(), "torchjd:PCGrad").describe()
