"""Sources that stop above the inputs: a cut by name, the feature, and what they refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.made_backwards import CountBackward, Unrepeatable
from turbotrain_plugin.balancing import Balancer, GradientBalancer, sweep
from turbotrain_plugin.balancing.sweep import Boundary, sweep_until, torch_starts_inside_graphs
from turbotrain_plugin.structures import UserError

MakeModel = Callable[..., Any]  # the TwoTasks of conftest.py

needs_edges = pytest.mark.skipif(
    not torch_starts_inside_graphs(), reason="torch cannot start inside a graph"
)


class Net(nn.Module):
    """Two encoder stages, a trunk that may read both (a pyramid), and a head a task."""

    def __init__(self, *, pyramid: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.pyramid = pyramid
        self.low = torch.empty(0)
        self.encoder = nn.ModuleDict({"low": nn.Linear(6, 8), "high": nn.Linear(8, 8)})
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.detection_head = nn.Linear(8, 3)
        self.prediction_head = nn.Linear(8, 2)
        self.double()

    def encode(self, x: Tensor) -> Tensor:
        counted: Tensor = CountBackward.apply(torch.tanh(self.encoder["low"](x)))  # type: ignore[no-untyped-call]
        high = torch.tanh(self.encoder["high"](counted))
        self.low = counted
        return high

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        encoded = self.encode(x)
        z = self.trunk(encoded)
        if self.pyramid:
            z = z + self.trunk[2](self.low)
        return {
            "detection": (self.detection_head(z) - 1.0).square().mean() + 2.0 * z.mean(),
            "prediction": (self.prediction_head(z) + z[:, :2]).abs().mean() - 2.0 * z.mean(),
        }


class Weights(Balancer):
    """Always 0.5 and 3, so that it shows what was weighed."""

    def weigh(self, gramian: Tensor) -> Tensor:
        del gramian
        return torch.tensor([0.5, 3.0], dtype=torch.float64)


def task_gradients(model: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    found = []
    for task in ("detection", "prediction"):
        model.zero_grad()
        model(x)[task].backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return found


def balance(model: nn.Module, source: str, **keys: Any) -> GradientBalancer:  # noqa: ANN401
    return GradientBalancer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        **{
            "free_steps": 0,
            "balance_steps": 1,
            "named_parameters": list(model.named_parameters()),
            "source": source,
            **keys,
        },
    )


def weights_over(gradients: list[dict[str, Tensor]], prefix: str) -> list[float]:
    """Return the weights of mutual projection over the parameters that begin with ``prefix``."""
    first, second = (
        torch.cat([g[n].flatten() for n in sorted(g) if n.startswith(prefix)]) for g in gradients
    )
    product = float(first @ second)
    return [1.0 - min(product, 0.0) / float(g @ g) for g in (first, second)]


def assert_written(
    model: nn.Module, separate: list[dict[str, Tensor]], weights: list[float]
) -> None:
    for name, parameter in model.named_parameters():
        parts = [g[name] for g in separate if name in g]
        if not parts:
            assert parameter.grad is None, name
            continue
        expected = weights[0] * parts[0] + weights[1] * parts[1] if len(parts) > 1 else parts[0]
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-14, msg=name)


@needs_edges
@pytest.mark.parametrize("pyramid", [False, True])
def test_cut_weighs_by_what_lies_above(inputs: Tensor, pyramid: bool) -> None:
    model = Net(pyramid=pyramid)
    separate = task_gradients(model, inputs)
    weights = weights_over(separate, "trunk")
    assert weights != [1.0, 1.0]
    assert weights != pytest.approx(weights_over(separate, "encoder"), rel=1e-2)
    balancer = balance(model, "cut")
    balancer.backward(model(inputs))
    assert_written(model, separate, weights)
    balancer.step()
    assert balancer.last_record is not None
    assert list(balancer.last_record.weights.values()) == pytest.approx(weights, rel=1e-10)


@needs_edges
@pytest.mark.parametrize(
    ("source", "keys", "passes"),
    [
        ("exact", {}, 2),
        ("exact_low_memory", {}, 2),
        ("cut", {}, 1),
        ("cut", {"cut": "encoder.low"}, 1),
        ("cut", {"cut": ["encoder.low", "encoder.high"]}, 1),
        ("feature", {}, 1),
    ],
)
def test_passes_through_the_encoder(
    inputs: Tensor, source: str, keys: dict[str, Any], passes: int
) -> None:
    model = Net()
    balancer = balance(model, source, **keys)
    balancer.backward(model(inputs))  # with the self-check
    balancer.zero_grad()
    CountBackward.passes = 0
    balancer.backward(model(inputs))
    assert CountBackward.passes == passes


@needs_edges
def test_the_cut_lies_right_below_what_the_pattern_leaves_out(inputs: Tensor) -> None:
    model = Net()
    losses = model(inputs)
    stopped = sweep_until(losses, Boundary(frozenset(model.encoder.parameters())))
    assert set(stopped.rest) == set(model.encoder.parameters())
    assert set(stopped.upper["detection"]) == {
        *model.trunk.parameters(),
        *model.detection_head.parameters(),
    }


@needs_edges
def test_feature_weighs_by_what_arrives_there(inputs: Tensor) -> None:
    model = Net()
    separate = task_gradients(model, inputs)
    features: list[Tensor] = []
    model.trunk.register_forward_hook(lambda _module, _inputs, out: features.append(out))
    losses = model(inputs)
    z = features[0]
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in losses.values())
    product = float((first * second).sum())
    assert product < 0.0
    weights = [1.0 - product / float(g.square().sum()) for g in (first, second)]
    balancer = balance(model, "feature")
    balancer.backward(losses)
    assert_written(model, separate, weights)
    balancer.step()
    record = balancer.last_record
    assert record is not None
    assert record.norms["detection"] == pytest.approx(float(first.norm()), rel=1e-10)
    assert record.conflict == {"detection/prediction": True}


@needs_edges
@pytest.mark.parametrize("source", ["cut", "feature"])
def test_without_a_conflict_the_plain_sum(inputs: Tensor, source: str) -> None:
    model = Net()

    def losses() -> dict[str, Tensor]:
        found = model(inputs)
        return {**found, "prediction": found["prediction"] + 50.0 * found["detection"]}

    torch.stack(list(losses().values())).sum().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    balancer = balance(model, source)
    balancer.zero_grad()
    balancer.backward(losses())
    for name, gradient in plain.items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=0.0)


@needs_edges
@pytest.mark.parametrize("source", ["cut", "feature"])
def test_parts_of_one_task_keep_their_gradient(inputs: Tensor, source: str) -> None:
    """A part of the encoder that only one task reads is not weighed."""
    model = Net()
    model.encoder["own"] = nn.Linear(6, 2).double()

    def losses() -> dict[str, Tensor]:
        found = model(inputs)
        return {**found, "detection": found["detection"] + model.encoder["own"](inputs).mean()}

    losses()["detection"].backward()
    own = {
        n: p.grad.clone() for n, p in model.encoder["own"].named_parameters() if p.grad is not None
    }
    balancer = balance(model, source, method=Weights())
    balancer.zero_grad()
    balancer.backward(losses())
    for name, parameter in model.encoder["own"].named_parameters():
        torch.testing.assert_close(parameter.grad, own[name])


@needs_edges
@pytest.mark.parametrize("source", ["cut", "feature"])
@pytest.mark.parametrize("frozen", ["encoder", "encoder.low", "trunk.0"])
def test_frozen_parts(inputs: Tensor, source: str, frozen: str) -> None:
    model = Net()
    model.get_submodule(frozen).requires_grad_(False)
    separate = task_gradients(model, inputs)
    balancer = balance(model, source, method=Weights())
    balancer.backward(model(inputs))
    assert_written(model, separate, [0.5, 3.0])


@needs_edges
@pytest.mark.parametrize("source", ["exact_low_memory", "cut", "feature"])
@pytest.mark.parametrize("part", ["encode", "trunk"])
def test_gradient_checkpointing(inputs: Tensor, source: str, part: str) -> None:
    model, other = Net(), Net()
    if part == "encode":
        encode = other.encode
        other.encode = lambda x: checkpoint(encode, x, use_reentrant=False)  # type: ignore[method-assign]
    else:
        trunk = other.trunk.forward
        other.trunk.forward = lambda x: checkpoint(trunk, x, use_reentrant=False)  # type: ignore[method-assign]
    ours, theirs = balance(model, source), balance(other, source)
    for _ in range(3):
        for each, balancer in ((model, ours), (other, theirs)):
            balancer.zero_grad()
            balancer.backward(each(inputs))
            balancer.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-14)


@needs_edges
def test_recomputation_is_noticed_once_and_remembered(
    inputs: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Every piece of a checkpointed region would recompute the whole region."""
    model = Net()
    trunk, runs = model.trunk.forward, []

    def counted(x: Tensor) -> Tensor:
        runs.append(1)
        found: Tensor = trunk(x)  # type: ignore[no-untyped-call]
        return found

    model.trunk.forward = lambda x: checkpoint(counted, x, use_reentrant=False)  # type: ignore[method-assign]
    balancer = balance(model, "exact_low_memory")

    def recomputed(balancer: GradientBalancer) -> int:
        losses = model(inputs)
        runs.clear()
        balancer.backward(losses)
        return len(runs)

    with caplog.at_level(logging.INFO, "turbotrain_plugin"):
        assert recomputed(balancer) > 2
        assert recomputed(balancer) == 2
        assert recomputed(balancer) == 2
    assert len([r for r in caplog.records if "recomputes activations" in r.message]) == 1
    resumed = balance(model, "exact_low_memory")
    resumed.load_state_dict(balancer.state_dict())
    recomputed(resumed)
    assert recomputed(resumed) == 2


