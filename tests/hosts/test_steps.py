"""One step of a host's model: gradients against the explicit computation; terms of a loss."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_host import host_hypes
from turbotrain_plugin.balancing import GradientBalancer, HybridSchedule
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.hosts import Host, host_named, randomness
from turbotrain_plugin.hosts.learner import HostLosses, StepKeys, TaskLearner, take_step
from turbotrain_plugin.hosts.randomness import seed_all, seeded_loader
from turbotrain_plugin.hosts.rates import HostRates
from turbotrain_plugin.hosts.session import enter
from turbotrain_plugin.hosts.tasks import chosen_tasks, loss_terms, remembered_items
from turbotrain_plugin.structures import UserError

SEED = 0
KEYS = StepKeys(tasks=(), amp="off", clip_norm=0.0)


def test_balanced_gradients_of_a_host_model_are_the_explicit_ones(
    fake_host: Path, frames: Path
) -> None:
    with enter(host_named("auto", fake_host), fake_host) as session:
        hypes = session.modules.yaml_utils.load_grid_params(host_hypes(frames))
        hypes["model"]["args"]["dropout"] = 0.0
        dataset = session.modules.datasets.build_dataset(hypes, train=True)
        seed_all(SEED)
        model = session.modules.train_utils.create_model(hypes).double()
        learner = TaskLearner(session, hypes, model, dataset)
        ego = dataset.collate_batch_train([dataset[0], dataset[1]])["ego"]
        lidar = ego["processed_lidar"]
        lidar["voxel_features"] = lidar["voxel_features"].double()
        trunk = {n: p for n, p in model.named_parameters() if "head" not in n}
        heads = {n: p for n, p in model.named_parameters() if "head" in n}
        generator = torch.Generator()
        terms = learner.losses(ego, generator).terms
        rows = {
            task: torch.autograd.grad(
                loss, [*trunk.values(), *heads.values()], retain_graph=True, allow_unused=True
            )
            for task, loss in terms.items()
        }
        flat = {
            task: torch.cat([g.flatten() for g in row[: len(trunk)] if g is not None])
            for task, row in rows.items()
        }
        conf, reg = flat["conf_loss"], flat["reg_loss"]
        product = float(conf @ reg)
        optimizer = GradientBalancer(
            torch.optim.SGD(model.parameters(), lr=0.0), schedule=HybridSchedule(0, 1)
        )
        step = take_step(learner, ego, optimizer, None, KEYS, generator)
    assert step.record is not None
    assert step.record.balanced
    weights = step.record.weights
    assert product < 0, "with this seed nothing is decided; choose another"
    assert weights["conf_loss"] == pytest.approx(1.0 - product / float(conf @ conf))
    assert weights["reg_loss"] == pytest.approx(1.0 - product / float(reg @ reg))
    expected = weights["conf_loss"] * conf + weights["reg_loss"] * reg
    found = torch.cat([p.grad.flatten() for p in trunk.values() if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    for index, (name, parameter) in enumerate(heads.items(), start=len(trunk)):
        (own,) = [row[index] for row in rows.values() if row[index] is not None]
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, own, rtol=1e-12, atol=1e-15)


class Learner:
    """One linear layer with a batch norm; the loss is what the test says."""

    def __init__(self, factor: float) -> None:
        self.module: nn.Module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self._factor = factor

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, ego: dict[str, Any], generator: torch.Generator) -> HostLosses:
        del generator
        total = self.module(ego["data"]).square().sum() * self._factor
        return HostLosses(total, {})


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(factor: float) -> None:
    learner = Learner(factor)
    optimizer = torch.optim.Adam(learner.module.parameters())
    before = {name: value.clone() for name, value in learner.module.state_dict().items()}
    step = take_step(learner, {"data": torch.randn(4, 2)}, optimizer, None, KEYS, torch.Generator())
    assert not step.taken
    assert "loss" in step.culprit
    after = learner.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_measuring_the_norm_does_not_change_a_bit_of_the_gradient() -> None:
    learner, data = Learner(1.0), torch.randn(4, 2)
    plain = torch.autograd.grad(
        learner.losses({"data": data}, torch.Generator()).total, list(learner.module.parameters())
    )
    optimizer = torch.optim.SGD(learner.module.parameters(), lr=0.0)
    take_step(learner, {"data": data}, optimizer, None, KEYS, torch.Generator())
    for parameter, gradient in zip(learner.module.parameters(), plain, strict=True):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradient)


# ------------------------------------------------------------------------------------------- terms


def test_floats_remember_their_tensors_only_inside() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    loss = weight * 3
    with remembered_items():
        inside = {"a": loss.item(), "count": torch.tensor(4).item()}
    outside = {"a": loss.item()}
    total = loss + 0
    assert inside["a"] == 6.0
    terms = loss_terms(inside, total)
    assert list(terms) == ["a"]
    assert torch.autograd.grad(terms["a"], weight)[0] == 3.0
    assert loss_terms(outside, total) == {}


def test_the_total_vectors_and_constants_are_no_terms() -> None:
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    total = weight.sum()
    found = loss_terms(
        {
            "sum": total,
            "total_loss": weight[0],
            "map": weight,
            "one": weight[:1],
            "n": total.detach(),
        },
        total,
    )
    assert list(found) == ["one"]
    assert found["one"].shape == ()


def terms_of(*values: float) -> dict[str, Tensor]:
    return {f"t{i}": torch.tensor(v, requires_grad=True) for i, v in enumerate(values)}


@pytest.mark.parametrize(
    ("names", "total", "message"),
    [
        (("t0", "t9"), 3.0, "t9"),
        (("t0",), 1.0, "two tasks"),
        ((), 4.0, "add up to 3, but the host's loss is 4"),
    ],
)
def test_tasks_that_are_not_the_loss_are_refused(
    names: tuple[str, ...], total: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        chosen_tasks(terms_of(1.0, 2.0), torch.tensor(total), names)


def test_named_tasks_come_in_the_order_of_the_file() -> None:
    found = chosen_tasks(terms_of(1.0, 2.0), torch.tensor(3.0), ("t1", "t0"))
    assert list(found) == ["t1", "t0"]


# ------------------------------------------------------------------------------------------- order


class Draws:
    """Five samples that are their index and a random number."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))

    @staticmethod
    def collate_batch_train(batch: list[tuple[int, float]]) -> list[tuple[int, float]]:
        return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_an_epoch_is_the_same_whenever_it_is_asked_for(workers: int) -> None:
    whole = list(seeded_loader(Draws(), 2, 1, 0, 0, 7, "stage"))
    assert len(whole) == 2  # the fifth sample makes no batch
    torch.manual_seed(99)
    assert list(seeded_loader(Draws(), 2, 1, 1, workers, 7, "stage")) == whole[1:]
    assert list(seeded_loader(Draws(), 2, 2, 0, 0, 7, "stage")) != whole
    assert list(seeded_loader(Draws(), 2, 1, 0, 0, 8, "stage")) != whole


