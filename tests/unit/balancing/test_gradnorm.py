"""GradNorm: weights that learn to give tasks one weighted norm and one training rate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, permuted, relative_gap, step_of
from turbotrain_plugin.balancing import GradNorm, TaskStep
from turbotrain_plugin.structures import UserError


def lengths(*values: float) -> Tensor:
    """Return orthogonal gradients of these lengths."""
    rows = torch.zeros(len(values), 4, dtype=torch.float64)
    rows[:, : len(values)] = torch.diag(torch.tensor(values, dtype=torch.float64))
    return rows


def run(method: GradNorm, step: TaskStep, steps: int) -> Tensor:
    for _ in range(steps):
        method.accept(step)
    return method.weigh_step(step)


def test_weights_start_at_one_and_wait_for_the_initial_losses() -> None:
    method = GradNorm(initial_steps=3)
    step = step_of(lengths(4.0, 1.0))
    assert method.weigh_step(step).tolist() == [1.0, 1.0]
    assert run(method, step, 3).tolist() == [1.0, 1.0]
    assert run(method, step, 1)[0] < 1.0


def test_the_initial_loss_is_the_mean_of_the_first_steps() -> None:
    method = GradNorm(initial_steps=2)
    method.accept(step_of(lengths(1.0, 1.0), [1.0, 5.0]))
    method.accept(step_of(lengths(1.0, 1.0), [3.0, 7.0]))
    rates = method._rates(step_of(lengths(1.0, 1.0), [2.0, 18.0]))  # ratios 1 and 3
    torch.testing.assert_close(rates, torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_the_first_learning_step_is_adams() -> None:
    """Whatever the gradient's size, Adam's first step is the learning rate, against its sign."""
    method = GradNorm(lr=0.1, initial_steps=1)
    weights = run(method, step_of(lengths(4.0, 1.0)), 1)
    expected = 2.0 * torch.tensor([-0.1, 0.1], dtype=torch.float64).softmax(dim=0)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0.0)


def test_weighted_norms_become_equal() -> None:
    """Losses stand still, so all rates are one and w_k n_k must meet: w = (0.4, 1.6)."""
    weights = run(GradNorm(lr=0.01, initial_steps=1), step_of(lengths(4.0, 1.0)), 400)
    expected = torch.tensor([0.4, 1.6], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=0.03, atol=0.0)


def test_the_task_that_trains_more_slowly_gains_weight() -> None:
    method = GradNorm(initial_steps=1)
    method.accept(step_of(lengths(1.0, 1.0), [1.0, 1.0]))
    weights = run(method, step_of(lengths(1.0, 1.0), [0.9, 0.1]), 20)
    assert weights[0] > 1.1
    no_pull = GradNorm(alpha=0.0, initial_steps=1)
    no_pull.accept(step_of(lengths(1.0, 1.0), [1.0, 1.0]))
    unmoved = run(no_pull, step_of(lengths(1.0, 1.0), [0.9, 0.1]), 20)
    torch.testing.assert_close(unmoved, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("scale", [1e-9, 65536.0])
def test_a_common_scale_of_the_gradients_changes_nothing(tasks: int, scale: float) -> None:
    plain, scaled = GradNorm(initial_steps=2), GradNorm(initial_steps=2)
    for seed in range(20):
        rows = graded(tasks, seed)
        losses = (1.0 + rows[:, 0].abs()).tolist()
        plain.accept(step_of(rows, losses))
        scaled.accept(step_of(rows * scale, losses))
        found = scaled.weigh_step(step_of(rows * scale, losses))
        expected = plain.weigh_step(step_of(rows, losses))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
        assert float(found.sum()) == pytest.approx(tasks)
    assert relative_gap(found, torch.ones_like(found)) > 0.01


def test_permuting_the_tasks_permutes_the_weights() -> None:
    for order in itertools.permutations(range(3)):
        plain, moved = GradNorm(initial_steps=2), GradNorm(initial_steps=2)
        for seed in range(10):
            step = step_of(graded(3, seed), [1.0, 0.5 + 0.1 * seed, 2.0 - 0.1 * seed])
            plain.accept(step)
            moved.accept(permuted(step, order))
        expected = plain.weigh_step(step)[torch.tensor(order)]
        found = moved.weigh_step(permuted(step, order))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)


def test_an_absent_task_learns_nothing_and_the_rest_sum_to_their_number() -> None:
    method = GradNorm(initial_steps=1)
    run(method, step_of(lengths(1.0, 2.0, 4.0)), 10)
    before = method.state_dict()["theta"]["occupancy"]
    two = step_of(lengths(1.0, 4.0))  # detection and prediction only
    assert float(run(method, two, 5).sum()) == pytest.approx(2.0)
    assert method.state_dict()["theta"]["occupancy"] == before


def test_losses_that_start_at_or_fall_to_zero_do_no_harm() -> None:
    method = GradNorm(initial_steps=1)
    method.accept(step_of(lengths(1.0, 2.0), [0.0, 1.0]))
    for losses in ([1.0, 0.0], [0.0, 0.0], [-1.0, -2.0]):
        assert bool(run(method, step_of(lengths(1.0, 2.0), losses), 3).isfinite().all())


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 7])
def test_a_loaded_state_goes_on_alike(stop: int) -> None:
    steps = [step_of(graded(2, seed), [1.0, 1.0 + 0.1 * seed]) for seed in range(10)]
    straight, first, second = (GradNorm(initial_steps=2) for _ in range(3))
    for step in steps:
        straight.accept(step)
    for step in steps[:stop]:
        first.accept(step)
    second.accept(steps[0])  # whatever it did before, the loaded state holds
    second.load_state_dict(first.state_dict())
    for step in steps[stop:]:
        second.accept(step)
    assert second.state_dict() == straight.state_dict()
    second.load_state_dict({})
    assert second.state_dict() == GradNorm().state_dict()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"alpha": -1.0}, "'gradnorm' needs alpha not to be negative"),
        ({"lr": 0.0}, "'gradnorm' needs lr above 0"),
        ({"initial_steps": 0}, "'gradnorm' needs initial_steps above 0"),
    ],
)
def test_mistakes(args: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GradNorm(**args)  # type: ignore[arg-type]
