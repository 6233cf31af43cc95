"""Uncertainty weighting: log variances that learn to meet the losses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.helpers.graded_gradients import graded, permuted, step_of
from turbotrain_plugin.balancing import UncertaintyWeighting
from turbotrain_plugin.structures import UserError


def test_weights_start_at_one() -> None:
    step = step_of(graded(3, 0), [0.1, 1.0, 9.0])
    assert UncertaintyWeighting().weigh_step(step).tolist() == [1.0, 1.0, 1.0]


def test_the_first_step_is_the_learning_rate_towards_the_loss() -> None:
    method = UncertaintyWeighting(lr=0.1)
    step = step_of(graded(2, 0), [4.0, 0.25])
    method.accept(step)
    expected = [math.exp(-0.1), math.exp(0.1)]
    assert method.weigh_step(step).tolist() == pytest.approx(expected, rel=1e-12)


def test_weights_tend_to_the_inverse_losses() -> None:
    method = UncertaintyWeighting(lr=0.02)
    step = step_of(graded(2, 0), [4.0, 0.25])
    for _ in range(600):
        method.accept(step)
    assert method.weigh_step(step).tolist() == pytest.approx([0.25, 4.0], rel=0.02)


def test_gradients_do_not_matter() -> None:
    plain, other = UncertaintyWeighting(), UncertaintyWeighting()
    for seed in range(5):
        plain.accept(step_of(graded(2, seed), [2.0, 3.0]))
        other.accept(step_of(graded(2, seed + 50) * 1e-9, [2.0, 3.0]))
    assert plain.state_dict() == other.state_dict()


def test_permuting_the_tasks_permutes_the_weights() -> None:
    for order in itertools.permutations(range(3)):
        plain, moved = UncertaintyWeighting(), UncertaintyWeighting()
        step = step_of(graded(3, 0), [0.5, 2.0, 3.0])
        for _ in range(5):
            plain.accept(step)
            moved.accept(permuted(step, order))
        expected = plain.weigh_step(step)[torch.tensor(order)]
        assert torch.equal(moved.weigh_step(permuted(step, order)), expected)


def test_an_absent_task_keeps_its_variance() -> None:
    method = UncertaintyWeighting(lr=0.1)
    three = step_of(graded(3, 0), [2.0, 2.0, 2.0])
    method.accept(three)
    method.accept(step_of(graded(2, 0), [2.0, 2.0]))
    first, second, third = method.weigh_step(three).tolist()
    assert first == second < third


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_loaded_state_goes_on_alike(stop: int) -> None:
    steps = [step_of(graded(2, 0), [1.0 + 0.3 * i, 2.0 - 0.2 * i]) for i in range(7)]
    straight, first, second = (UncertaintyWeighting() for _ in range(3))
    for step in steps:
        straight.accept(step)
    for step in steps[:stop]:
        first.accept(step)
    second.accept(steps[2])  # whatever it did before, the loaded state holds
    second.load_state_dict(first.state_dict())
    for step in steps[stop:]:
        second.accept(step)
    assert second.state_dict() == straight.state_dict()
    second.load_state_dict({})
    assert second.state_dict() == UncertaintyWeighting().state_dict()


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"'uncertainty' needs lr above 0. Found 0"):
        UncertaintyWeighting(lr=0.0)
