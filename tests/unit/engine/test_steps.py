"""One optimiser step: what is taken, what is refused, what is added up."""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import make_batch, small_grid
from turbotrain_plugin.balancing import BalanceRecord, GradientBalancer
from turbotrain_plugin.config import BalanceConfig, load_hypes
from turbotrain_plugin.engine.steps import (
    FinetuneLearner,
    PretrainLearner,
    optimiser_step,
    refuse_endless,
    schedule_of,
)
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.structures import Batch, TaskLosses


class Fake:
    """Two losses on one parameter; ``factor`` of a batch scales them."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.module = nn.Module()
        self.module.weight = self.weight
        self.network = cast(CooperativeNetwork, self.module)

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:  # noqa: ARG002
        factor = batch.time_offset_s[0]
        return TaskLosses(
            {"a": factor * self.weight.sum(), "b": (self.weight**2).sum()},
            {"part": factor.detach()},
        )


def fake_batch(factor: float) -> Batch:
    batch = make_batch(grid=small_grid(), record_len=[1], hist_frames=1, seed=0)
    batch.time_offset_s = torch.tensor([factor])
    return batch


def balancer_of(module: nn.Module, **keys: Any) -> GradientBalancer:  # noqa: ANN401
    settings = {"method": "none", "free_steps": 1, "balance_steps": 0, **keys}
    return GradientBalancer(torch.optim.SGD(module.parameters(), lr=0.1), **settings)


def step(learner: Any, batches: list[Batch], balancer: GradientBalancer, **keys: Any) -> Any:  # noqa: ANN401
    settings: dict[str, Any] = {"amp": "off", "clip_norm": 0.0, **keys}
    scaler = settings.pop("scaler", None)
    generator = torch.Generator().manual_seed(0)
    return optimiser_step(learner, batches, balancer, scaler, generator=generator, **settings)


def test_a_step_moves_along_the_sum() -> None:
    learner = Fake()
    result = step(learner, [fake_batch(3.0)], balancer_of(learner.module))
    assert result.taken
    assert result.tasks == {"a": 9.0, "b": 5.0}
    assert result.parts == {"part": 3.0}
    # gradient (3 + 2, 3 + 4), rate 0.1
    assert torch.allclose(learner.weight, torch.tensor([0.5, 1.3]))
    assert result.gradient_norm == pytest.approx(math.hypot(5, 7))


def test_accumulated_batches_count_as_their_mean() -> None:
    one, two = Fake(), Fake()
    step(one, [fake_batch(2.0)], balancer_of(one.module))
    result = step(two, [fake_batch(1.0), fake_batch(3.0)], balancer_of(two.module))
    assert torch.allclose(one.weight, two.weight)
    assert result.tasks["a"] == pytest.approx(6.0)


def test_clipping_limits_the_step_after_combining() -> None:
    learner = Fake()
    result = step(learner, [fake_batch(3.0)], balancer_of(learner.module), clip_norm=1.0)
    moved = torch.tensor([1.0, 2.0]) - learner.weight.detach()
    assert moved.norm() == pytest.approx(0.1, rel=1e-4)
    assert result.gradient_norm == pytest.approx(math.hypot(5, 7))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number_moves_nothing_and_names_the_batch(factor: float) -> None:
    learner = Fake()
    balancer = balancer_of(learner.module)
    before = copy.deepcopy(balancer.state_dict())
    batch = fake_batch(factor)
    result = step(learner, [fake_batch(1.0), batch], balancer)
    assert not result.taken
    scene, frame, ego = batch.keys[0]
    assert result.culprit == f"non-finite loss at {scene}/{frame:06d} (ego {ego})"
    assert learner.weight.tolist() == [1.0, 2.0]
    assert balancer.state_dict() == before
    assert learner.weight.grad is None


def test_a_gradient_that_is_no_number_moves_nothing() -> None:
    learner = Fake()

    class Root(Fake):
        def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:  # noqa: ARG002
            return TaskLosses({"a": (self.weight - self.weight.detach()).sum().sqrt() * 0 + 1})

    learner = Root()
    result = step(learner, [fake_batch(1.0)], balancer_of(learner.module))
    assert not result.taken
    assert "non-finite gradient" in result.culprit
    assert learner.weight.tolist() == [1.0, 2.0]


class Normed(Fake):
    """A batch norm sees what the losses are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.module.norm = self.norm

    def losses(self, batch: Batch, generator: torch.Generator) -> TaskLosses:  # noqa: ARG002
        rows = self.weight * batch.time_offset_s[0] * torch.tensor([[1.0, 2.0], [3.0, 5.0]])
        return TaskLosses({"a": self.norm(rows).square().sum()})


def test_a_refused_step_leaves_running_statistics_alone() -> None:
    """They would be NaN for ever, and nobody would notice before the validation."""
    learner = Normed()
    balancer = balancer_of(learner.module)
    assert step(learner, [fake_batch(1.0)], balancer).taken
    before = copy.deepcopy(learner.module.state_dict())
    assert not step(learner, [fake_batch(1.0), fake_batch(math.inf)], balancer).taken
    after = learner.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


SCHEDULE = {"method": "conflict_suppression", "free_steps": 1, "balance_steps": 1}


