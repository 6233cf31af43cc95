"""Cells an agent can see."""

from __future__ import annotations

import torch
from torch import Tensor

from turbotrain_plugin.geometry.grid import BevGrid


def roi_mask(ego_SE3_agent: Tensor, grid: BevGrid) -> Tensor:
    """Return (N, 1, H, W) bool from (N, 4, 4)."""
    xy = torch.from_numpy(grid.cell_centres()).to(ego_SE3_agent)
    rotation = ego_SE3_agent[:, :2, :2]
    local = torch.einsum("nij,nhwi->nhwj", rotation, xy - ego_SE3_agent[:, None, None, :2, 3])
    low, high = xy.new_tensor(grid.range_m[:2]), xy.new_tensor(grid.range_m[3:5])
    return ((local >= low) & (local <= high)).all(-1).unsqueeze(1)
