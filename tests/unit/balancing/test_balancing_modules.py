"""Cosines and norms by module: the same numbers as backward passes of one module at a time."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import BalanceRecord, BalanceWindow, GradientBalancer
from turbotrain_plugin.balancing.modules import modules_of
from turbotrain_plugin.engine.records import balance_line
from turbotrain_plugin.structures import UserError


class Staged(nn.Module):
    """An encoder, a neck and a fusion in a row, and a head for every task."""

    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoder = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh())
        self.neck = nn.Linear(9, 8)
        self.fusion = nn.Linear(8, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(tasks))
        self.double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.fusion(torch.tanh(self.neck(self.encoder(x)))).tanh()
        signs = (1.0, -1.0, 0.5, 2.0)
        return {
            name: (head(z) - sign + sign * z[:, :2]).square().mean()
            for name, head, sign in zip("abcd", self.heads, signs, strict=False)
        }


def inputs(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(7, 6, dtype=torch.float64, generator=generator)


def balanced_record(
    model: Staged,
    batches: Sequence[Tensor],
    scale: float = 1.0,
    **keys: Any,  # noqa: ANN401
) -> BalanceRecord:
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        free_steps=0,
        balance_steps=1,
        named_parameters=list(model.named_parameters()),
        **keys,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale != 1.0 else None
    for x in batches:
        balancer.backward(model(x), scaler=scaler)
    if scaler is None:
        balancer.step()
    else:
        scaler.step(balancer)
    assert balancer.last_record is not None
    return balancer.last_record


def slow_rows(model: Staged, batches: Sequence[Tensor], module: str) -> dict[str, Tensor]:
    """Return task -> flat gradient of one module, by a backward pass for it alone."""
    parameters = [p for name, p in model.named_parameters() if name.startswith(f"{module}.")]
    rows: dict[str, Tensor] = {}
    for x in batches:
        for task, loss in model(x).items():
            found = torch.autograd.grad(loss, parameters, retain_graph=True)
            row = torch.cat([value.flatten() for value in found])
            rows[task] = rows[task] + row if task in rows else row
    return rows


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("source", ["exact", "exact_low_memory"])
@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (2, 1.0), (2, 1024.0)])
def test_every_module_by_hand(tasks: int, source: str, count: int, scale: float) -> None:
    model = Staged(tasks)
    batches = [inputs(seed) for seed in range(count)]
    record = balanced_record(model, batches, scale, source=source)
    assert list(record.modules) == ["encoder", "neck", "fusion"]
    for module, found in record.modules.items():
        rows = slow_rows(model, batches, module)
        expected = {task: float(row.norm()) for task, row in rows.items()}
        assert found.norms == pytest.approx(expected, rel=1e-9)
        assert list(found.cosine) == [f"{a}/{b}" for a, b in itertools.combinations(rows, 2)]
        for pair, cosine in found.cosine.items():
            a, b = (rows[task] for task in pair.split("/"))
            assert cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)


def test_modules_add_up_to_the_trunk() -> None:
    record = balanced_record(Staged(), [inputs()])
    for task, norm in record.norms.items():
        parts = [module.norms[task] ** 2 for module in record.modules.values()]
        assert math.fsum(parts) == pytest.approx(norm**2, rel=1e-12)
    for pair, cosine in record.cosine.items():
        a, b = pair.split("/")
        products = [
            module.cosine[pair] * module.norms[a] * module.norms[b]
            for module in record.modules.values()
        ]
        whole = cosine * record.norms[a] * record.norms[b]
        assert math.fsum(products) == pytest.approx(whole, rel=1e-9)


def test_a_cut_knows_the_modules_above_it_and_the_feature_none() -> None:
    model = Staged()
    exact = balanced_record(model, [inputs()])
    above = balanced_record(model, [inputs()], source="cut", cut="encoder")
    assert list(above.modules) == ["neck", "fusion"]
    for module, found in above.modules.items():
        assert found.norms == pytest.approx(exact.modules[module].norms, rel=1e-9)
        assert found.cosine == pytest.approx(exact.modules[module].cosine, rel=1e-9)
    assert balanced_record(model, [inputs()], source="feature").modules == {}


def test_modules_may_be_given() -> None:
    modules = {"first layer": ("encoder.0",), "upper": ("fusion", "neck.*")}
    record = balanced_record(Staged(), [inputs()], modules=modules)
    assert list(record.modules) == ["first layer", "encoder", "upper"]


@pytest.mark.parametrize(
    ("name", "module"),
    [("encoder.0.weight", "encoder"), ("module._orig_mod.neck.bias", "neck"), ("alpha", "alpha")],
)
def test_the_first_part_of_a_name(name: str, module: str) -> None:
    leaf = torch.zeros(1)
    assert modules_of({leaf: name}, {}) == {leaf: module}


def test_the_first_pattern_that_matches_counts() -> None:
    one, other = torch.zeros(1), torch.zeros(1)
    given: Mapping[str, Sequence[str]] = {"weights": ("*.weight",), "all": ("*",)}
    found = modules_of({one: "a.weight", other: "a.bias"}, given)
    assert found == {one: "weights", other: "all"}


def test_a_module_that_is_nothing_is_refused_and_a_frozen_one_is_not() -> None:
    with pytest.raises(UserError, match=r"'necc' of the modules of the figures matches no .* neck"):
        balanced_record(Staged(), [inputs()], modules={"necc": ("necc",)})
    model = Staged()
    model.encoder.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    GradientBalancer(
        torch.optim.SGD(trained, lr=0.1),
        named_parameters=model.named_parameters(),
        modules={"below": ("encoder",)},
    )


def test_a_module_that_one_task_does_not_reach_has_no_pair() -> None:
    model = Staged(3)
    losses = model(inputs())
    upper = torch.tanh(model.neck(torch.ones(3, 9, dtype=torch.float64)))
    losses["b"] = upper.square().mean()  # by-passes the encoder and the fusion
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        free_steps=0,
        balance_steps=1,
        named_parameters=model.named_parameters(),
    )
    balancer.backward(losses)
    balancer.step()
    assert balancer.last_record is not None
    found = balancer.last_record.modules
    assert found["encoder"].norms["b"] == 0.0
    assert list(found["encoder"].cosine) == ["a/c"]
    assert list(found["neck"].cosine) == ["a/b", "a/c", "b/c"]


def test_the_log_line_of_three_tasks_is_json() -> None:
    model = Staged()
    record = balanced_record(model, [inputs()])
    line = json.loads(json.dumps(balance_line(record, BalanceWindow()), allow_nan=False))
    assert set(line["modules"]) == {"encoder", "neck", "fusion"}
    assert set(line["modules"]["neck"]["cosines"]) == {"a/b", "a/c", "b/c"}
    assert set(line["modules"]["neck"]["task_norms"]) == {"a", "b", "c"} == set(line["task_norms"])
    assert set(line["task_weights"]) == {"a", "b", "c"}
