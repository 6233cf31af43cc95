"""The BEV grid: metres to voxels to cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BevGrid:
    """Voxel grid of a point range and the coarser BEV cells over it.

    Attributes:
        range_m: (x_min, y_min, z_min, x_max, y_max, z_max).
        voxel_m: Voxel size along x, y, z.
        stride: Voxels per BEV cell along x and y (8 for SECOND).
    """

    range_m: tuple[float, float, float, float, float, float]
    voxel_m: tuple[float, float, float]
    stride: int

    def __post_init__(self) -> None:
        """Refuse ranges that are no whole number of voxels or cells."""
        for axis, name in enumerate("xyz"):
            extent = self.range_m[axis + 3] - self.range_m[axis]
            count = extent / self.voxel_m[axis]
            if extent <= 0 or abs(count - round(count)) > 1e-3:
                raise ValueError(
                    f"The {name} range must be a positive whole number of voxels of "
                    f"{self.voxel_m[axis]} m. Found {extent:g} m = {count:g} voxels."
                )
        if self.voxel_counts[0] % self.stride or self.voxel_counts[1] % self.stride:
            raise ValueError(
                f"The voxel counts along x and y must be divisible by the stride {self.stride}. "
                f"Found {self.voxel_counts[0]} x {self.voxel_counts[1]}."
            )

    @property
    def voxel_counts(self) -> tuple[int, int, int]:
        """Number of voxels along x, y, z."""
        low, high = self.range_m[:3], self.range_m[3:]
        x, y, z = (round((b - a) / v) for a, b, v in zip(low, high, self.voxel_m, strict=True))
        return x, y, z

    @property
    def height(self) -> int:
        """Number of BEV cells along y (H)."""
        return self.voxel_counts[1] // self.stride

    @property
    def width(self) -> int:
        """Number of BEV cells along x (W)."""
        return self.voxel_counts[0] // self.stride

    @property
    def cell_m(self) -> tuple[float, float]:
        """Size of a BEV cell along x and y."""
        return self.voxel_m[0] * self.stride, self.voxel_m[1] * self.stride

    def cell_centres(self) -> NDArray[np.float32]:
        """Return (H, W, 2) x, y of the cell centres in metres."""
        cell_x, cell_y = self.cell_m
        x = self.range_m[0] + (np.arange(self.width) + 0.5) * cell_x
        y = self.range_m[1] + (np.arange(self.height) + 0.5) * cell_y
        return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def roi_mask(ego_SE3_agent: Tensor, grid: BevGrid) -> Tensor:
    """Return (N, 1, H, W) bool: the cells of the ego's grid that agents have inside their own.

    A cell counts when its centre, at the height of the ego's sensor, lies inside the agent's x, y
    range after it is moved to the agent's frame. The range need not be symmetric.

    Args:
        ego_SE3_agent: (N, 4, 4) agent LiDAR frame to ego LiDAR frame.
        grid: Grid of the ego, and of every agent.

    Raises:
        ValueError: When ``ego_SE3_agent`` has another shape.
    """
    if ego_SE3_agent.ndim != 3 or ego_SE3_agent.shape[1:] != (4, 4):
        raise ValueError(
            f"`ego_SE3_agent` must have shape (N, 4, 4). Found {tuple(ego_SE3_agent.shape)}."
        )
    # float64, so that every device gives the same mask.
    poses = ego_SE3_agent.detach().double()
    centres = torch.from_numpy(grid.cell_centres()).to(poses)
    flat = torch.nn.functional.pad(centres.reshape(-1, 2), (0, 1))
    # Row vectors: (p - t) R is R^T (p - t), the inverse of a rigid transform.
    in_agent = (flat - poses[:, None, :3, 3]) @ poses[:, :3, :3]
    low, high = poses.new_tensor(grid.range_m[:2]), poses.new_tensor(grid.range_m[3:5])
    inside = ((in_agent[..., :2] >= low) & (in_agent[..., :2] <= high)).all(dim=-1)
    return inside.reshape(-1, 1, grid.height, grid.width)
