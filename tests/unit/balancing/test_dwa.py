"""Dynamic Weight Average: windows of losses, and the weights between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from tests.helpers.graded_gradients import graded, permuted, step_of
from turbotrain_plugin.balancing import DynamicWeightAverage, TaskStep
from turbotrain_plugin.structures import UserError


def step_with(losses: Sequence[float], tasks: Sequence[str] | None = None) -> TaskStep:
    return step_of(graded(len(losses), 0), losses, tasks)


def after(method: DynamicWeightAverage, *losses: Sequence[float]) -> list[float]:
    """Accept steps with these losses; return the weights of the next step."""
    for one in losses:
        method.accept(step_with(one))
    found: list[float] = method.weigh_step(step_with(losses[-1])).tolist()
    return found


def test_weights_are_one_until_two_windows_are_full() -> None:
    method = DynamicWeightAverage(window=2)
    for _ in range(3):
        assert after(method, [1.0, 4.0]) == [1.0, 1.0]
    assert after(method, [1.0, 1.0]) != [1.0, 1.0]


def test_pinned_weights() -> None:
    """Window means (2, 4) then (1, 4): rates 0.5 and 1, over T = 2."""
    found = after(DynamicWeightAverage(window=2), [1.0, 2.0], [3.0, 6.0], [0.5, 5.0], [1.5, 3.0])
    first, second = math.exp(0.25), math.exp(0.5)
    total = first + second
    assert found == pytest.approx([2 * first / total, 2 * second / total], rel=1e-12)


def test_only_the_last_two_windows_count() -> None:
    method = DynamicWeightAverage(window=1)
    short = DynamicWeightAverage(window=1)
    assert after(method, [9.0, 1.0], [2.0, 4.0], [1.0, 4.0]) == after(short, [2.0, 4.0], [1.0, 4.0])


def test_temperature_makes_the_weights_alike() -> None:
    losses = [2.0, 1.0], [1.0, 1.0]
    cold = after(DynamicWeightAverage(0.1, window=1), *losses)
    warm = after(DynamicWeightAverage(100.0, window=1), *losses)
    assert cold[0] < 0.1
    assert warm == pytest.approx([1.0, 1.0], abs=0.01)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_steady_scales_of_the_losses_and_of_the_gradients_change_nothing(tasks: int) -> None:
    plain, scaled = DynamicWeightAverage(window=2), DynamicWeightAverage(window=2)
    factors = torch.logspace(-6, 6, tasks, dtype=torch.float64)
    for seed in range(8):
        rows = graded(tasks, seed)
        losses = 0.1 + rows[:, 0].abs()
        plain.accept(step_of(rows, losses.tolist()))
        scaled.accept(step_of(rows * 1e-9, (losses * factors).tolist()))
        expected = plain.weigh_step(step_of(rows))
        torch.testing.assert_close(scaled.weigh_step(step_of(rows)), expected)
        assert float(expected.sum()) == pytest.approx(tasks)


def test_permuting_the_tasks_permutes_the_weights() -> None:
    for order in itertools.permutations(range(3)):
        plain, moved = DynamicWeightAverage(window=1), DynamicWeightAverage(window=1)
        for losses in ([1.0, 2.0, 3.0], [0.5, 2.0, 6.0]):
            step = step_with(losses)
            plain.accept(step)
            moved.accept(permuted(step, order))
        expected = plain.weigh_step(step)[torch.tensor(order)]
        torch.testing.assert_close(moved.weigh_step(permuted(step, order)), expected)


def test_a_task_that_was_absent_is_weighed_once_it_has_two_windows() -> None:
    method = DynamicWeightAverage(window=1)
    method.accept(step_with([1.0, 1.0]))
    method.accept(step_with([1.0, 0.5, 3.0]))
    assert method.weigh_step(step_with([1.0, 0.5, 3.0])).tolist() == [1.0, 1.0, 1.0]
    assert method.weigh_step(step_with([1.0, 0.5])).tolist() != [1.0, 1.0]
    method.accept(step_with([1.0, 0.5, 3.0]))
    assert method.weigh_step(step_with([1.0, 0.5, 3.0])).tolist() == pytest.approx([1.0] * 3)
    # Away for a window, it keeps what it had.
    method.accept(step_with([2.0, 0.5]))
    assert float(method.weigh_step(step_with([2.0, 0.5, 3.0]))[2]) < 1.0


def test_a_loss_that_was_not_positive_counts_as_steady() -> None:
    found = after(DynamicWeightAverage(window=1), [0.0, 1.0], [5.0, 1.0])
    assert found == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_a_loaded_state_goes_on_alike(stop: int) -> None:
    steps = [step_with([1.0 + seed % 3, 2.0 + seed % 2]) for seed in range(9)]
    straight, first, second = (DynamicWeightAverage(window=2) for _ in range(3))
    for step in steps:
        straight.accept(step)
    for step in steps[:stop]:
        first.accept(step)
    second.accept(steps[1])  # whatever it did before, the loaded state holds
    second.load_state_dict(first.state_dict())
    for step in steps[stop:]:
        second.accept(step)
    assert repr(second.state_dict()) == repr(straight.state_dict())
    assert torch.equal(second.weigh_step(steps[0]), straight.weigh_step(steps[0]))
    second.load_state_dict({})
    assert second.state_dict() == DynamicWeightAverage().state_dict()


def test_a_shorter_window_after_loading_ends_at_once() -> None:
    long = DynamicWeightAverage(window=10)
    for _ in range(7):
        long.accept(step_with([1.0, 1.0]))
    short = DynamicWeightAverage(window=3)
    short.load_state_dict(long.state_dict())
    short.accept(step_with([1.0, 1.0]))
    assert short.state_dict()["steps"] == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"temperature": 0.0}, "'dwa' needs temperature above 0"),
        ({"window": 0}, "'dwa' needs window above 0"),
    ],
)
def test_mistakes(args: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DynamicWeightAverage(**args)
