"""TorchJD's weightings as balance methods: every one of them, resumable, and what is refused."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.graded_gradients import graded, gramian_of, step_of
from turbotrain_plugin.balancing import TaskStep, TorchJDWeighting
from turbotrain_plugin.balancing.methods import method_named
from turbotrain_plugin.balancing.torchjd_weighting import SCALE_FREE, TWO_BATCHES
from turbotrain_plugin.structures import UserError

torchjd = pytest.importorskip("torchjd.aggregation")

NEEDED: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.4},
    "CRMOGM": {"weighting": "MGDA"},
    "Constant": {"weights": (0.25, 0.5, 0.25)},
    "FairGrad": {"alpha": 1.0, "max_iters": 20},
    "Krum": {"n_byzantine": 0},
}
"""Arguments that TorchJD wants."""

SOLVERS = {
    "CAGrad": ("cvxpy", "clarabel"),
    "DualProj": ("qpsolvers", "quadprog"),
    "UPGrad": ("qpsolvers", "quadprog"),
}
"""Packages that some weightings need beside TorchJD."""

NAMES = sorted(
    name.removesuffix("Weighting")
    for name in torchjd.__all__
    if name.endswith("Weighting") and name != "Weighting"
)


def make(name: str, **args: Any) -> TorchJDWeighting:  # noqa: ANN401
    missing = [one for one in SOLVERS.get(name, ()) if importlib.util.find_spec(one) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    with warnings.catch_warnings():
        if name in TWO_BATCHES:
            warnings.filterwarnings("ignore", message=".* two independent batches")
        return TorchJDWeighting(name, **{**NEEDED.get(name, {}), **args})


def run(method: TorchJDWeighting, steps: list[TaskStep]) -> list[list[float]]:
    found = []
    for step in steps:
        found.append(method.weigh_step(step).tolist())
        method.accept(step)
    return found


STEPS = [step_of(graded(3, seed, opposed=True)) for seed in range(6)]


@pytest.mark.parametrize("name", NAMES)
def test_every_weighting_weighs(name: str) -> None:
    method = make(name)
    assert method.title == f"torchjd:{name}"
    for weights in run(method, STEPS):
        assert len(weights) == 3
        assert bool(torch.tensor(weights).isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_weighing_twice_gives_the_same_and_a_loaded_state_goes_on_alike(name: str) -> None:
    expected = run(make(name), STEPS)
    method = make(name)
    method.weigh_step(STEPS[0])
    found = run(method, STEPS[:3])
    other = make(name)
    run(other, STEPS[:1])  # whatever it did before, the loaded state holds
    other.load_state_dict(method.state_dict())
    assert found + run(other, STEPS[3:]) == expected
    other.load_state_dict({})
    assert run(other, STEPS) == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_state_loads_with_weights_only(name: str, tmp_path: Any) -> None:  # noqa: ANN401
    method = make(name)
    expected = run(method, STEPS[:3])
    torch.save(method.state_dict(), tmp_path / "state.pt")
    other = make(name)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run(other, STEPS[3:]) == run(method, STEPS[3:])
    assert expected


@pytest.mark.parametrize("name", ["GradVac", "PCD", "ExcessMTL", "CRMOGM", "MoDo", "SDMGrad"])
def test_weightings_with_a_memory_do_remember(name: str) -> None:
    """Else the test of resuming would prove nothing."""
    seasoned, fresh = make(name), make(name)
    run(seasoned, STEPS[:3])
    fresh._random = seasoned._random
    assert run(seasoned, STEPS[3:]) != run(fresh, STEPS[3:])


@pytest.mark.parametrize("name", ["PCGrad", "Random", "GradVac"])
def test_random_numbers_come_from_a_seed_of_their_own(name: str) -> None:
    expected = run(make(name, seed=1), STEPS)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert run(make(name, seed=1), STEPS) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert run(make(name, seed=2), STEPS) != expected


@pytest.mark.parametrize("name", sorted(SCALE_FREE))
def test_tiny_gradients_are_weighed_like_any_others(name: str) -> None:
    """TorchJD itself takes a trace below 1e-4 for a zero Gramian."""
    tiny = [step_of(step_rows(step) * 1e-9) for step in STEPS]
    for found, expected in zip(run(make(name), tiny), run(make(name), STEPS), strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)


def step_rows(step: TaskStep) -> Tensor:
    return torch.stack([torch.cat([rows["a"], rows["b"]]) for rows in step.rows])


def test_excess_mtl_sees_the_gradients_with_zeros_where_a_task_has_none() -> None:
    rows = graded(2, 0)
    rows[0, 2:] = 0.0
    full = step_of(rows)
    lacking = TaskStep(full.tasks, full.gramian, full.losses, ({"a": rows[0, :2]}, full.rows[1]))
    method = TorchJDWeighting("ExcessMTL")
    assert method.needs_rows
    assert not TorchJDWeighting("MGDA").needs_rows
    assert TorchJDWeighting("CRMOGM", weighting="ExcessMTL").needs_rows
    expected = torchjd.ExcessMTLWeighting()(rows)
    torch.testing.assert_close(method.weigh_step(lacking), expected)
    torch.testing.assert_close(method.weigh_step(full), expected)


def test_lists_become_tensors() -> None:
    gramian = gramian_of(graded(3, 0))
    step = TaskStep(STEPS[0].tasks, gramian, STEPS[0].losses)
    assert make("Constant", weights=[1, 2, 3]).weigh_step(step).tolist() == [1.0, 2.0, 3.0]
    preferred = make("AlignedMTL", pref_vector=(1.0, 0.0, 0.0)).weigh_step(step)
    expected = torchjd.AlignedMTLWeighting(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(preferred, expected(gramian))
    one, several = make("PCD", tau=(0.1,)), make("PCD", tau=(0.1, 0.1))
    assert torch.equal(one.weigh_step(step), several.weigh_step(step))


@pytest.mark.parametrize("name", sorted(TWO_BATCHES))
def test_weightings_for_two_batches_say_so(name: str) -> None:
    with pytest.warns(UserWarning, match="is meant for the gradients of two independent batches"):
        TorchJDWeighting(name)
    with pytest.warns(UserWarning, match="is meant for the gradients of two independent batches"):
        TorchJDWeighting("CRMOGM", weighting=name)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("GradDrop", {}, "'torchjd:GradDrop' is no weighting of TorchJD; choose one of AlignedMTL"),
        ("", {}, "'torchjd:' is no weighting of TorchJD"),
        ("Krum", {}, r"takes n_byzantine \(needed\), n_selected. Found no argument"),
        ("MGDA", {"c": 0.5}, "'torchjd:MGDA' takes epsilon, max_iters. Found c"),
        ("MGDA", {"epsilon": -1.0}, "does not take these arguments: epsilon must be positive"),
        ("Mean", {"c": 0.5}, "'torchjd:Mean' takes no argument. Found c"),
        ("CRMOGM", {"weighting": "Nobody"}, "'torchjd:Nobody' is no weighting"),
    ],
)
def test_mistakes(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        method_named(f"torchjd:{name}", args)


def test_a_step_a_weighting_refuses_is_a_users_error() -> None:
    method = TorchJDWeighting("Krum", n_byzantine=2)
    with pytest.raises(UserError, match="'torchjd:Krum' cannot weigh the tasks detection, pred"):
        method.weigh_step(STEPS[0])


def test_without_torchjd_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match="needs TorchJD, which is not installed: pip install torch"):
        TorchJDWeighting("MGDA")


def test_without_a_solver_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchjd.CAGradWeighting, "_REQUIRED_DEPS", ["no_such_solver"])
    with pytest.raises(UserError, match=r"needs a package .*no_such_solver.*pip install"):
        TorchJDWeighting("CAGrad", c=0.5)
