"""Our methods against LibMTL's own code, run in place where ``LIBMTL_ROOT`` names a checkout.

LibMTL adds 1e-8 to a norm or its square; the gradients here are long enough for that not to show at
1e-6, and ours are compared at other scales with the formulas (``test_balancing_published.py``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.balancing_peers import load_libmtl
from tests.helpers.graded_gradients import graded, gramian_of, relative_gap, step_of
from turbotrain_plugin.balancing import GradNorm, MoCo, PCGrad

ROOT = os.environ.get("LIBMTL_ROOT", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="LIBMTL_ROOT is not set")

AGREE = 1e-6


@pytest.fixture(autouse=True)
def _doubles() -> Iterator[None]:
    """LibMTL makes its vectors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Peer:
    """A weighting of LibMTL over one shared parameter whose gradients are given."""

    def __init__(self, name: str, tasks: int, size: int) -> None:
        self.parameter = nn.Parameter(torch.zeros(size))
        self.weighting: Any = load_libmtl(Path(ROOT), name)()
        self.weighting.task_num, self.weighting.rep_grad = tasks, False
        self.weighting.device = torch.device("cpu")
        self.weighting.get_share_params = lambda: iter([self.parameter])
        self.weighting.zero_grad_share_params = self._zero
        self.weighting.init_param()

    def _zero(self) -> None:
        self.parameter.grad = torch.zeros_like(self.parameter)

    def update(self, rows: Tensor, losses: Sequence[float], **args: float) -> Tensor:
        """Return the gradient it leaves for these task gradients and losses."""
        self._zero()
        values = [row @ self.parameter + loss for row, loss in zip(rows, losses, strict=True)]
        self.weighting.backward(torch.stack(values), **args)
        found: Tensor | None = self.parameter.grad
        assert found is not None
        return found.clone()


def long_enough(tasks: int, seed: int) -> Tensor:
    """Return (tasks, 8), the shortest at least 1 long; linearly dependent in every third."""
    rows = graded(tasks, seed, opposed=seed % 2 == 0)
    if seed % 3 == 0:
        rows[-1] = 0.5 * rows[0] - 0.25 * rows[1]
    shortest: Tensor = rows.norm(dim=1).min()
    return rows / shortest


def losses_of(tasks: int, seed: int) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = (torch.rand(tasks, generator=generator) * 3.0 + 0.1).tolist()
    return losses


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_moco(tasks: int) -> None:
    peer, ours = Peer("MoCo", tasks, 8), MoCo()
    for seed in range(20):
        rows, losses = long_enough(tasks, seed), losses_of(tasks, seed)
        expected = peer.update(
            rows, losses,
            MoCo_beta=0.5, MoCo_beta_sigma=0.5, MoCo_gamma=0.1, MoCo_gamma_sigma=0.5, MoCo_rho=0.0,
        )  # fmt: skip
        step = step_of(rows, losses)
        weights = ours.weigh_step(step)
        found = ours.direction(step, weights)
        assert found is not None
        assert relative_gap(torch.cat([found["a"], found["b"]]), expected) < AGREE
        ours.accept(step)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_gradnorm(tasks: int) -> None:
    """LibMTL's loss scales are stepped by the optimiser of the model, here Adam."""
    peer, ours = Peer("GradNorm", tasks, 8), GradNorm(1.5, 0.025, initial_steps=2)
    scales = peer.weighting.loss_scale
    adam = torch.optim.Adam([scales], lr=0.025, eps=0.0)
    initial = losses_of(tasks, 99)
    peer.weighting.epoch = 1
    peer.weighting.train_loss_buffer = torch.tensor(initial).reshape(-1, 1).numpy()
    for _ in range(2):  # the mean of an epoch of two steps
        ours.accept(step_of(long_enough(tasks, 99), initial))
    for seed in range(20):
        rows, losses = long_enough(tasks, seed), losses_of(tasks, seed)
        scales.grad = None
        expected = peer.update(rows, losses, alpha=1.5)
        adam.step()
        step = step_of(rows, losses)
        assert relative_gap(ours.weigh_step(step) @ rows, expected) < AGREE
        ours.accept(step)


def test_pcgrad_of_two_tasks() -> None:
    """The order is random there and of no effect."""
    peer, ours = Peer("PCGrad", 2, 8), PCGrad()
    random.seed(0)
    conflicts = 0
    for seed in range(40):
        rows = long_enough(2, seed)
        weights = ours.weigh(gramian_of(rows))
        assert relative_gap(weights @ rows, peer.update(rows, [1.0, 1.0])) < AGREE
        conflicts += int(bool((weights != 1.0).any()))
    assert conflicts > 10
