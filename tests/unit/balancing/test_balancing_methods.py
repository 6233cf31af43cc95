from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.balancing import (
    Balancer,
    ConflictSuppression,
    PCGrad,
    PlainSum,
    TaskStep,
)
from turbotrain_plugin.balancing.base import decide

SAY_NOTHING_WITHOUT_CONFLICT = (ConflictSuppression, PCGrad, PlainSum)
FREE_OF_ORDER = (ConflictSuppression, PlainSum)


def gramian_of(vectors: Tensor) -> Tensor:
    return vectors @ vectors.T


def random_vectors(tasks: int, seed: int, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(tasks, size, dtype=torch.float64, generator=generator)
    return vectors * torch.logspace(-2, 2, tasks, dtype=torch.float64)[:, None]


def gramian_2(a: float, b: float, c: float) -> Tensor:
    return torch.tensor([[a, c], [c, b]], dtype=torch.float64)


def test_pinned_values() -> None:
    weights = ConflictSuppression().weigh(gramian_2(4.0, 1.0, -1.0))
    assert weights.tolist() == [1.25, 2.0]


@pytest.mark.parametrize("seed", range(50))
def test_two_tasks_closed_form(seed: int) -> None:
    first, second = random_vectors(2, seed)
    product = float(first @ second)
    if product >= 0:
        second, product = -second, -product
    weights = ConflictSuppression().weigh(gramian_of(torch.stack([first, second])))
    update = weights[0] * first + weights[1] * second
    expected = (1 - product / (first @ first)) * first + (1 - product / (second @ second)) * second
    torch.testing.assert_close(update, expected, rtol=1e-12, atol=0.0)
    # What is left opposes neither task: the conflicting component is gone.
    tolerance = 1e-12 * float(update.norm())
    assert float(update @ first) >= -tolerance * float(first.norm())
    assert float(update @ second) >= -tolerance * float(second.norm())


@pytest.mark.parametrize("product", [0.0, 1e-300, 0.5, 1.9])
@pytest.mark.parametrize("method", SAY_NOTHING_WITHOUT_CONFLICT)
def test_without_conflict_the_weights_are_exactly_one(
    method: type[Balancer], product: float
) -> None:
    assert method().weigh(gramian_2(4.0, 1.0, product)).tolist() == [1.0, 1.0]


def test_plain_sum_ignores_a_conflict() -> None:
    assert PlainSum().weigh(gramian_2(4.0, 1.0, -1.9)).tolist() == [1.0, 1.0]
    assert not PlainSum.needs_gradients


@pytest.mark.parametrize("make", SAY_NOTHING_WITHOUT_CONFLICT)
@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_common_scale_changes_nothing(make: type[Balancer], tasks: int, seed: int) -> None:
    gramian = gramian_of(random_vectors(tasks, seed))
    method = make()
    for scale in (2.0**16, 2.0**-40, 1e-9):
        scaled = method.weigh(gramian * scale**2)
        torch.testing.assert_close(scaled, method.weigh(gramian), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("make", FREE_OF_ORDER)
@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_tasks_permutes_the_weights(make: type[Balancer], seed: int) -> None:
    gramian = gramian_of(random_vectors(4, seed))
    method = make()
    weights = method.weigh(gramian)
    for order in itertools.permutations(range(4)):
        index = torch.tensor(order)
        permuted = method.weigh(gramian[index][:, index])
        torch.testing.assert_close(permuted, weights[index], rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("seed", range(10))
def test_more_tasks_lose_each_conflicting_component_once(seed: int) -> None:
    vectors = random_vectors(4, seed)
    expected = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        surgery = vectors[i].clone()
        for j in range(4):
            if float(vectors[i] @ vectors[j]) < 0:
                surgery -= (vectors[i] @ vectors[j]) / (vectors[j] @ vectors[j]) * vectors[j]
        expected += surgery
    weights = ConflictSuppression().weigh(gramian_of(vectors))
    torch.testing.assert_close(weights @ vectors, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_a_strong_task_does_not_blow_up_the_weak_one(seed: int) -> None:
    first, second = random_vectors(2, seed)
    second = -second if float(first @ second) > 0 else second
    weights = ConflictSuppression().weigh(gramian_of(torch.stack([first, second])))
    assert float(weights[0] * first.norm()) <= float(first.norm() + second.norm()) * (1 + 1e-12)
    assert bool((weights >= 1.0).all())


def test_gramians_that_make_no_sense_are_refused() -> None:
    method = ConflictSuppression()
    with pytest.raises(ValueError, match=r"`gramian` should have shape \(K, K\). Found \(2, 3\)"):
        method.weigh(torch.ones(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="`gramian` should be float64"):
        method.weigh(torch.ones(2, 2))
    with pytest.raises(ValueError, match="positive diagonal"):
        method.weigh(gramian_2(1.0, 0.0, 0.0))


def step_with(tasks: list[str], gramian: Tensor) -> TaskStep:
    return TaskStep(tuple(tasks), gramian, torch.ones(len(tasks), dtype=torch.float64))


class Recorder(Balancer):
    """Remembers what it was asked; halves everything."""

    asked: Tensor | None = None

    def weigh(self, gramian: Tensor) -> Tensor:
        self.asked = gramian
        return torch.full((len(gramian),), 0.5, dtype=torch.float64)


def test_tasks_without_a_gradient_have_no_say() -> None:
    method = Recorder()
    gramian = gramian_of(torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 2.0]], dtype=torch.float64))
    weights, direction = decide(method, step_with(["a", "b", "c"], gramian))
    assert weights == {"a": 0.5, "b": 1.0, "c": 0.5}
    assert direction is None
    assert method.asked is not None
    assert method.asked.tolist() == [[1.0, -1.0], [-1.0, 5.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_decided_over_what_is_not_finite(bad: float) -> None:
    method = Recorder()
    for gramian in (gramian_2(1.0, bad, -1.0), gramian_2(1.0, 1.0, bad)):
        weights, _ = decide(method, step_with(["a", "b"], gramian))
        assert weights == {"a": 1.0, "b": 1.0}
    assert method.asked is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_decided_over_losses_that_are_not_finite(bad: float) -> None:
    method = Recorder()
    losses = torch.tensor([1.0, bad], dtype=torch.float64)
    weights, _ = decide(method, TaskStep(("a", "b"), gramian_2(1.0, 1.0, -0.5), losses))
    assert weights == {"a": 1.0, "b": 1.0}
    assert method.asked is None


def test_a_single_task_is_left_alone() -> None:
    method = Recorder()
    weights, _ = decide(method, step_with(["a", "b"], gramian_2(1.0, 0.0, 0.0)))
    assert weights == {"a": 1.0, "b": 1.0}
    assert method.asked is None
