"""MoCo: running estimates in place of one batch's gradients, kept by name and saved."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, gramian_of, permuted, step_of
from turbotrain_plugin.balancing import MoCo, TaskStep
from turbotrain_plugin.structures import UserError


def update(method: MoCo, step: TaskStep) -> Tensor:
    """Return the update as one vector."""
    found = method.direction(step, method.weigh_step(step))
    return torch.cat([found["a"], found["b"]])


def test_the_first_step_by_hand() -> None:
    """y = beta L g / |g|; with beta = 1: y = (2, 0) and (0, 3), lambda = softmax(.5 - .05 y^2)."""
    rows = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.1, 0.0]], dtype=torch.float64)
    step = step_of(rows, [2.0, 3.0])
    method = MoCo(beta=1.0, gamma=0.1)
    weights = torch.tensor([0.5 - 0.05 * 4.0, 0.5 - 0.05 * 9.0], dtype=torch.float64).softmax(dim=0)
    torch.testing.assert_close(method.weigh_step(step), weights, rtol=1e-12, atol=0.0)
    expected = torch.stack([2.0 * weights[0], 3.0 * weights[1], torch.zeros_like(weights[0])])
    torch.testing.assert_close(update(method, step), expected, rtol=1e-12, atol=0.0)


def test_weighing_changes_nothing_until_the_step_is_accepted() -> None:
    method = MoCo()
    step = step_of(graded(2, 0))
    first = update(method, step)
    assert torch.equal(update(method, step), first)
    method.accept(step)
    assert not torch.equal(update(method, step), first)


def test_the_estimate_forgets_the_old_direction_at_the_decaying_rate() -> None:
    method = MoCo(beta=0.5, gamma=0.0, decay=1.0)
    east = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    north = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    method.accept(step_of(east))
    method.accept(step_of(north))
    kept = method.state_dict()["estimates"]["detection"]["a"]
    torch.testing.assert_close(kept, torch.tensor([0.5 * 0.75, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("scale", [1e-9, 65536.0])
def test_a_common_scale_of_the_gradients_changes_nothing(tasks: int, scale: float) -> None:
    plain, scaled = MoCo(), MoCo()
    for seed in range(6):
        rows = graded(tasks, seed)
        torch.testing.assert_close(
            update(scaled, step_of(rows * scale)),
            update(plain, step_of(rows)),
            rtol=1e-9,
            atol=1e-12,
        )
        plain.accept(step_of(rows))
        scaled.accept(step_of(rows * scale))


def test_permuting_the_tasks_permutes_the_weights() -> None:
    for order in itertools.permutations(range(3)):
        plain, moved = MoCo(), MoCo()
        for seed in range(5):
            step = step_of(graded(3, seed), [1.0, 2.0, 0.5])
            index = torch.tensor(order)
            torch.testing.assert_close(
                moved.weigh_step(permuted(step, order)), plain.weigh_step(step)[index]
            )
            torch.testing.assert_close(update(moved, permuted(step, order)), update(plain, step))
            plain.accept(step)
            moved.accept(permuted(step, order))


def test_an_absent_task_keeps_its_estimate_and_takes_no_part() -> None:
    method = MoCo()
    three = graded(3, 0)
    method.accept(step_of(three))
    before = {name: y.clone() for name, y in method.state_dict()["estimates"]["occupancy"].items()}
    two = step_of(three[:2])
    weights = method.weigh_step(two)
    assert float(weights.sum()) == pytest.approx(1.0)
    found = update(method, two)
    span = torch.linalg.lstsq(three[:2].T, found[:, None]).solution
    torch.testing.assert_close(three[:2].T @ span, found[:, None])
    method.accept(two)
    after = method.state_dict()["estimates"]["occupancy"]
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_parameter_a_task_does_not_reach_counts_as_zero() -> None:
    rows = graded(2, 0)
    full = step_of(rows)
    lacking = ({"a": full.rows[0]["a"]}, full.rows[1])
    gone = rows.clone()
    gone[0, 2:] = 0.0
    method, reference = MoCo(), MoCo()
    for _ in range(3):
        zeros = step_of(gone)
        step = TaskStep(zeros.tasks, gramian_of(gone), zeros.losses, lacking)
        torch.testing.assert_close(update(method, step), update(reference, zeros))
        method.accept(step)
        reference.accept(zeros)


def test_estimates_of_half_precision_gradients_are_kept_in_float32() -> None:
    step = step_of(graded(2, 0))
    rows = tuple({name: row.bfloat16() for name, row in named.items()} for named in step.rows)
    method = MoCo()
    method.accept(TaskStep(step.tasks, step.gramian, step.losses, rows))
    kept = method.state_dict()["estimates"]["detection"]
    assert all(one.dtype == torch.float32 for one in kept.values())


def test_the_l2_term_and_gamma_zero() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert MoCo(gamma=0.0).weigh_step(step_of(rows, [9.0, 1.0])).tolist() == [0.5, 0.5]
    far = {"steps": 0, "lambda": {"detection": 0.9, "prediction": 0.1}, "estimates": {}}
    with_term, without = MoCo(rho=5.0), MoCo()
    with_term.load_state_dict(far)
    without.load_state_dict(far)
    assert with_term.weigh_step(step_of(rows))[0] < without.weigh_step(step_of(rows))[0]


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_loaded_state_goes_on_alike(stop: int) -> None:
    steps = [step_of(graded(2, seed), [1.0, 1.0 + 0.1 * seed]) for seed in range(8)]
    straight, first, second = MoCo(), MoCo(), MoCo()
    for step in steps[:-1]:
        straight.accept(step)
    for step in steps[:stop]:
        first.accept(step)
    second.accept(steps[3])  # whatever it did before, the loaded state holds
    second.load_state_dict(first.state_dict())
    for step in steps[stop:-1]:
        second.accept(step)
    assert torch.equal(update(second, steps[-1]), update(straight, steps[-1]))
    assert torch.equal(second.weigh_step(steps[-1]), straight.weigh_step(steps[-1]))
    second.load_state_dict({})
    assert second.state_dict() == MoCo().state_dict()


def test_a_saved_state_does_not_change_with_later_steps() -> None:
    method = MoCo()
    method.accept(step_of(graded(2, 0)))
    saved = method.state_dict()
    before = saved["estimates"]["detection"]["a"].clone()
    method.accept(step_of(graded(2, 1)))
    assert torch.equal(saved["estimates"]["detection"]["a"], before)
    assert saved["steps"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"beta": 0.0}, r"'moco' needs beta in \(0, 1\]"),
        ({"beta": 1.1}, r"'moco' needs beta in \(0, 1\]"),
        ({"gamma": -0.1}, "'moco' needs gamma not to be negative"),
        ({"rho": -0.1}, "'moco' needs rho not to be negative"),
        ({"decay": -0.1}, "'moco' needs decay not to be negative"),
    ],
)
def test_mistakes(args: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MoCo(**args)
