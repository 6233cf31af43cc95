from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbotrain_plugin.balancing.gradients import TaskGradients
from turbotrain_plugin.balancing.graph import leaves_of_tasks, reached_by_several
from turbotrain_plugin.balancing.parameters import match_patterns, parameter_names, summarise
from turbotrain_plugin.balancing.sharing import SharedParameters
from turbotrain_plugin.structures import UserError


class Net(nn.Module):
    """A trunk, a part only b uses, a frozen layer and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.map = nn.Linear(4, 4, bias=False)
        self.head_a = nn.Linear(4, 1)
        self.head_b = nn.Linear(4, 1)
        self.unused = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.frozen(self.trunk(x)).relu()
        b = self.head_b(z + self.map(x))
        return {"a": self.head_a(z).mean(), "b": b.mean()}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def losses(net: Net) -> dict[str, Tensor]:
    result: dict[str, Tensor] = net(torch.randn(5, 4))
    return result


def sharing(net: Net, patterns: list[str] | None = None) -> SharedParameters:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return SharedParameters(optimizer, patterns, net.named_parameters())


def test_leaves_of_each_loss(net: Net, losses: dict[str, Tensor]) -> None:
    leaves = leaves_of_tasks(losses)
    trunk = set(net.trunk.parameters())
    assert set(leaves["a"]) == trunk | set(net.head_a.parameters())
    assert set(leaves["b"]) == trunk | set(net.head_b.parameters()) | set(net.map.parameters())
    assert reached_by_several(leaves) == trunk
    assert all(len(set(reached)) == len(reached) for reached in leaves.values())


def test_a_leaf_that_is_itself_the_loss() -> None:
    leaf = torch.ones((), requires_grad=True)
    assert leaves_of_tasks({"a": leaf}) == {"a": (leaf,)}


def test_a_parameter_used_twice_is_found_once() -> None:
    weight = torch.ones(2, requires_grad=True)
    loss = (weight * weight.exp()).sum()
    assert leaves_of_tasks({"a": loss}) == {"a": (weight,)}


def test_a_loss_computed_from_another_loss() -> None:
    weight = torch.ones(2, requires_grad=True)
    first = weight.sum()
    leaves = leaves_of_tasks({"first": first, "second": first * 2})
    assert reached_by_several(leaves) == {weight}


def test_checkpointing_without_reentry_is_seen_through() -> None:
    layer = nn.Linear(3, 3)
    loss = checkpoint(layer, torch.randn(2, 3), use_reentrant=False).sum()
    assert set(leaves_of_tasks({"a": loss})["a"]) == set(layer.parameters())


def test_reentrant_checkpointing_is_refused() -> None:
    layer = nn.Linear(3, 3)
    loss = checkpoint(layer, torch.randn(2, 3, requires_grad=True), use_reentrant=True).sum()
    with pytest.raises(UserError, match="use_reentrant=False"):
        leaves_of_tasks({"a": loss})


def test_deep_graphs_do_not_exhaust_the_stack() -> None:
    weight = torch.ones((), requires_grad=True)
    value = weight
    for _ in range(5000):
        value = value + 1.0
    assert leaves_of_tasks({"a": value}) == {"a": (weight,)}


def test_shared_parameters_are_named_in_order(net: Net, losses: dict[str, Tensor]) -> None:
    shared = sharing(net)
    assert "first backward" in shared.describe()
    assert len(shared.names) == 0
    shared.examine(leaves_of_tasks(losses))
    assert list(shared.names) == ["trunk.weight", "trunk.bias"]
    assert "2 tensors, 20 numbers" in shared.describe()
    assert "trunk (2)" in shared.describe()
    assert "a 2, b 3" in shared.describe()


def test_a_task_that_shares_nothing_is_named(net: Net, losses: dict[str, Tensor]) -> None:
    losses["c"] = net.unused(torch.randn(2, 4)).sum()
    with pytest.raises(UserError, match=r"'c' shares no trained parameter .* with a, b"):
        sharing(net).examine(leaves_of_tasks(losses))


def test_a_frozen_trunk_is_nothing_to_balance(net: Net) -> None:
    net.trunk.requires_grad_(False)
    with pytest.raises(UserError, match=r"'a' shares no trained parameter .* with b"):
        sharing(net).examine(leaves_of_tasks(net(torch.randn(5, 4))))


def test_a_trunk_outside_the_optimizer_is_nothing_to_balance(
    net: Net, losses: dict[str, Tensor]
) -> None:
    optimizer = torch.optim.SGD([*net.head_a.parameters(), *net.head_b.parameters()], lr=0.1)
    shared = SharedParameters(optimizer, None, net.named_parameters())
    with pytest.raises(UserError, match="'a' shares no trained parameter of the optimizer"):
        shared.examine(leaves_of_tasks(losses))


def test_a_known_task_may_stop_sharing(net: Net, losses: dict[str, Tensor]) -> None:
    shared = sharing(net)
    shared.examine(leaves_of_tasks(losses))
    again = net(torch.randn(5, 4))
    again["b"] = 0.0 * net.head_b.weight.sum()
    shared.examine(leaves_of_tasks(again))
    assert shared.names == ("trunk.weight", "trunk.bias")


def test_patterns_replace_the_search(net: Net, losses: dict[str, Tensor]) -> None:
    shared = sharing(net, ["trunk.w*"])
    shared.examine(leaves_of_tasks(losses))
    assert shared.names == ("trunk.weight",)
    assert shared.select(TaskGradients()) == [net.trunk.weight]


def test_a_task_the_patterns_leave_out_is_named(net: Net, losses: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="'a' reaches none of the shared parameters map"):
        sharing(net, ["map"]).examine(leaves_of_tasks(losses))


def test_patterns_need_names(net: Net) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`named_parameters` should be given together"):
        SharedParameters(optimizer, ["trunk"], None)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["trunk"], {"trunk.weight", "trunk.bias"}),
        (["*.bias"], {"trunk.bias", "frozen.bias", "head_a.bias", "head_b.bias", "unused.bias"}),
        (["head_?", "map.weight"], {"map.weight"}),
        (["head_?.*"], {"head_a.weight", "head_a.bias", "head_b.weight", "head_b.bias"}),
    ],
)
def test_patterns(net: Net, patterns: list[str], expected: set[str]) -> None:
    names: dict[Tensor, str] = {p: name for name, p in net.named_parameters()}
    if patterns[0] == "head_?":
        with pytest.raises(UserError, match=r"'head_\?' .* matches no parameter"):
            match_patterns(patterns, names)
        return
    assert {names[p] for p in match_patterns(patterns, names)} == expected


def test_a_misspelt_pattern_gets_the_nearest_name(net: Net) -> None:
    names: dict[Tensor, str] = {p: name for name, p in net.named_parameters()}
    with pytest.raises(UserError, match=r"'trunc' .* for instance trunk"):
        match_patterns(["trunc"], names)
    with pytest.raises(UserError, match="for instance frozen, head_a"):
        match_patterns(["zzzzzzzzzz"], names)


def test_parameters_without_a_name_are_called_by_their_place(net: Net) -> None:
    groups = [{"params": net.trunk.parameters()}, {"params": net.map.parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert list(parameter_names(optimizer, None).values()) == ["group0.0", "group0.1", "group1.0"]
    named = parameter_names(optimizer, net.trunk.named_parameters())
    assert list(named.values()) == ["weight", "bias", "group1.0"]


def test_summaries() -> None:
    assert summarise(["a.x", "b.x", "a.y", "c"]) == "a (2), b (1), c (1)"
    assert summarise([]) == "none"
