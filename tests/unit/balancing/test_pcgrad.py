"""PCGrad: one order for two tasks, seeded random orders for more, saved with the state."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, gramian_of, many, permuted, step_of
from turbotrain_plugin.balancing import ConflictSuppression, PCGrad
from turbotrain_plugin.structures import UserError


def three_in_conflict() -> Tensor:
    """Three gradients of which every pair conflicts, so that the order matters."""
    return torch.tensor([[1.0, 0.0, 0.1], [-0.5, 0.9, 0.0], [-0.7, -0.6, 0.2]], dtype=torch.float64)


def weights_of(method: PCGrad, rows: Tensor, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append(method.weigh_step(step_of(rows)).tolist())
        method.accept(step_of(rows))
    return found


def test_two_tasks_draw_no_random_number() -> None:
    method = PCGrad()
    before = method.state_dict()["random"]
    for rows in many(2, range(10)):
        gramian = gramian_of(rows)
        assert torch.equal(method.weigh(gramian), ConflictSuppression().weigh(gramian))
        method.accept(step_of(rows))
    assert torch.equal(method.state_dict()["random"], before)


@pytest.mark.parametrize("tasks", [3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_weights_are_those_of_the_projected_vectors(tasks: int, seed: int) -> None:
    rows = graded(tasks, seed, opposed=True)
    method = PCGrad(seed=seed)
    orders, _ = method._orders(tasks)
    expected = torch.zeros_like(rows[0])
    for i, order in enumerate(orders):
        surgery = rows[i].clone()
        for j in order:
            if j != i and float(surgery @ rows[j]) < 0:
                surgery -= (surgery @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        expected += surgery
    update = method.weigh(gramian_of(rows)) @ rows
    torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-9)


def test_the_order_moves_on_with_accepted_steps_only() -> None:
    rows = three_in_conflict()
    method = PCGrad()
    first = method.weigh_step(step_of(rows))
    for _ in range(5):
        assert torch.equal(method.weigh_step(step_of(rows)), first)
    distinct = {tuple(w) for w in weights_of(method, rows, 20)}
    assert len(distinct) > 3


def test_the_same_seed_draws_the_same_orders_whatever_torch_draws() -> None:
    rows = three_in_conflict()
    expected = weights_of(PCGrad(seed=3), rows, 10)
    method = PCGrad(seed=3)
    found = []
    for _ in range(10):
        torch.rand(7)
        found += weights_of(method, rows, 1)
    assert found == expected
    assert weights_of(PCGrad(seed=4), rows, 10) != expected


def test_drawing_leaves_torchs_own_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    weights_of(PCGrad(), three_in_conflict(), 3)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_a_loaded_state_goes_on_with_the_same_orders(stop: int) -> None:
    rows = three_in_conflict()
    expected = weights_of(PCGrad(seed=1), rows, 9)
    method = PCGrad(seed=1)
    found = weights_of(method, rows, stop)
    other = PCGrad(seed=1)
    weights_of(other, rows, 2)  # whatever it did before, the loaded state holds
    other.load_state_dict(method.state_dict())
    assert found + weights_of(other, rows, 9 - stop) == expected
    other.load_state_dict({})
    assert weights_of(other, rows, 9) == expected


def test_a_permutation_of_the_tasks_permutes_the_mean_over_orders() -> None:
    rows = three_in_conflict()
    step = step_of(rows)
    plain = torch.tensor(weights_of(PCGrad(), rows, 4000)).mean(dim=0)
    for order in itertools.permutations(range(3)):
        method = PCGrad(seed=5)
        moved = permuted(step, order)
        found = []
        for _ in range(1000):
            found.append(method.weigh_step(moved).tolist())
            method.accept(moved)
        # The weights lie within 1.4 of one another: five standard errors.
        torch.testing.assert_close(
            torch.tensor(found).mean(dim=0), plain[torch.tensor(order)], atol=0.08, rtol=0.0
        )


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"'pcgrad' needs seed not to be negative. Found -1"):
        PCGrad(seed=-1)
