"""CAGrad: optimal by its own dual, in closed form and by the iteration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, gramian_of, many, relative_gap
from turbotrain_plugin.balancing import CAGrad
from turbotrain_plugin.balancing.cagrad import _two_weights
from turbotrain_plugin.balancing.simplex import minimise_on_simplex
from turbotrain_plugin.structures import UserError


def duality_gap(rows: Tensor, c: float) -> float:
    """Return how far the update is from optimal, per length of the worst-off task and the mean.

    Any w in the simplex bounds min_k <g_k, d> over the ball from above by
    <g_w, g_0> + c |g_0| |g_w|; an update that attains its own bound is the optimum.
    """
    weights = CAGrad(c, "mean").weigh(gramian_of(rows))
    update, mean = weights @ rows, rows.mean(dim=0)
    w = weights - 1.0 / len(rows)
    combined = (w / w.sum()) @ rows
    assert float((update - mean).norm()) <= c * float(mean.norm()) * (1 + 1e-9)
    bound = float(combined @ mean + c * mean.norm() * combined.norm())
    products = rows @ update
    worst = int(products.argmin())
    return (bound - float(products[worst])) / float(rows[worst].norm() * mean.norm())


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_the_update_attains_its_dual_bound(tasks: int, c: float) -> None:
    gaps = [abs(duality_gap(rows, c)) for rows in many(tasks, range(12))]
    assert max(gaps) < 1e-11


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 1.5])
def test_two_tasks_in_closed_form_agree_with_the_iteration(c: float) -> None:
    inside = 0
    nearly_alike = [
        torch.nn.functional.normalize(graded(2, seed)) * torch.tensor([[1.0], [1.03]])
        for seed in range(30)
    ]
    for rows in [*nearly_alike, *many(2, range(30), dependent=False)]:
        gramian = gramian_of(rows)
        gramian = gramian / gramian.diagonal().max()
        linear = gramian.mean(dim=1)
        radius = c * math.sqrt(float(gramian.mean()))
        closed = _two_weights(gramian, radius)
        iterated = minimise_on_simplex(gramian, linear, radius)
        values = [
            float(linear @ w) + radius * math.sqrt(max(0.0, float(w @ gramian @ w)))
            for w in (closed, iterated)
        ]
        assert abs(values[0] - values[1]) < 1e-9 * float(gramian.mean())
        inside += int(0.0 < float(closed[0]) < 1.0)
    assert inside > 20


def test_two_tasks_by_hand() -> None:
    """Gradients (2, 0) and (0, 1) with c = 0.4: a scan of the ball's rim finds the update."""
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    angle = torch.linspace(0.0, 2.0 * math.pi, 200_001, dtype=torch.float64)
    mean = rows.mean(dim=0)
    rim = mean + 0.4 * mean.norm() * torch.stack([angle.cos(), angle.sin()], dim=1)
    best = rim[(rim @ rows.T).min(dim=1).values.argmax()]
    found = CAGrad(0.4, "mean").weigh(gramian_of(rows)) @ rows
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)


def test_the_sum_is_k_times_the_mean_and_c_zero_is_the_plain_sum() -> None:
    for tasks in (2, 3, 5):
        gramian = gramian_of(graded(tasks, 0))
        torch.testing.assert_close(
            CAGrad(0.5).weigh(gramian), tasks * CAGrad(0.5, "mean").weigh(gramian)
        )
        assert CAGrad(0.0).weigh(gramian).tolist() == [1.0] * tasks


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_a_common_scale_changes_nothing(tasks: int, seed: int) -> None:
    rows = graded(tasks, seed)
    plain = CAGrad().weigh(gramian_of(rows)) @ rows
    for scale in (2.0**40, 1e-12, 3e9):
        assert relative_gap(CAGrad().weigh(gramian_of(rows * scale)) @ rows, plain) < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_tasks_changes_nothing(seed: int) -> None:
    rows = graded(4, seed, opposed=True)
    plain = CAGrad().weigh(gramian_of(rows)) @ rows
    for order in itertools.permutations(range(4)):
        moved = rows[torch.tensor(order)]
        assert relative_gap(CAGrad().weigh(gramian_of(moved)) @ moved, plain) < 1e-7


@pytest.mark.parametrize("tasks", [2, 3])
def test_tasks_that_cancel_out_leave_the_mean(tasks: int) -> None:
    """The shortest convex combination is zero: there is no direction that helps them all."""
    rows = torch.zeros(tasks, 3, dtype=torch.float64)
    rows[0, 0], rows[1, 0] = 1.0, -1.0
    if tasks == 3:
        rows[2, 1] = 0.5
    weights = CAGrad().weigh(gramian_of(rows))
    assert weights.tolist() == [1.0] * tasks


def test_equal_gradients_are_lengthened() -> None:
    rows = graded(1, 0).repeat(3, 1)
    update = CAGrad(0.5, "mean").weigh(gramian_of(rows)) @ rows
    torch.testing.assert_close(update, 1.5 * rows[0], rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("tasks", [8, 20])
def test_many_tasks_end_at_the_optimum(tasks: int) -> None:
    for seed in range(3):
        assert abs(duality_gap(graded(tasks, seed, size=40), 0.5)) < 1e-11


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"c": -0.1}, "'cagrad' needs c not to be negative. Found -0.1"),
        ({"scale": "total"}, "'cagrad' needs scale to be sum or mean"),
    ],
)
def test_mistakes(args: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CAGrad(**args)  # type: ignore[arg-type]
