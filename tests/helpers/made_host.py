"""Frames and a hypes file for the fake host, and a way to be rid of a loaded host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FAKE_HOST = Path(__file__).parents[1] / "hosts" / "fake_host"


def write_frames(root: Path, *, scenes: int, frames: int, seed: int = 0) -> Path:
    """Write ``root/<scene>/<agent>/<timestamp>.yaml``: three cars, two agents."""
    rng = np.random.default_rng(seed)
    for scene in range(scenes):
        for frame in range(frames):
            cars = {
                number: {
                    "location": [*rng.uniform(-10.0, 10.0, 2).round(3).tolist(), 0.0],
                    "center": [0.0, 0.0, 0.0],
                    "angle": [0.0, 0.0, 0.0],
                    "extent": [2.0, 1.0, 0.75],
                }
                for number in range(3)
            }
            for agent in ("1", "2"):
                folder = root / f"scene_{scene}" / agent
                folder.mkdir(parents=True, exist_ok=True)
                content = {"lidar_pose": [0.0] * 6, "ego_speed": 1e-3, "vehicles": cars}
                text = yaml.safe_dump(content)
                (folder / f"{frame:06d}.yaml").write_text(text, encoding="utf-8")
    return root


def host_hypes(data: Path, **changes: object) -> dict[str, Any]:
    """Return the hypes of the fake host's model; ``turbotrain`` is a change like any other."""
    return {
        "name": "tiny",
        "root_dir": str(data / "train"),
        "validate_dir": str(data / "validate"),
        "yaml_parser": "load_grid_params",
        "train_params": {"batch_size": 2, "epoches": 2, "eval_freq": 1, "save_freq": 1},
        "fusion": {"core_method": "IntermediateFusionDataset", "args": []},
        "preprocess": {
            "cav_lidar_range": [-16.0, -16.0, -3.0, 16.0, 16.0, 1.0],
            "args": {"voxel_size": [2.0, 2.0, 4.0]},
        },
        "postprocess": {"core_method": "VoxelPostprocessor"},
        "model": {"core_method": "tiny_fcooper", "args": {"channels": 8, "dropout": 0.1}},
        "loss": {"core_method": "tiny_loss", "args": {"reg": 2.0}},
        "optimizer": {"core_method": "Adam", "lr": 0.01, "args": {"eps": 1e-10}},
        "lr_scheduler": {"core_method": "multistep", "step_size": [1, 2], "gamma": 0.5},
        **changes,
    }


def write_hypes(path: Path, hypes: dict[str, Any]) -> Path:
    """Write a hypes file."""
    path.write_text(yaml.safe_dump(hypes, sort_keys=False), encoding="utf-8")
    return path


def forget_host() -> None:
    """Unload every module of a host, so that another can be loaded."""
    for name in [n for n in sys.modules if n == "opencood" or n.startswith("opencood.")]:
        del sys.modules[name]


def step_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl`` that are steps, without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "loss" in line]
