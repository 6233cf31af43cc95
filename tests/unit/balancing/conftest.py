"""A small two-task model with a BatchNorm trunk, and inputs for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning


class TwoTasks(nn.Module):
    """Trunk with BatchNorm and one linear head a task; losses that conflict on most batches."""

    def __init__(self, *, norm: bool = True, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(6, 12),
            nn.BatchNorm1d(12) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Linear(12, 8),
            nn.Tanh(),
        )
        self.detection_head = nn.Linear(8, 3)
        self.prediction_head = nn.Linear(8, 2)
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {
            "detection": (self.detection_head(z) - 1.0).square().mean(),
            "prediction": (self.prediction_head(z) + z[:, :2]).abs().mean(),
        }


@pytest.fixture(autouse=True)
def _short_schedules() -> Iterator[None]:
    """Let tests use schedules of a few steps without a warning each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ScheduleWarning)
        yield


@pytest.fixture
def make_model() -> Callable[..., TwoTasks]:
    def make(seed: int = 0, *, norm: bool = True, dtype: torch.dtype = torch.float64) -> TwoTasks:
        torch.manual_seed(seed)
        return TwoTasks(norm=norm, dtype=dtype)

    return make


@pytest.fixture
def make_balancer() -> Callable[..., GradientBalancer]:
    """Wrap SGD; every step balanced unless told otherwise."""

    def make(
        model: nn.Module, *, free_steps: int = 0, balance_steps: int = 1, lr: float = 0.1
    ) -> GradientBalancer:
        return GradientBalancer(
            torch.optim.SGD(model.parameters(), lr=lr),
            free_steps=free_steps,
            balance_steps=balance_steps,
            named_parameters=model.named_parameters(),
        )

    return make


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
