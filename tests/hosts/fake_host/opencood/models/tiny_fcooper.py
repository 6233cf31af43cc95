"""Mean of points, scatter, two convolutions, maximum over agents, two heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    def __init__(self, channels: int, grid: list[int], normed: bool) -> None:
        super().__init__()
        self.width, self.height = grid
        self.lift = nn.Linear(4, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if normed else nn.Identity()

    def forward(self, lidar: dict[str, Tensor], agents: int) -> Tensor:
        counts = lidar["voxel_num_points"].clamp(min=1).unsqueeze(1)
        voxels = self.lift(lidar["voxel_features"].sum(1) / counts)
        coords = lidar["voxel_coords"].long()
        canvas = voxels.new_zeros(agents, self.height, self.width, voxels.shape[1])
        canvas[coords[:, 0], coords[:, 2], coords[:, 3]] = voxels
        found: Tensor = torch.relu(self.norm(self.conv(canvas.permute(0, 3, 1, 2))))
        return found


class MaxFusion(nn.Module):
    def forward(self, maps: Tensor, record_len: Tensor) -> Tensor:
        groups = torch.split(maps, record_len.tolist())
        return torch.stack([group.max(0).values for group in groups])


class TinyFCooper(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        channels = args["channels"]
        self.encoder = Encoder(channels, args["grid_size"], args.get("norm", True))
        self.fusion_net = MaxFusion()
        self.dropout = nn.Dropout(args.get("dropout", 0.0))
        self.neck = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_head = nn.Conv2d(channels, 2, 1)
        self.reg_head = nn.Conv2d(channels, 14, 1)

    def forward(self, data_dict: dict[str, Any]) -> dict[str, Tensor]:
        record_len = data_dict["record_len"]
        maps = self.encoder(data_dict["processed_lidar"], int(record_len.sum()))
        fused = self.dropout(torch.relu(self.neck(self.fusion_net(maps, record_len))))
        return {"psm": self.cls_head(fused), "rm": self.reg_head(fused)}
