"""The piecewise sweep: the same numbers as one pass a task, on graphs of every shape."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbotrain_plugin.balancing import GradientBalancer, sweep
from turbotrain_plugin.balancing.gradients import Gradients, exact_gradients
from turbotrain_plugin.balancing.graph import Leaves, leaves_of_tasks
from turbotrain_plugin.balancing.selfcheck import SumCheck
from turbotrain_plugin.balancing.sweep import _Sweep, low_memory_gradients
from turbotrain_plugin.structures import UserError

Losses = dict[str, Tensor]

needs_edges = pytest.mark.skipif(
    not sweep.torch_starts_inside_graphs(), reason="torch cannot start inside a graph"
)


class Parts(nn.Module):
    """Layers from which the graphs below are built."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6) for _ in range(5)])
        self.norm = nn.BatchNorm1d(6)
        self.map = nn.Linear(6, 6)
        self.head_a = nn.Linear(6, 2)
        self.head_b = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 3)


def trunk(m: Parts, x: Tensor) -> Tensor:
    for layer in m.layers:
        x = torch.tanh(layer(x))
    return x


def heads(m: Parts, a: Tensor, b: Tensor) -> Losses:
    return {"a": m.head_a(a).square().mean(), "b": m.head_b(b).abs().mean()}


def sequential(m: Parts, x: Tensor) -> Losses:
    z = m.norm(trunk(m, x))
    return heads(m, z, z)


def residual(m: Parts, x: Tensor) -> Losses:
    for layer in m.layers:
        x = x + torch.tanh(layer(x))
    return heads(m, x, x)


def skip_into_a_head(m: Parts, x: Tensor) -> Losses:
    early = m.map(x).relu()
    late = trunk(m, early)
    return heads(m, late, late + early)


def own_branch_made_first(m: Parts, x: Tensor) -> Losses:
    own = m.map(x).relu()
    z = trunk(m, x)
    return heads(m, z, z * own)


def branches_that_never_meet(m: Parts, x: Tensor) -> Losses:
    left, right = m.layers[0](x).relu(), m.layers[1](x).tanh()
    left, right = m.layers[2](left), m.layers[3](right)
    return {"a": (left + right).square().mean(), "b": (left * m.head_b(right).sum()).mean()}


def tied_weights(m: Parts, x: Tensor) -> Losses:
    for _ in range(3):
        x = torch.tanh(m.layers[0](torch.tanh(m.layers[1](x))))
    return heads(m, x, m.layers[1](x))


def a_loss_of_a_loss(m: Parts, x: Tensor) -> Losses:
    a = heads(m, trunk(m, x), x)["a"]
    return {"a": a, "b": a.square() + m.head_b(x).sum()}


def losses_of_a_chain_of_a_loss(m: Parts, x: Tensor) -> Losses:
    """Shared operations lie before the place where the first loss enters."""
    a = heads(m, trunk(m, x), x)["a"]
    late = (a * m.norm.weight.sum()).tanh() * m.map.bias.sum()
    return {"a": a, "b": late.square(), "c": late.exp()}


def two_outputs_of_one_operation(m: Parts, x: Tensor) -> Losses:
    left, right = torch.tanh(m.layers[1](m.layers[0](x))).chunk(2, dim=1)
    return {"a": (left * right).mean(), "b": left.square().sum()}


def three_tasks(m: Parts, x: Tensor) -> Losses:
    middle = m.norm(m.map(x)).tanh()
    return {**heads(m, trunk(m, middle), middle), "c": m.unused(middle).square().mean()}


def checkpointed(m: Parts, x: Tensor) -> Losses:
    z = checkpoint(lambda value: trunk(m, value), m.layers[0](x), use_reentrant=False)
    return heads(m, z, z)


def a_task_that_is_a_leaf(m: Parts, x: Tensor) -> Losses:
    scale = nn.Parameter(torch.ones((), dtype=x.dtype))
    m.scale = scale
    return {"a": heads(m, trunk(m, x), x)["a"] * scale, "b": scale}


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:  # noqa: ANN401, ARG004
        return None