def test_an_old_torch_falls_back_with_one_line(
    inputs: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "torch_starts_inside_graphs", lambda: False)
    model = Net()
    separate = task_gradients(model, inputs)
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1), free_steps=0, balance_steps=1
    )
    assert balancer.source == "exact_low_memory"
    with caplog.at_level(logging.INFO, "turbotrain_plugin"):
        for _ in range(2):
            balancer.zero_grad()
            balancer.backward(model(inputs))
    lines = [r for r in caplog.records if "cannot start a backward pass" in r.message]
    assert len(lines) == 1
    assert balancer.source == "exact"
    shared = [{n: v for n, v in g.items() if "head" not in n} for g in separate]
    assert_written(model, separate, weights_over(shared, ""))
    with pytest.raises(UserError, match="need a newer torch"):
        balance(model, "cut").backward(model(inputs))


def test_what_cut_and_feature_refuse(inputs: Tensor) -> None:
    model = Net()
    with pytest.raises(UserError, match=r"'encodr' of the cut matches no .* for instance encoder"):
        balance(model, "cut", cut="encodr")
    with pytest.raises(ValueError, match="`named_parameters` should be given"):
        GradientBalancer(torch.optim.SGD(model.parameters(), lr=0.1), source="cut")
    for source in ("cut", "feature"):
        with pytest.raises(UserError, match=f"MoCo needs the gradients of all .* {source!r}"):
            balance(model, source, method="moco")
        with pytest.raises(UserError, match="leave the patterns of shared parameters out"):
            balance(model, source, shared=["trunk"])
    with pytest.raises(UserError, match="All shared parameters lie below the cut encoder, trunk"):
        balance(model, "cut", cut=["encoder", "trunk"]).backward(model(inputs))