@pytest.mark.filterwarnings("ignore::turbotrain_plugin.balancing.ScheduleWarning")
def test_a_loss_scale_changes_no_step_and_an_overflow_skips_one() -> None:
    """The fp16 path: unscale once, clip, step; a skipped step does not count in the schedule."""
    plain, scaled = Fake(), Fake()
    balancers = [balancer_of(learner.module, **SCHEDULE) for learner in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (3.0, -2.0, 1.0):
        step(plain, [fake_batch(factor)], balancers[0], clip_norm=1.0)
        result = step(scaled, [fake_batch(factor)], balancers[1], clip_norm=1.0, scaler=scaler)
        assert result.taken
        assert torch.allclose(plain.weight, scaled.weight, atol=1e-6)
    taken, before = balancers[1].steps_taken, scaled.weight.detach().clone()
    result = step(scaled, [fake_batch(1e37)], balancers[1], scaler=scaler)
    assert not result.taken
    assert result.record is None
    assert "fp16 loss scale now 512" in result.culprit
    assert "ego" in result.culprit
    assert torch.equal(scaled.weight, before)
    assert balancers[1].steps_taken == taken
    assert step(scaled, [fake_batch(1.0)], balancers[1], scaler=scaler).taken


@pytest.mark.filterwarnings("ignore")
def test_a_step_that_the_balancer_refuses_is_not_called_taken() -> None:
    """Finite gradients whose products overflow: the Gramian decides nothing."""
    learner = Fake()
    balancer = balancer_of(
        learner.module, method="conflict_suppression", free_steps=0, balance_steps=1
    )
    record = BalanceRecord(step=0, balanced=True, skipped="the Gramian overflows")

    def refuse(closure: object = None) -> None:  # noqa: ARG001
        balancer.last_record = record

    balancer.step = refuse  # type: ignore[method-assign]
    result = step(learner, [fake_batch(1.0)], balancer)
    assert not result.taken
    assert result.record is None
    assert result.culprit.startswith("the Gramian overflows at ")


def test_a_run_of_bad_steps_ends() -> None:
    refuse_endless(4, 5, "x")
    with pytest.raises(UserError, match="5 steps in a row were not finite"):
        refuse_endless(5, 5, "x")


OVERRIDES = [
    "model.args.channels=16",
    "model.args.encoder={core_method: pillars, pillar_channels: 8, pillar_blocks: [1, 1]}",
    "model.args.neck={position: post_fusion, layers: [1], filters: [8], upsample_filters: [8]}",
    "model.args.temporal={heads: 2, ffn: 16}",
    "model.args.fusion={windows: [4], window_heads: [2], heads: 2, ffn: 16}",
    "model.args.map={stride: 2, heads: 2, ffn: 16}",
]


def tiny_network() -> CooperativeNetwork:
    config = load_hypes("turbotrain_v2xpnp.yaml", OVERRIDES)
    torch.manual_seed(0)
    return build_model(
        config.model.args, small_grid(), hist_frames=3, future_steps=6, anchors_per_cell=2
    )


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_real_learners_learn_a_batch(kind: str, amp: str) -> None:
    config = load_hypes("turbotrain_v2xpnp.yaml", OVERRIDES)
    network = tiny_network()
    learner: Any = (
        PretrainLearner(network, small_grid(), config.turbotrain.pretrain)
        if kind == "pretrain"
        else FinetuneLearner(network, config.loss.args)
    )
    learner.module.train()
    balancer = GradientBalancer(
        torch.optim.Adam(learner.module.parameters(), lr=3e-3),
        method="none",
        free_steps=1,
        balance_steps=0,
    )
    batch = make_batch(grid=small_grid(), record_len=[2, 1], hist_frames=3, seed=1)
    totals = [sum(step(learner, [batch], balancer, amp=amp).tasks.values()) for _ in range(15)]
    assert all(math.isfinite(total) for total in totals)
    assert totals[-1] < 0.9 * totals[0]


def test_bf16_losses_stay_near_fp32() -> None:
    network = tiny_network().eval()
    learner = FinetuneLearner(network, load_hypes("turbotrain_v2xpnp.yaml").loss.args)
    batch = make_batch(grid=small_grid(), record_len=[2], hist_frames=3, seed=2)
    full: dict[str, Tensor] = learner.losses(batch, torch.Generator()).tasks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = learner.losses(batch, torch.Generator()).tasks
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert float(half[name]) == pytest.approx(float(value), rel=0.05)


def test_the_schedule_of_a_stage_follows_its_keys() -> None:
    assert str(schedule_of(BalanceConfig(), 10)) == "2000 free steps, then 1000 balanced"
    by_share = {"unit": "share", "free_share": 0.5, "balance_share": 0.25, "warmup_share": 0.1}
    found = [
        str(schedule_of(BalanceConfig(schedule=name, warmup_steps=7, **keys), 1000))  # type: ignore[arg-type]
        for name in ("hybrid", "after_warmup")
        for keys in ({}, by_share)
    ]
    assert found == [
        "2000 free steps, then 1000 balanced",
        "500 free steps, then 250 balanced",
        "7 free steps, then every step balanced",
        "100 free steps, then every step balanced",
    ]