def a_task_without_gradients(m: Parts, x: Tensor) -> Losses:
    z = trunk(m, x)
    stopped: Tensor = NoGradient.apply(z)  # type: ignore[no-untyped-call]
    return heads(m, z, stopped)


def a_single_task(m: Parts, x: Tensor) -> Losses:
    return {"a": heads(m, trunk(m, x), x)["a"]}


GRAPHS: list[Callable[[Parts, Tensor], Losses]] = [
    sequential,
    residual,
    skip_into_a_head,
    own_branch_made_first,
    branches_that_never_meet,
    tied_weights,
    a_loss_of_a_loss,
    losses_of_a_chain_of_a_loss,
    two_outputs_of_one_operation,
    three_tasks,
    checkpointed,
    a_task_that_is_a_leaf,
    a_task_without_gradients,
    a_single_task,
]


@pytest.fixture
def parts() -> Parts:
    torch.manual_seed(0)
    return Parts().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@needs_edges
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.__name__)
def test_the_numbers_of_one_pass_a_task(
    graph: Callable[[Parts, Tensor], Losses], parts: Parts, x: Tensor
) -> None:
    losses = graph(parts, x)
    leaves = leaves_of_tasks(losses)
    kept = {
        task: torch.autograd.grad(loss, leaves[task], retain_graph=True, allow_unused=True)
        for task, loss in losses.items()
    }
    expected = {
        task: {p: g for p, g in zip(leaves[task], values, strict=True) if g is not None}
        for task, values in kept.items()
    }
    found = low_memory_gradients(losses, leaves)
    assert list(found) == list(expected)
    for task, gradients in expected.items():
        assert set(found[task]) == set(gradients)
        for leaf, gradient in gradients.items():
            torch.testing.assert_close(found[task][leaf], gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("graph", "least"),
    [
        (sequential, 6),
        (residual, 5),
        (skip_into_a_head, 2),
        (own_branch_made_first, 6),
        (branches_that_never_meet, 3),
        (tied_weights, 1),
        (three_tasks, 3),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_cuts_are_found(
    graph: Callable[[Parts, Tensor], Losses], least: int, parts: Parts, x: Tensor
) -> None:
    losses = graph(parts, x)
    pieces = _Sweep(list(losses.values())).pieces()
    assert len(pieces) >= least
    # Every leaf belongs to one piece, and nothing is left open at the end.
    found = [leaf for piece in pieces for leaf in piece.leaves]
    everything = {leaf for reached in leaves_of_tasks(losses).values() for leaf in reached}
    assert len(found) == len(set(found))
    assert set(found) == everything
    assert pieces[-1].ends == []


def test_a_deep_trunk_is_cut_into_few_pieces_of_about_equal_size() -> None:
    trunk = nn.Sequential(*(nn.Linear(4, 4) for _ in range(200)))
    z = trunk(torch.ones(2, 4))
    pieces = _Sweep([z.sum(), z.square().sum()]).pieces()
    assert 10 < len(pieces) < 30
    sizes = [len(piece.leaves) for piece in pieces if piece.shared]
    assert sum(sizes) == 400
    assert max(sizes) < 60


def test_heads_are_a_piece_of_their_own(parts: Parts, x: Tensor) -> None:
    first, second, *_ = _Sweep(list(own_branch_made_first(parts, x).values())).pieces()
    own = {*parts.head_a.parameters(), *parts.head_b.parameters(), *parts.map.parameters()}
    assert set(first.leaves) == own
    assert not first.shared
    assert second.shared


def test_the_latest_operation_comes_first(parts: Parts, x: Tensor) -> None:
    """As in torch's engine, so that activations are freed in the usual order."""
    pieces = _Sweep(list(branches_that_never_meet(parts, x).values())).pieces()
    place = {layer.bias: index for index, layer in enumerate(parts.layers)}
    order = [place[leaf] for piece in pieces for leaf in piece.leaves if leaf in place]
    assert order == [3, 2, 1, 0]


@needs_edges
def test_every_piece_is_freed(parts: Parts, x: Tensor) -> None:
    losses = sequential(parts, x)
    low_memory_gradients(losses, leaves_of_tasks(losses))
    for loss, head in zip(losses.values(), (parts.head_a, parts.head_b), strict=True):
        with pytest.raises(RuntimeError, match="second time"):  # the heads on their own
            torch.autograd.grad(loss, list(head.parameters()), retain_graph=True)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


class Saved:
    """A tensor saved for the backward pass; dies when autograd frees it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Probe(torch.autograd.Function):
    """Identity at the far end of a graph; counts what is still saved when it is reached."""

    saved: ClassVar[list[weakref.ref[Saved]]] = []
    counts: ClassVar[list[int]] = []

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        Probe.counts.append(sum(saved() is not None for saved in Probe.saved))
        return gradient


def still_saved_at_the_end(source: Callable[[Losses, Leaves], Gradients], layers: int) -> int:
    """Return how many tensors are still held when the gradient arrives at the first layer."""

    def pack(value: Tensor) -> Saved:
        saved = Saved(value)
        Probe.saved.append(weakref.ref(saved))
        return saved

    Probe.saved.clear()
    Probe.counts.clear()
    torch.manual_seed(0)
    y = torch.randn(3, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.value):
        y = Probe.apply(y)  # type: ignore[no-untyped-call]
        for _ in range(layers):
            y = torch.tanh(y @ torch.randn(4, 4, requires_grad=True))
        losses = {"a": y.square().sum(), "b": y.exp().sum()}
    source(losses, leaves_of_tasks(losses))
    return max(Probe.counts)


@needs_edges
def test_little_is_kept_while_the_sweep_goes_on() -> None:
    """At the far end of the graph one pass a task still holds everything, the sweep does not."""
    assert still_saved_at_the_end(exact_gradients, 20) > 40
    assert still_saved_at_the_end(low_memory_gradients, 20) < 10


@needs_edges
def test_the_self_check_keeps_little_as_well() -> None:
    def checked(losses: Losses, leaves: Leaves) -> Gradients:
        check = SumCheck()
        found = low_memory_gradients(losses, leaves, check)
        assert check.conclusive
        return found

    assert still_saved_at_the_end(checked, 20) < 10


@needs_edges
def test_gradients_that_are_rounding_alone_say_nothing() -> None:
    """What is added before a BatchNorm has no gradient, but for rounding."""
    torch.manual_seed(0)
    shift, norm, heads = nn.Parameter(torch.randn(6)), nn.BatchNorm1d(6), nn.Linear(6, 2)
    z = norm(torch.randn(64, 6) + shift).tanh()
    first, second = heads(z).unbind(dim=1)
    losses = {"a": first.square().mean(), "b": (second * z[:, 0]).mean()}
    check = SumCheck()
    found = low_memory_gradients(losses, leaves_of_tasks(losses), check)
    assert check.conclusive
    assert all(float(gradients[shift].norm()) < 1e-6 for gradients in found.values())


def test_a_torch_that_cannot_is_named(
    parts: Parts, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "torch_starts_inside_graphs", lambda: False)
    losses = sequential(parts, x)
    with pytest.raises(UserError, match=r"'exact_low_memory', .* need a newer torch"):
        low_memory_gradients(losses, leaves_of_tasks(losses))


@needs_edges
def test_training_is_the_same_with_either_source(
    make_model: Callable[..., Any], make_balancer: Callable[..., GradientBalancer], inputs: Tensor
) -> None:
    trained = []
    for source in ("exact", "exact_low_memory"):
        model = make_model()
        balancer = make_balancer(model, free_steps=1, balance_steps=3)
        balancer.source = source
        for _ in range(6):
            balancer.zero_grad()
            for chunk in inputs.chunk(2):
                balancer.backward(model(chunk))
            balancer.step()
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-10, atol=1e-12, msg=name)


def test_unknown_sources_are_refused(
    make_model: Callable[..., Any], make_balancer: Callable[..., GradientBalancer]
) -> None:
    with pytest.raises(ValueError, match="`source` should be one of exact, exact_low_memory"):
        make_balancer(make_model()).source = "vmap"
