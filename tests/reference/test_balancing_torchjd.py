"""Our balance methods against TorchJD's, over lengths from tiny to huge and dependent gradients."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import NAMES, graded, gramian_of, many, relative_gap, step_of
from turbotrain_plugin.balancing import (
    AlignedMTL,
    CAGrad,
    DynamicWeightAverage,
    PCGrad,
    TaskStep,
    TorchJDWeighting,
    UncertaintyWeighting,
)
from turbotrain_plugin.balancing.base import decide

aggregation = pytest.importorskip("torchjd.aggregation")
scalarization = pytest.importorskip("torchjd.scalarization")

AGREE = 1e-6


def well_apart(gramian: Tensor) -> bool:
    """Return whether no eigenvalue lies where it may or may not count as zero."""
    values = torch.linalg.eigvalsh(gramian)
    share = values / values.max()
    return not bool(((share > 1e-17) & (share < 1e-10)).any())


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl(tasks: int, mode: str) -> None:
    method = AlignedMTL(scale_mode=mode, scale="mean")
    compared = 0
    for rows in many(tasks, range(40)):
        gramian = gramian_of(rows)
        if not well_apart(gramian):
            continue
        expected = aggregation.AlignedMTLWeighting(scale_mode=mode)(gramian) @ rows
        assert relative_gap(method.weigh(gramian) @ rows, expected) < AGREE
        compared += 1
    assert compared > 80


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_with_the_same_random_numbers(tasks: int, seed: int) -> None:
    method = PCGrad(seed=seed)
    torch.manual_seed(seed)
    conflicts = 0
    for rows in many(tasks, range(20)):
        gramian = gramian_of(rows)
        found = method.weigh(gramian)
        expected = aggregation.PCGradWeighting()(gramian)
        torch.testing.assert_close(found, expected, rtol=AGREE, atol=0.0)
        conflicts += int(bool((found != 1.0).any()))
        method.accept(step_of(rows))
    assert conflicts > 40


@pytest.fixture
def tight_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make TorchJD's CAGrad solve as far as it goes; its default stops 1e-4 short at times."""
    cvxpy = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    tolerances = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    exact = functools.partialmethod(cvxpy.Problem.solve, **dict.fromkeys(tolerances, 1e-12))
    monkeypatch.setattr(cvxpy.Problem, "solve", exact)


def cagrad_shortfall(weights: Tensor, rows: Tensor, optimum: Tensor, c: float) -> float:
    """Return how far an update can be from CAGrad's optimum d*, given what it falls short of it.

    With v the bound by the optimum's dual variables, every d in the ball of radius r has
    |d - d*|^2 <= 2 r (v - min_k <g_k, d>) / |g_w|; in a ball wider by x, v is larger by x |g_w|.
    Rounding of the products counts as well.
    """
    mean, update = rows.mean(dim=0), weights @ rows
    radius = c * mean.norm()
    outside = ((update - mean).norm() - radius).clamp(min=0.0)
    combined = ((optimum - 1.0 / len(rows)) / (optimum - 1.0 / len(rows)).sum()) @ rows
    bound = combined @ mean + (radius + outside) * combined.norm()
    worst = rows[(rows @ update).argmin()]
    short = (bound - worst @ update).clamp(min=0.0) + 1e-15 * worst.norm() * update.norm()
    return float((2.0 * radius * short / combined.norm()).sqrt() / (optimum @ rows).norm())


@pytest.mark.usefixtures("tight_solver")
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
def test_cagrad(tasks: int) -> None:
    """To 1e-6, or to what TorchJD's solution itself falls short of the optimum where that is more.

    That ours is the optimum follows from its dual bound alone (unit tests); here it bounds theirs.
    """
    cvxpy = pytest.importorskip("cvxpy")
    compared = agreed = 0
    for seed in range(20):
        for decades in (0.0, 2.0, 4.0, 8.0):
            rows = graded(tasks, seed, size=tasks + seed % 3, decades=decades)
            gramian = gramian_of(rows)
            c = (0.1, 0.5, 0.9)[seed % 3]
            theirs = None
            with contextlib.suppress(cvxpy.SolverError):
                theirs = aggregation.CAGradWeighting(c, norm_eps=0.0)(gramian)
            if theirs is None:
                continue
            ours = CAGrad(c, "mean").weigh(gramian)
            gap = relative_gap(theirs @ rows, ours @ rows)
            assert gap < max(AGREE, 1.1 * cagrad_shortfall(theirs, rows, ours, c))
            compared += 1
            agreed += gap < AGREE
    assert compared > 70
    assert agreed > 0.6 * compared


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_upgrad_passes_through(tasks: int) -> None:
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    method = TorchJDWeighting("UPGrad")
    for rows in many(tasks, range(10)):
        gramian = gramian_of(rows)
        if float(gramian.trace()) < 1e-3:
            continue  # TorchJD calls it zero; ours is compared at a larger scale in the unit tests
        expected = aggregation.UPGradWeighting()(gramian)
        found = method.weigh_step(step_of(rows))
        assert relative_gap(found @ rows, expected @ rows) < AGREE


@pytest.mark.parametrize("seed", range(20))
def test_upgrad_of_two_tasks_is_half_of_pcgrad(seed: int) -> None:
    """To 1e-6 once TorchJD regularises by 1e-12 in place of the 1e-4 it adds to the Gramian."""
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    dual_cone = pytest.importorskip("torchjd.linalg")
    exact = dual_cone.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for rows in (graded(2, seed, decades=0.0), graded(2, seed, decades=1.0, opposed=True)):
        gramian = gramian_of(rows)
        half = PCGrad().weigh(gramian) / 2
        expected = aggregation.UPGradWeighting(projector=exact)(gramian)
        assert relative_gap(half @ rows, expected @ rows) < AGREE


