"""Reads YAML the way the hosts do, holes included: the tests prove that ours is used instead."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(file: str, opt: Any = None) -> dict[str, Any]:
    del opt
    with open(file) as stream:  # noqa: PTH123
        hypes = yaml.load(stream, Loader=yaml.UnsafeLoader)
    if "yaml_parser" in hypes:
        hypes = eval(hypes["yaml_parser"])(hypes)
    return hypes


def load_grid_params(hypes: dict[str, Any]) -> dict[str, Any]:
    low_x, low_y, _, high_x, high_y, _ = hypes["preprocess"]["cav_lidar_range"]
    cell = hypes["preprocess"]["args"]["voxel_size"][0]
    width, height = round((high_x - low_x) / cell), round((high_y - low_y) / cell)
    hypes["model"]["args"]["grid_size"] = [width, height]
    return hypes
