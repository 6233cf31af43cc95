"""Probed free steps: what they measure is right, and the training does not notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import BalanceRecord, GradientBalancer
from turbotrain_plugin.balancing.probe import Probe
from turbotrain_plugin.engine.records import balance_line
from turbotrain_plugin.structures import UserError

STEPS = 9


class Noisy(nn.Module):
    """A trunk with everything that a second look could disturb: dropout, BatchNorm, in-place."""

    def __init__(self, tasks: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
        )
        self.fusion = nn.Conv2d(6, 6, 1)
        self.heads = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(tasks))
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = torch.tanh(self.fusion(self.encoder(x)))
        return {
            name: (head(z) - 1.0).square().mean() + (-1.0) ** i * (2.0 + i) * z.mean()
            for i, (name, head) in enumerate(zip("abc", self.heads, strict=False))
        }


def train(
    probe_every: int,
    *,
    tasks: int = 2,
    free_steps: int = 4,
    balance_steps: int = 2,
    micro_batches: int = 1,
    clip: float = 0.0,
    scaled: bool = False,
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
    **keys: Any,  # noqa: ANN401
) -> tuple[Noisy, GradientBalancer, list[BalanceRecord]]:
    torch.manual_seed(2)
    model = Noisy(tasks, dtype)
    balancer = GradientBalancer(
        torch.optim.Adam(model.parameters(), lr=1e-2),
        free_steps=free_steps,
        balance_steps=balance_steps,
        named_parameters=model.named_parameters(),
        probe_every=probe_every,
        **keys,
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if scaled else None
    records = []
    for _ in range(steps):
        balancer.zero_grad()
        for _ in range(micro_batches):
            balancer.backward(model(torch.randn(3, 2, 5, 5, dtype=dtype)), scaler=scaler)
        if scaler is not None:
            scaler.unscale_(balancer)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is not None:
            scaler.step(balancer)
            scaler.update()
        else:
            balancer.step()
        assert balancer.last_record is not None
        records.append(balancer.last_record)
    return model, balancer, records


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"micro_batches": 2, "clip": 0.1},
        {"scaled": True},
        {"source": "exact"},
        {"source": "cut"},
        {"source": "feature"},
        {"method": "none"},
        {"method": "moco"},
        {"free_steps": 1, "balance_steps": 0},
    ],
    ids=str,
)
def test_a_probe_changes_no_bit(tasks: int, keys: dict[str, Any]) -> None:
    plain, _, _ = train(0, tasks=tasks, **keys)
    state = torch.get_rng_state()
    probed, _, records = train(1, tasks=tasks, **keys)
    assert torch.equal(torch.get_rng_state(), state)  # no random number was drawn for it
    for name, value in plain.state_dict().items():
        assert torch.equal(probed.state_dict()[name], value), name
    free = [record for record in records if not record.balanced]
    assert free
    assert all(record.measured for record in free)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_probe_measures_what_a_balanced_step_would(micro_batches: int, scaled: bool) -> None:
    keys: dict[str, Any] = {
        "tasks": 3,
        "steps": 1,
        "micro_batches": micro_batches,
        "dtype": torch.float64,
        "scaled": scaled,
    }
    _, _, (free,) = train(1, **keys)
    _, _, (balanced,) = train(0, free_steps=0, balance_steps=1, **keys)
    assert (free.balanced, balanced.balanced) == (False, True)
    assert free.norms == pytest.approx(balanced.norms, rel=1e-9)
    assert free.cosine == pytest.approx(balanced.cosine, rel=1e-9)
    assert free.conflict == balanced.conflict
    assert list(free.modules) == list(balanced.modules) == ["encoder", "fusion"]
    for module, part in free.modules.items():
        assert part.cosine == pytest.approx(balanced.modules[module].cosine, rel=1e-9)
        assert part.norms == pytest.approx(balanced.modules[module].norms, rel=1e-9)
    assert free.weights == {}
    assert any(balanced.conflict.values())


def test_every_kth_free_step_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    added, add = [], Probe.add

    def counted(*args: Any) -> None:  # noqa: ANN401
        added.append(args)
        add(*args)

    monkeypatch.setattr(Probe, "add", counted)
    _, balancer, records = train(2)
    assert len(added) == 4  # balanced steps cost no probe
    assert [record.balanced for record in records] == [False] * 4 + [True] * 2 + [False] * 3
    measured = [record.step for record in records if record.measured and not record.balanced]
    assert measured == [0, 2, 6, 8]
    assert balancer.probe_window.steps == 2  # of the second cycle
    assert balancer.probe_window.cycle == 1
    assert balancer.window.steps == 2


def test_without_probing_a_free_step_measures_nothing() -> None:
    _, balancer, records = train(0)
    assert all(record.balanced or not record.measured for record in records)
    assert balancer.probe_window.steps == 0


def test_the_window_of_probes_is_resumed() -> None:
    _, balancer, _ = train(1, steps=3)
    state = balancer.state_dict()
    _, again, _ = train(1, steps=1)
    again.load_state_dict(state)
    assert again.probe_window == balancer.probe_window
    assert again.probe_window.steps == 3
    again.load_state_dict(again.inner.state_dict())  # a bare optimiser's
    assert again.probe_window.steps == 0


def test_an_older_checkpoint_has_no_window_of_probes() -> None:
    _, balancer, _ = train(1, steps=3)
    state = balancer.state_dict()
    del state["turbotrain_balancer"]["probe_window"]
    balancer.load_state_dict(state)
    assert balancer.probe_window.steps == 0


def test_the_log_line_of_a_probe() -> None:
    _, balancer, records = train(1, steps=2)
    line = balance_line(records[-1], balancer.window_of(records[-1]))
    assert line["cosine"] == records[-1].cosine["a/b"]
    assert line["conflict_rates"] == balancer.probe_window.conflict_rate
    assert set(line["modules"]) == {"encoder", "fusion"}
    assert "task_weights" not in line


def test_one_task_is_not_probed() -> None:
    _, balancer, records = train(1, tasks=1, steps=2)
    assert not any(record.measured for record in records)
    assert balancer.probe_window.steps == 0


def test_a_task_without_a_gradient_has_no_pair() -> None:
    torch.manual_seed(2)
    model = Noisy(2, torch.float64)
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1), free_steps=9, probe_every=1
    )
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    for detached in (False, True):
        balancer.zero_grad()
        losses = model(x)
        absent = losses["b"].detach() if detached else losses["b"] * 0.0
        balancer.backward({"a": losses["a"], "b": absent})
        balancer.step()
        record = balancer.last_record
        assert record is not None
        assert record.cosine == {}
        assert record.norms.get("b", 0.0) == 0.0
        assert not record.skipped


def test_what_is_not_finite_is_not_reported() -> None:
    torch.manual_seed(2)
    model = Noisy(2, torch.float32)
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1), free_steps=9, probe_every=1
    )
    losses = model(torch.randn(3, 2, 5, 5))
    balancer.backward({"a": losses["a"] * float("inf"), "b": losses["b"]})
    with pytest.warns(UserWarning, match="was not taken"):
        balancer.step()
    assert balancer.last_record is not None
    assert balancer.last_record.skipped
    assert not balancer.last_record.measured
    assert balancer.probe_window.steps == 0


@pytest.mark.parametrize("found", [-1, 1.5, True, "2"])
def test_a_number_of_steps_that_is_none_is_refused(found: Any) -> None:  # noqa: ANN401
    with pytest.raises(UserError, match="whole number >= 0 for probe_every"):
        train(found)


def test_tasks_that_share_nothing_are_said_at_the_first_probe() -> None:
    left, right = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*left.parameters(), *right.parameters()], lr=0.1)
    balancer = GradientBalancer(optimizer, method="none", probe_every=1)
    x = torch.ones(1, 2)
    with pytest.raises(UserError, match="shares no trained parameter"):
        balancer.backward({"a": left(x).sum(), "b": right(x).sum()})