def test_upgrad_as_it_is_regularised_is_near_half_of_pcgrad() -> None:
    """At lengths alike and clear angles; where two tasks nearly cancel it is up to 8 % off."""
    pytest.importorskip("quadprog")
    pytest.importorskip("qpsolvers")
    for angle in (1.6, 2.0, 2.4):
        rows = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(2, 1)
        rows[1] = torch.tensor([angle, angle], dtype=torch.float64).cos()
        rows[1, 1] = torch.tensor(angle, dtype=torch.float64).sin()
        half = PCGrad().weigh(gramian_of(rows)) / 2
        found = TorchJDWeighting("UPGrad").weigh_step(
            step_of(torch.nn.functional.pad(rows, (0, 1)))
        )
        torch.testing.assert_close(found, half, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6, 1e12])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_tiny_and_huge_gradients(tasks: int, scale: float) -> None:
    """TorchJD at this scale where it has no absolute threshold; our CAGrad against itself."""
    torch.manual_seed(0)
    method = PCGrad(seed=0)
    for seed in range(10):
        rows = graded(tasks, seed, opposed=seed % 2 == 0) * scale
        gramian = gramian_of(rows)
        torch.testing.assert_close(
            method.weigh(gramian), aggregation.PCGradWeighting()(gramian), rtol=AGREE, atol=0.0
        )
        method.accept(step_of(rows))
        if well_apart(gramian):
            expected = aggregation.AlignedMTLWeighting()(gramian) @ rows
            found = AlignedMTL(scale="mean").weigh(gramian) @ rows
            assert relative_gap(found, expected) < AGREE
        unscaled = CAGrad().weigh(gramian / scale**2)
        torch.testing.assert_close(CAGrad().weigh(gramian), unscaled, rtol=AGREE, atol=0.0)


@pytest.mark.parametrize("seed", range(5))
def test_one_zero_task_leaves_what_torchjd_makes_of_the_others(seed: int) -> None:
    rows = graded(3, seed, opposed=True)
    rows[1] = 0.0
    others = rows[[0, 2]]
    for method, theirs in (
        (AlignedMTL(scale="mean"), aggregation.AlignedMTLWeighting()),
        (PCGrad(), aggregation.PCGradWeighting()),
    ):
        weights, _ = decide(method, step_of(rows))
        found = torch.tensor([weights[NAMES[0]], weights[NAMES[2]]], dtype=torch.float64)
        expected = theirs(gramian_of(others))
        assert relative_gap(found @ others, expected @ others) < AGREE


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_dynamic_weight_average(tasks: int) -> None:
    """TorchJD's scalarizer: the weights are the gradient of its value by the losses."""
    window = 4
    theirs = scalarization.DWA(temperature=1.5)
    ours = DynamicWeightAverage(temperature=1.5, window=window)
    generator = torch.Generator().manual_seed(tasks)
    for step_number in range(5 * window):
        losses = torch.rand(tasks, dtype=torch.float64, generator=generator) + 0.1
        losses.requires_grad_()
        (expected,) = torch.autograd.grad(theirs(losses), losses)
        step = step_of(graded(tasks, step_number), losses.tolist())
        torch.testing.assert_close(ours.weigh_step(step), expected, rtol=AGREE, atol=0.0)
        ours.accept(step)
        if step_number % window == window - 1:
            theirs.step()
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_uncertainty_weighting(tasks: int) -> None:
    """TorchJD's scalarizer and torch's Adam; ours are twice its weights."""
    theirs = scalarization.UW(tasks).double()
    adam = torch.optim.Adam(theirs.parameters(), lr=0.02, eps=0.0)
    ours = UncertaintyWeighting(lr=0.02)
    generator = torch.Generator().manual_seed(tasks)
    for step_number in range(100):
        losses = torch.rand(tasks, dtype=torch.float64, generator=generator) * 3.0
        step = step_of(graded(tasks, step_number), losses.tolist())
        losses.requires_grad_()
        value = theirs(losses)
        (expected,) = torch.autograd.grad(value, losses, retain_graph=True)
        torch.testing.assert_close(ours.weigh_step(step), 2 * expected, rtol=AGREE, atol=0.0)
        adam.zero_grad()
        value.backward()
        adam.step()
        ours.accept(step)
    assert float(expected.std()) > 0.01


@pytest.mark.parametrize("method", [AlignedMTL(), CAGrad(), PCGrad(), TorchJDWeighting("MGDA")])
def test_a_task_without_a_gradient_is_as_if_it_were_not_there(
    method: AlignedMTL | CAGrad | PCGrad | TorchJDWeighting,
) -> None:
    """TorchJD's CAGrad and MGDA stop the trunk there."""
    rows = graded(3, 0, opposed=True)
    rows[2] = 0.0
    weights, _ = decide(method, step_of(rows))
    pair, _ = decide(method, step_of(rows[:2]))
    assert weights == {**pair, NAMES[2]: 1.0}
    alone, _ = decide(method, without_second(step_of(rows)))
    assert set(alone.values()) == {1.0}


def without_second(step: TaskStep) -> TaskStep:
    keep = torch.tensor([0, 2])
    return TaskStep((step.tasks[0], step.tasks[2]), step.gramian[keep][:, keep], step.losses[keep])
