"""A training interrupted and taken up again through a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from turbotrain_plugin.balancing import GradientBalancer

Pair = tuple[nn.Module, GradientBalancer]


def resumed(
    model: nn.Module, balancer: GradientBalancer, make: Callable[[], Pair], file: Path
) -> Pair:
    """Save both, make new ones and load them as a checkpoint is loaded."""
    torch.save({"m": model.state_dict(), "o": balancer.state_dict()}, file)
    model, balancer = make()
    loaded = torch.load(file, weights_only=True)
    model.load_state_dict(loaded["m"])
    balancer.load_state_dict(loaded["o"])
    return model, balancer
