"""GradientBalancer with torch.compiled heads; see docs/balancing_compile.md.

    python docs/examples/compiled_heads.py --steps 60 --backend inductor

The backend ``inductor``, torch's default, needs a C++ compiler (or a GPU with Triton).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from turbotrain_plugin import GradientBalancer


class CompiledHeads(nn.Module):
    """A trunk as it is, and heads that are compiled."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.detection = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
        self.prediction = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        self.detection.compile(backend=backend)
        self.prediction.compile(backend=backend)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 4) and (N, 2) for (N, 8)."""
        feature = self.trunk(x)
        return self.detection(feature), self.prediction(feature)


def train(model: CompiledHeads, steps: int) -> GradientBalancer:
    """Train with balanced steps in between."""
    optimizer = GradientBalancer(
        torch.optim.Adam(model.parameters(), lr=2e-3),
        free_steps=20,
        balance_steps=10,
        named_parameters=model.named_parameters(),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        detection, prediction = model(x)
        optimizer.zero_grad()
        optimizer.backward(
            {
                "detection": (detection - x[:, :4].abs()).square().mean(),
                "prediction": (prediction + x[:, 2:4].abs() - x[:, 4:6]).abs().mean(),
            }
        )
        optimizer.step()
    return optimizer


def main() -> None:
    """Train and say what the balancer saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--backend", default="aot_eager", help="aot_eager, eager or inductor")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    balancer = train(CompiledHeads(arguments.backend), arguments.steps)
    print(balancer.describe())
    print("optimiser steps:", balancer.steps_taken)
    print("conflict rate:", balancer.window.conflict_rate)


if __name__ == "__main__":
    main()
