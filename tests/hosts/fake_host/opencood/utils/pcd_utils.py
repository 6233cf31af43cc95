"""Reads clouds."""

from __future__ import annotations

from typing import Any

import numpy as np
import open3d


def pcd_to_np(pcd_file: str) -> Any:
    cloud = open3d.io.read_point_cloud(pcd_file)
    return np.hstack([np.asarray(cloud.points), np.asarray(cloud.colors)[:, :1]]).astype(np.float32)