class Numbers:
    """Samples that are their index."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index

    @staticmethod
    def collate_batch_train(batch: list[int]) -> list[int]:
        return batch


@pytest.mark.parametrize(("samples", "size", "processes"), [(17, 2, 3), (12, 1, 4), (7, 2, 3)])
def test_processes_share_a_step_as_one_process_would_take_it(
    monkeypatch: pytest.MonkeyPatch, samples: int, size: int, processes: int
) -> None:
    def seen(rank: int, count: int, batch: int, start: int = 0) -> list[list[int]]:
        monkeypatch.setattr(exchange, "rank", lambda: rank)
        monkeypatch.setattr(randomness, "process_count", lambda: count)
        loader = randomness.seeded_loader(Numbers(samples), batch, 1, start, 0, 7, "stage")
        return list(loader)

    one = seen(0, 1, size * processes)
    each = [seen(rank, processes, size) for rank in range(processes)]
    assert {len(found) for found in each} == {samples // (size * processes)}
    together = [sorted(chain.from_iterable(step)) for step in zip(*each, strict=True)]
    assert together == [sorted(step) for step in one]
    assert all(len(batch) == size for found in each for batch in found)
    assert seen(1, processes, size, start=1) == each[1][1:]


# -------------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("method", "kept"), [("multistep", {"last_epoch": 0}), ("cosineannealwarm", {})]
)
def test_a_cosine_keeps_nothing_that_depends_on_the_number_of_processes(
    method: str, kept: dict[str, int]
) -> None:
    """timm's would restore its length in steps; its rate follows from the number of the update."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    hypes = {"lr_scheduler": {"core_method": method}}
    state = HostRates(Host(), scheduler, hypes, 4).state_dict()
    assert {name: state[name] for name in kept} == kept
    assert bool(state) == bool(kept)
    HostRates(Host(), scheduler, hypes, 4).load_state_dict(state)
