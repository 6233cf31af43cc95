"""A small two-task network for balanced training, and data for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PULL = 2.0
"""How hard the two tasks pull the feature in opposite directions, on top of what they want."""


class TinyTasks(nn.Module):
    """Encoder, trunk and a head a task; ``extra`` is a part of the trunk that a batch may skip.

    Attributes:
        feature: What both heads read, from the last forward pass.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.extra = nn.Linear(8, 8)
        self.detection_head = nn.Linear(8, 3)
        self.prediction_head = nn.Linear(8, 2)
        self.feature = torch.empty(0)
        self.to(dtype)

    def forward(self, x: Tensor, *, extra: bool = True) -> dict[str, Tensor]:
        encoded = self.encoder(x)
        if extra:
            encoded = encoded + self.extra(encoded).tanh()
        z = self.feature = self.trunk(encoded)
        detection, prediction = self.detection_head(z), self.prediction_head(z) + z[:, :2]
        # Two means, so that the feature is where the paths meet, and not some way behind it.
        low, high = (PULL * z.to(x.dtype).mean() for _ in range(2))
        return {
            "detection": (detection.to(x.dtype) - 1.0).square().mean() + low,
            "prediction": prediction.to(x.dtype).abs().mean() - high,
        }


def made_inputs(seed: int = 3, rows: int = 24, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (rows, 6)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, dtype=torch.float64, generator=generator).to(dtype)
