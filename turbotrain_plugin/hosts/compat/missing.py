"""Modules that a fork imports and does not hold, written anew from the paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from turbotrain_plugin.hosts.compat.base import Shim
from turbotrain_plugin.hosts.compat.packages import supplied

_WIDTHS: Final = (128, 32, 8, 1)
_FOLDER: Final = Path("opencood") / "models" / "fuse_modules"
_MODULE: Final = "opencood.models.fuse_modules.disco_fuse"


class PixelWeightLayer(nn.Module):
    """DiscoNet's score of an agent per cell, g([F_j ; F_0]) (arXiv:2111.00643).

    1x1 convolutions 2C-128-32-8-1, each with batch normalisation and ReLU but the last, which has a
    ReLU alone.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 2 * channels
        for following in _WIDTHS:
            layers.append(nn.Conv2d(width, following, 1))
            if following > 1:
                layers.append(nn.BatchNorm2d(following))
            layers.append(nn.ReLU())
            width = following
        self.layers = nn.Sequential(*layers)

    def forward(self, pairs: Tensor) -> Tensor:
        """Return (N, 1, H, W) scores of (N, 2 C, H, W)."""
        scores: Tensor = self.layers(pairs)
        return scores


def _left_out() -> bool:
    folders = [Path(entry or ".") / _FOLDER for entry in sys.path]
    return any(
        (folder / "fusion_in_one.py").is_file() and not (folder / "disco_fuse.py").is_file()
        for folder in folders
    )


DISCO_FUSE: Final = Shim(
    "missing.disco_fuse",
    "HEAL imports DiscoNet's weight layer from a file that is not in it; ours, from the paper.",
    _left_out,
    lambda: supplied(_MODULE, {"PixelWeightLayer": PixelWeightLayer}),
)
