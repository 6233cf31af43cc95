"""GradientBalancer in a plain PyTorch loop; docs/balancing_plain_loop.md shows it as a diff.

python docs/examples/plain_loop.py --steps 300
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from turbotrain_plugin import GradientBalancer


class TwoTasks(nn.Module):
    """A trunk and two heads that want different things of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.fusion = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
        self.detection = nn.Linear(32, 4)
        self.prediction = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 4) and (N, 2) for (N, 8)."""
        feature = self.fusion(self.encoder(x))
        return self.detection(feature), self.prediction(feature)


def make_batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (N, 8) and what the two tasks should make of them."""
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
    return x, x[:, :4].abs(), -x[:, 2:4].abs() + x[:, 4:6]


def plain(model: TwoTasks, steps: int) -> None:
    """Train by the plain sum of the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        x, boxes, futures = make_batch(step)
        detection, prediction = model(x)
        detection_loss = (detection - boxes).square().mean()
        prediction_loss = (prediction - futures).abs().mean()
        optimizer.zero_grad()
        (detection_loss + prediction_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()


def balanced(model: TwoTasks, steps: int) -> GradientBalancer:
    """Train with balanced steps in between."""
    optimizer = GradientBalancer(
        torch.optim.Adam(model.parameters(), lr=2e-3),
        free_steps=steps // 6,
        balance_steps=steps // 12,
        probe_every=10,
        named_parameters=model.named_parameters(),
    )
    for step in range(steps):
        x, boxes, futures = make_batch(step)
        detection, prediction = model(x)
        detection_loss = (detection - boxes).square().mean()
        prediction_loss = (prediction - futures).abs().mean()
        optimizer.zero_grad()
        optimizer.backward({"detection": detection_loss, "prediction": prediction_loss})
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return optimizer


def main() -> None:
    """Train both ways and say what the balancer saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    plain(TwoTasks(), steps)
    torch.manual_seed(0)
    balancer = balanced(TwoTasks(), steps)
    print(balancer.describe())
    print("balanced steps of this cycle:", balancer.window.steps)
    print("conflict rate, balanced:", balancer.window.conflict_rate)
    print("conflict rate, free:", balancer.probe_window.conflict_rate)


if __name__ == "__main__":
    main()