@needs_edges
def test_a_parameter_used_on_both_sides_has_no_feature(inputs: Tensor) -> None:
    model = Net()

    def losses() -> dict[str, Tensor]:
        found = model(inputs)
        late = model.encoder["low"](found["prediction"] + inputs.new_ones(2, 6))
        return {**found, "prediction": found["prediction"] + late.square().mean()}

    with pytest.raises(UserError, match="have no feature at which all their paths"):
        balance(model, "feature").backward(losses())


@needs_edges
@pytest.mark.parametrize(
    ("source", "where", "caught"),
    [
        ("exact", "trunk.2", True),
        ("exact_low_memory", "encoder.low", True),
        ("exact_low_memory", "trunk.0", True),
        ("cut", "trunk.0", True),
        ("cut", "encoder.low", False),  # passed once: nothing to be wrong
        ("feature", "trunk.0", False),
    ],
)
def test_the_self_check_looks_where_a_pass_runs_twice(
    inputs: Tensor, source: str, where: str, caught: bool
) -> None:
    model = Net()
    Unrepeatable.passes = 0
    model.get_submodule(where).register_forward_hook(
        lambda _module, _inputs, out: Unrepeatable.apply(out)  # type: ignore[no-untyped-call]
    )
    balancer = balance(model, source)
    if caught:
        with pytest.raises(UserError, match="do not sum to the gradient"):
            balancer.backward(model(inputs))
    else:
        balancer.backward(model(inputs))
        assert Unrepeatable.passes == 1


@needs_edges
@pytest.mark.parametrize("source", ["exact", "exact_low_memory", "cut", "feature"])
def test_what_a_step_records_does_not_know_the_loss_scale(inputs: Tensor, source: str) -> None:
    """Products of scaled gradients carry its square, at the feature as over parameters."""
    records = []
    for scale in (None, 2.0**7):
        model = Net()
        balancer = balance(model, source)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        for rows in inputs.chunk(2):
            losses = model(rows)
            balancer.backward({t: loss / 2 for t, loss in losses.items()}, scaler=scaler)
        if scaler is None:
            balancer.step()
        else:
            scaler.step(balancer)
        assert balancer.last_record is not None
        records.append(balancer.last_record)
    plain, scaled = records
    assert plain.norms["detection"] > 0
    assert scaled.norms == pytest.approx(plain.norms, rel=1e-9)
    assert scaled.weights == pytest.approx(plain.weights, rel=1e-9)
    assert scaled.cosine == pytest.approx(plain.cosine, rel=1e-9)
