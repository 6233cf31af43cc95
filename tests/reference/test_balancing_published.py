"""GradNorm and MoCo against slow versions of LibMTL's published formulas, by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, step_of
from turbotrain_plugin.balancing import GradNorm, MoCo
from turbotrain_plugin.balancing.learned import LearnedNumbers

AGREE = 1e-6


class SlowGradNorm:
    """The objective written down, its gradient by autograd, its step by torch's Adam."""

    def __init__(self, tasks: int, alpha: float, lr: float) -> None:
        self.scale = torch.ones(tasks, dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.scale], lr=lr, eps=0.0)
        self.alpha = alpha

    def weights(self) -> Tensor:
        return len(self.scale) * torch.softmax(self.scale, dim=0)

    def learn(self, rows: Tensor, losses: Tensor, initial: Tensor) -> None:
        norms = (self.weights()[:, None] * rows).norm(dim=1)
        inverse_rate = losses / initial
        inverse_rate = inverse_rate / inverse_rate.mean()
        target = (norms.mean() * inverse_rate**self.alpha).detach()
        self.adam.zero_grad()
        (norms - target).abs().sum().backward()
        self.adam.step()


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("decades", [0.0, 2.0, 8.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm(tasks: int, decades: float, alpha: float) -> None:
    """The initial losses are the means of the first steps, in which nothing is learned."""
    initial_steps = 5
    ours = GradNorm(alpha, 0.025, initial_steps)
    slow = SlowGradNorm(tasks, alpha, 0.025)
    generator = torch.Generator().manual_seed(tasks)
    seen: list[Tensor] = []
    farthest = 0.0
    for number in range(40):
        size = tasks - 1 if number % 3 == 0 else 8  # linearly dependent at times
        rows = graded(tasks, number % 7, size=size, decades=decades)
        losses = torch.rand(tasks, dtype=torch.float64, generator=generator) + 0.1
        step = step_of(torch.nn.functional.pad(rows, (0, 8 - size)), losses.tolist())
        torch.testing.assert_close(
            ours.weigh_step(step), slow.weights().detach(), rtol=AGREE, atol=0.0
        )
        ours.accept(step)
        if number < initial_steps:
            seen.append(losses)
        else:
            slow.learn(rows, losses, torch.stack(seen).mean(dim=0))
        farthest = max(farthest, float((slow.weights().detach() - 1.0).abs().max()))
    assert farthest > 0.02


class SlowMoCo:
    """Estimates as one matrix, updated as printed."""

    def __init__(self, tasks: int, size: int, **args: float) -> None:
        self.estimates = torch.zeros(tasks, size, dtype=torch.float64)
        self.weights = torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)
        self.args = args
        self.step = 0

    def update(self, rows: Tensor, losses: Tensor) -> Tensor:
        self.step += 1
        fading = self.step ** self.args["decay"]
        beta, gamma = self.args["beta"] / fading, self.args["gamma"] / fading
        normed = torch.stack([g / g.norm() * loss for g, loss in zip(rows, losses, strict=True)])
        self.estimates = self.estimates - beta * (self.estimates - normed)
        penalty = self.args["rho"] * torch.eye(len(rows), dtype=torch.float64)
        products = self.estimates @ self.estimates.T + penalty
        self.weights = torch.softmax(self.weights - gamma * products @ self.weights, dim=0)
        return self.estimates.T @ self.weights


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("decades", [0.0, 4.0, 12.0])
@pytest.mark.parametrize(
    "args",
    [
        {"beta": 0.5, "gamma": 0.1, "rho": 0.0, "decay": 0.5},
        {"beta": 1.0, "gamma": 2.0, "rho": 0.3, "decay": 0.0},
    ],
)
def test_moco(tasks: int, decades: float, args: dict[str, float]) -> None:
    ours, slow = MoCo(**args), SlowMoCo(tasks, 8, **args)
    generator = torch.Generator().manual_seed(tasks)
    for number in range(30):
        rows = graded(tasks, number, decades=decades, opposed=number % 2 == 0)
        if number % 3 == 0:
            rows[-1] = rows[0] * 0.5  # linearly dependent
        losses = torch.rand(tasks, dtype=torch.float64, generator=generator) * 3.0
        step = step_of(rows, losses.tolist())
        weights = ours.weigh_step(step)
        found = ours.direction(step, weights)
        expected = slow.update(rows, losses)
        torch.testing.assert_close(
            torch.cat([found["a"], found["b"]]), expected, rtol=AGREE, atol=1e-9
        )
        torch.testing.assert_close(weights, slow.weights, rtol=AGREE, atol=0.0)
        ours.accept(step)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_learned_numbers_are_torchs_adam_without_epsilon(scale: float) -> None:
    numbers = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([numbers], lr=0.05, eps=0.0)
    ours = LearnedNumbers(0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        gradient = torch.randn(3, dtype=torch.float64, generator=generator) * scale
        numbers.grad = gradient.clone()
        adam.step()
        ours.descend(dict(zip("abc", gradient.tolist(), strict=True)))
        found = torch.tensor([ours[name] for name in "abc"], dtype=torch.float64)
        torch.testing.assert_close(found, numbers.detach(), rtol=1e-9, atol=1e-12)


def test_learned_numbers_stay_where_no_gradient_ever_was() -> None:
    ours = LearnedNumbers(0.05)
    ours.descend({"a": 0.0})
    assert ours["a"] == 0.0
    assert ours["never seen"] == 0.0
