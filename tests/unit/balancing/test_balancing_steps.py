"""What a step of the balancer does to gradients and parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.made_backwards import CountBackward, Unrepeatable
from turbotrain_plugin.balancing import Balancer, GradientBalancer
from turbotrain_plugin.structures import UserError

MakeModel = Callable[..., Any]  # the TwoTasks of conftest.py
MakeBalancer = Callable[..., GradientBalancer]


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return name -> gradient by an ordinary backward pass on a fresh graph."""
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def written(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def is_trunk(name: str) -> bool:
    return name.startswith("trunk")


@pytest.mark.parametrize("seed", range(6))
def test_balanced_gradient_is_the_closed_form(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor, seed: int
) -> None:
    model = make_model(seed)
    separate = {task: gradients_of(model, model(inputs)[task]) for task in model(inputs)}
    balancer = make_balancer(model)
    balancer.zero_grad()
    balancer.backward(model(inputs))
    first, second = (
        torch.cat([g[n].flatten() for n in g if is_trunk(n)]) for g in separate.values()
    )
    product = float(first @ second)
    weights = [1.0 - min(product, 0.0) / float(g @ g) for g in (first, second)]
    for name, gradient in written(model).items():
        parts = [g[name] for g in separate.values() if name in g]
        expected = weights[0] * parts[0] + weights[1] * parts[1] if is_trunk(name) else parts[0]
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
        if not is_trunk(name):
            assert torch.equal(gradient, expected)
    balancer.step()
    record = balancer.last_record
    assert record is not None
    assert list(record.weights.values()) == pytest.approx(weights, rel=1e-12)
    assert record.conflict == {"detection/prediction": product < 0}


def test_both_cases_occur_in_these_seeds(make_model: MakeModel, inputs: Tensor) -> None:
    """Guards the test above: some of its seeds conflict and some do not."""
    products = set()
    for seed in range(6):
        model = make_model(seed)
        first, second = (gradients_of(model, model(inputs)[task]) for task in model(inputs))
        product = sum(float((first[n] * second[n]).sum()) for n in first if is_trunk(n))
        products.add(product < 0)
    assert products == {True, False}


def test_without_a_conflict_the_bits_of_the_plain_sum(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model(dtype=torch.float32)
    inputs = inputs.float()

    def losses() -> dict[str, Tensor]:
        found = model(inputs)
        return {**found, "prediction": found["prediction"] + 5.0 * found["detection"]}

    separate = [gradients_of(model, losses()[task]) for task in ("detection", "prediction")]
    balancer = make_balancer(model)
    balancer.backward(losses())
    for name, gradient in written(model).items():
        if is_trunk(name):
            assert torch.equal(gradient, separate[0][name] + separate[1][name]), name
    balancer.step()
    assert balancer.last_record is not None
    assert balancer.last_record.weights == {"detection": 1.0, "prediction": 1.0}


def test_a_free_step_is_the_bits_of_an_ordinary_step(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    ours, theirs = make_model(), make_model()
    balancer = make_balancer(ours, free_steps=5, balance_steps=1)
    plain = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(4):
        balancer.zero_grad()
        balancer.backward(ours(inputs))
        balancer.step()
        plain.zero_grad()
        sum(theirs(inputs).values()).backward()
        plain.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(left, right)
    assert balancer.last_record is not None
    assert not balancer.last_record.balanced
    assert balancer.last_record.step == 3


def insert_after(layer: nn.Module, function: Any) -> None:  # noqa: ANN401
    layer.register_forward_hook(lambda _module, _inputs, out: function.apply(out))


def test_passes_through_the_trunk(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    insert_after(model.trunk[3], CountBackward)
    balancer = make_balancer(model, free_steps=2, balance_steps=2)
    counts = []
    for _ in range(4):
        CountBackward.passes = 0
        balancer.zero_grad()
        balancer.backward(model(inputs))
        balancer.step()
        counts.append(CountBackward.passes)
    # One for a free step, one a task for a balanced one, and one more for the first self-check.
    assert counts == [1, 1, 3, 2]


def test_batchnorm_moves_once(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    ours, theirs = make_model(), make_model()
    balancer = make_balancer(ours)
    balancer.backward(ours(inputs))
    balancer.step()
    theirs(inputs)
    assert int(ours.trunk[1].num_batches_tracked) == 1
    assert torch.equal(ours.trunk[1].running_mean, theirs.trunk[1].running_mean)


@pytest.mark.parametrize("chunks", [2, 4])
def test_accumulation_equals_one_big_batch(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor, chunks: int
) -> None:
    big, small = make_model(0, norm=False), make_model(0, norm=False)
    whole, parts = make_balancer(big), make_balancer(small)
    for _ in range(3):
        whole.zero_grad()
        whole.backward(big(inputs))
        parts.zero_grad()
        for chunk in inputs.chunk(chunks):
            parts.backward({task: loss / chunks for task, loss in small(chunk).items()})
        for name, gradient in written(small).items():
            torch.testing.assert_close(gradient, written(big)[name], rtol=1e-10, atol=1e-14)
        whole.step()
        parts.step()
        assert parts.last_record is not None
        assert whole.last_record is not None
        assert parts.last_record.cosine == pytest.approx(whole.last_record.cosine, rel=1e-9)
    assert parts.steps_taken == 3


def test_deciding_per_micro_batch_would_be_something_else(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    """Guards the test above: the two orders of deciding and summing differ on these inputs."""
    model = make_model(0, norm=False)
    added: dict[str, Tensor] = {}
    for chunk in inputs.chunk(4):
        balancer = make_balancer(model)
        balancer.zero_grad()
        balancer.backward({task: loss / 4 for task, loss in model(chunk).items()})
        for name, gradient in written(model).items():
            added[name] = added.get(name, torch.zeros_like(gradient)) + gradient
    balancer.zero_grad()
    balancer.backward(model(inputs))
    gap = max(float((added[n] - g).abs().max()) for n, g in written(model).items() if is_trunk(n))
    assert gap > 1e-4


def test_all_micro_batches_of_a_step_are_of_one_kind(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model, free_steps=1, balance_steps=1)
    kinds = []
    for _ in range(4):
        balancer.zero_grad()
        for chunk in inputs.chunk(3):
            kinds.append(balancer.is_balanced)
            balancer.backward(model(chunk))
        balancer.step()
    assert kinds == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3


def test_a_task_missing_from_one_micro_batch(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    """Its gradient there is zero: the trunk gradient of the other belongs to the other alone."""
    model = make_model(norm=False)
    first, second = inputs.chunk(2)
    detection = gradients_of(model, model(first)["detection"] + model(second)["detection"])
    prediction = gradients_of(model, model(second)["prediction"])
    balancer = make_balancer(model)
    balancer.zero_grad()
    balancer.backward({"detection": model(first)["detection"], "prediction": torch.zeros(())})
    balancer.backward(model(second))
    balancer.step()
    record = balancer.last_record
    assert record is not None
    for task, separate in (("detection", detection), ("prediction", prediction)):
        norm = sum(float(separate[n].square().sum()) for n in separate if is_trunk(n)) ** 0.5
        assert record.norms[task] == pytest.approx(norm, rel=1e-10)


def zero_gradient(losses: dict[str, Tensor]) -> Tensor:
    return 0.0 * losses["prediction"]


def constant(losses: dict[str, Tensor]) -> Tensor:
    return torch.zeros_like(losses["prediction"])


@pytest.mark.parametrize("replace", [zero_gradient, constant])
def test_an_absent_task_leaves_the_plain_sum(
    make_model: MakeModel,
    make_balancer: MakeBalancer,
    inputs: Tensor,
    replace: Callable[[dict[str, Tensor]], Tensor],
) -> None:
    model = make_model()
    alone = gradients_of(model, model(inputs)["detection"])
    balancer = make_balancer(model)
    balancer.zero_grad()
    losses = model(inputs)
    balancer.backward({"detection": losses["detection"], "prediction": replace(losses)})
    for name, gradient in written(model).items():
        assert torch.equal(gradient, alone.get(name, torch.zeros_like(gradient)))
    balancer.step()
    record = balancer.last_record
    assert record is not None
    assert record.balanced
    assert record.cosine == {}
    assert record.weights["detection"] == 1.0
    assert balancer.steps_taken == 1


@pytest.mark.parametrize("free_steps", [0, 9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient", "loss only"])
def test_a_step_that_is_not_finite_is_not_taken(
    make_model: MakeModel, inputs: Tensor, free_steps: int, bad: float, where: str
) -> None:
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters())
    balancer = GradientBalancer(optimizer, free_steps=free_steps, balance_steps=1)
    balancer.backward(model(inputs))
    balancer.step()
    before = {n: v.clone() for n, v in model.named_parameters()}
    state = {n: optimizer.state[p]["exp_avg"].clone() for n, p in model.named_parameters()}
    window = balancer.window.state_dict()
    balancer.zero_grad()
    losses = model(inputs)
    if where == "loss":
        losses["prediction"] = losses["prediction"] * bad
    elif where == "gradient":
        losses["prediction"].register_hook(lambda g: g * bad)
    else:
        losses["prediction"] = losses["prediction"] + torch.tensor(bad)
    balancer.backward(losses)
    reason = "gradient is not finite" if where == "gradient" else f"prediction is {bad}"
    with pytest.warns(UserWarning, match=f"step 1 was not taken: .*{reason}"):
        balancer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert torch.equal(optimizer.state[parameter]["exp_avg"], state[name])
    assert balancer.steps_taken == 1
    assert balancer.last_record is not None
    assert reason in balancer.last_record.skipped
    assert balancer.window.state_dict() == window
    # The next step is as if nothing had happened.
    balancer.zero_grad()
    balancer.backward(model(inputs))
    balancer.step()
    assert balancer.steps_taken == 2
    assert balancer.last_record.skipped == ""
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_bad_micro_batch_spoils_its_step_only(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    balancer.zero_grad()
    balancer.backward({task: loss * float("nan") for task, loss in model(inputs).items()})
    balancer.backward(model(inputs))
    with pytest.warns(UserWarning, match="not taken: loss detection is nan, prediction is nan"):
        balancer.step()
    balancer.zero_grad()
    balancer.backward(model(inputs))
    balancer.step()
    assert balancer.steps_taken == 1


def test_gradients_of_others_are_added_to(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model(norm=False)
    balancer = make_balancer(model)
    balancer.zero_grad()
    balancer.backward(model(inputs))
    alone = written(model)
    balancer.zero_grad()
    extra = gradients_of(model, model.trunk[0].weight.square().sum())["trunk.0.weight"]
    model.trunk[0].weight.square().sum().backward()
    balancer.backward(model(inputs))
    torch.testing.assert_close(model.trunk[0].weight.grad, alone["trunk.0.weight"] + extra)
    # Between micro-batches as well: nobody's gradient gets lost.
    model.trunk[0].weight.square().sum().backward()
    balancer.backward(model(inputs))
    expected = 2 * (alone["trunk.0.weight"] + extra)
    torch.testing.assert_close(model.trunk[0].weight.grad, expected)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_clearing_through_the_model_is_enough(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor, set_to_none: bool
) -> None:
    model = make_model(norm=False)
    balancer = make_balancer(model)
    balancer.backward(model(inputs))
    once = written(model)
    model.zero_grad(set_to_none=set_to_none)
    balancer.backward(model(inputs))
    for name, gradient in written(model).items():
        torch.testing.assert_close(gradient, once[name])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_steps_are_apart_without_clearing_through_the_balancer(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor, set_to_none: bool
) -> None:
    model = make_model()
    balancer = make_balancer(model, free_steps=1, balance_steps=1)
    kinds = []
    for _ in range(4):
        model.zero_grad(set_to_none=set_to_none)
        balancer.backward(model(inputs))
        under_way = balancer.last_record
        assert under_way is None
        balancer.step()
        assert balancer.last_record is not None
        kinds.append(balancer.last_record.balanced)
    assert kinds == [False, True, False, True]


def test_a_step_given_up_is_forgotten(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    balancer.backward({task: loss * float("nan") for task, loss in model(inputs).items()})
    balancer.zero_grad(set_to_none=False)
    balancer.backward(model(inputs))
    balancer.step()
    assert balancer.steps_taken == 1


def test_the_graph_is_freed(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    for _ in range(2):  # the first with the self-check
        losses = model(inputs)
        balancer.backward(losses)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            losses["detection"].backward()


def test_gradients_lie_in_memory_as_their_parameters_do(make_balancer: MakeBalancer) -> None:
    torch.manual_seed(0)
    trunk = nn.Conv2d(3, 4, 3)
    trunk.weight.data = trunk.weight.data.contiguous(memory_format=torch.channels_last)
    heads = nn.ModuleList([nn.Conv2d(4, 1, 1), nn.Conv2d(4, 1, 1)])
    model = nn.ModuleDict({"trunk": trunk, "heads": heads})
    balancer = make_balancer(model)
    z = trunk(torch.randn(2, 3, 8, 8))
    balancer.backward({"a": heads[0](z).mean(), "b": heads[1](z).square().mean()})
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()


def test_gradient_checkpointing(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model, other = make_model(norm=False), make_model(norm=False)
    ours, theirs = make_balancer(model), make_balancer(other)
    trunk = other.trunk.forward
    other.trunk.forward = lambda x: checkpoint(trunk, x, use_reentrant=False)
    for _ in range(2):
        for each, balancer in ((model, ours), (other, theirs)):
            balancer.zero_grad()
            balancer.backward(each(inputs))
            balancer.step()
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0.0)


class Half(Balancer):
    """Halves every shared gradient, so that it shows what was weighed."""

    def weigh(self, gramian: Tensor) -> Tensor:
        return torch.full((len(gramian),), 0.5, dtype=torch.float64)


def test_shared_patterns_leave_the_rest_of_the_trunk_alone(
    make_model: MakeModel, inputs: Tensor
) -> None:
    model = make_model()
    plain = gradients_of(model, sum(model(inputs).values()))
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        method=Half(),
        free_steps=0,
        balance_steps=1,
        shared=["trunk.3"],
        named_parameters=model.named_parameters(),
    )
    balancer.backward(model(inputs))
    for name, gradient in written(model).items():
        factor = 0.5 if name.startswith("trunk.3.") else 1.0
        torch.testing.assert_close(gradient, factor * plain[name])
    assert balancer.shared_names == ("trunk.3.weight", "trunk.3.bias")


def test_parameters_of_another_optimizer_get_their_ordinary_gradient(
    make_model: MakeModel, inputs: Tensor
) -> None:
    model = make_model()
    plain = gradients_of(model, sum(model(inputs).values()))
    sgd = torch.optim.SGD(model.trunk[3].parameters(), lr=0.1)
    balancer = GradientBalancer(sgd, method=Half(), free_steps=0, balance_steps=1)
    balancer.backward(model(inputs))
    for name, gradient in written(model).items():
        factor = 0.5 if name.startswith("trunk.3.") else 1.0
        torch.testing.assert_close(gradient, factor * plain[name])
    assert len(balancer.shared_names) == 2


@pytest.fixture
def unrepeatable() -> Callable[[nn.Module], None]:
    """Put an operator into a trunk that answers each backward pass differently."""
    Unrepeatable.passes = 0

    def put(model: nn.Module) -> None:
        insert_after(model.get_submodule("trunk.3"), Unrepeatable)

    return put


def test_self_check_stops_a_model_with_an_unrepeatable_backward(
    make_model: MakeModel,
    make_balancer: MakeBalancer,
    inputs: Tensor,
    unrepeatable: Callable[[nn.Module], None],
) -> None:
    model = make_model()
    unrepeatable(model)
    with pytest.raises(UserError, match="detection, prediction do not sum to the gradient"):
        make_balancer(model).backward(model(inputs))


def test_a_task_that_shares_nothing_stops_the_first_step(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model, free_steps=2000, balance_steps=1000)
    lonely = torch.ones(3, requires_grad=True)
    with pytest.raises(UserError, match="'lonely' shares no trained parameter"):
        balancer.backward({**model(inputs), "lonely": lonely.sum()})


def test_the_self_check_waits_for_numbers(
    make_model: MakeModel,
    make_balancer: MakeBalancer,
    inputs: Tensor,
    unrepeatable: Callable[[nn.Module], None],
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    balancer.backward({task: loss * float("nan") for task, loss in model(inputs).items()})
    balancer.zero_grad()
    unrepeatable(model)
    with pytest.raises(UserError, match="do not sum"):
        balancer.backward(model(inputs))


def test_losses_that_make_no_sense_are_refused(
    make_model: MakeModel, make_balancer: MakeBalancer, inputs: Tensor
) -> None:
    model = make_model()
    balancer = make_balancer(model)
    with pytest.raises(ValueError, match="`losses` should name at least one loss"):
        balancer.backward({})
    with pytest.raises(ValueError, match=r"Found \(16, 6\) for 'a'"):
        balancer.backward({"a": inputs})
    with pytest.raises(ValueError, match="Found float for 'a'"):
        balancer.backward({"a": 1.0})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="None of the losses a depends on a parameter"):
        balancer.backward({"a": torch.zeros(())})
