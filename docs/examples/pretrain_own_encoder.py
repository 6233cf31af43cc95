"""Masked pretraining around an encoder of one's own, on clouds without labels.

    python docs/examples/pretrain_own_encoder.py [STEPS]

The encoder knows nothing of this package: it takes a batch and returns one BEV map per sample. What
is learnt stays in the encoder, which is saved as any module is.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from turbotrain_plugin import MaskedPretrainer
from turbotrain_plugin.config import MaskConfig, PretrainConfig
from turbotrain_plugin.data import cloud_batch
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import Batch

# 16 x 16 m around the sensor, voxels of 0.4 m, BEV cells of 0.8 m (2 voxels).
GRID = BevGrid(range_m=(-8, -8, -3, 8, 8, 1), voxel_m=(0.4, 0.4, 0.4), stride=2)


class HeightMapEncoder(nn.Module):
    """Counts points at every height of a voxel column and convolves: an encoder as any other."""

    head_channels = 32  # C of what forward returns

    def __init__(self) -> None:
        super().__init__()
        self.width, self.height, self.levels = GRID.voxel_counts
        self.layers = nn.Sequential(
            nn.Conv2d(self.levels, 32, 3, stride=GRID.stride, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, self.head_channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return (B, 32, H, W) from the voxels of a batch; hidden ones are not among them."""
        voxels = batch.voxels
        image, z, y, x = voxels.coordinates.long().unbind(1)
        counts = torch.zeros(voxels.map_count, self.levels, self.height, self.width)
        counts[image, z, y, x] = voxels.point_counts.float()
        maps: Tensor = self.layers(counts)
        return maps


def made_cloud(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (P, 3) ground with a wall and a box, somewhere."""
    ground = np.column_stack([rng.uniform(-8, 8, (1500, 2)), rng.normal(-1.8, 0.02, 1500)])
    wall = np.column_stack(
        [rng.uniform(-8, 8, 400), np.full(400, rng.uniform(3, 7)), rng.uniform(-1.8, 0.8, 400)]
    )
    box = rng.uniform((-2, -1, -1.8), (2, 1, -0.3), (300, 3))
    box[:, :2] += rng.uniform(-4, 0, 2)
    return np.concatenate([ground, wall, box])


def pretrain(steps: int) -> tuple[nn.Module, list[float]]:
    """Return the pretrained encoder and the loss of every step."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    encoder = HeightMapEncoder()
    # `drop` takes hidden voxels away; a learned token in their place needs a TokenModule.
    config = PretrainConfig(mask=MaskConfig(ratio=0.7, mode="drop"))
    pretrainer = MaskedPretrainer(encoder, GRID, config)
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=2e-3, weight_decay=1e-2)
    history = []
    for step in range(steps):
        batch = cloud_batch([[made_cloud(rng)] for _ in range(4)], GRID)
        losses, _ = pretrainer(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.autograd.backward(losses.total())
        optimizer.step()
        history.append(float(losses.total().detach()))
    return encoder, history


if __name__ == "__main__":
    trained, values = pretrain(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    torch.save(trained.state_dict(), "encoder.pth")  # mask token and heads stay behind
    sys.stdout.write(f"loss {values[0]:.3f} -> {values[-1]:.3f}; encoder.pth\n")
