"""A whole run that takes seconds: hand-made scenes, a 16 x 16 grid, 16 channels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.helpers.made_scenes import junction_scene, write_root
from turbotrain_plugin.config import RunConfig, find_hypes, load_hypes

HYPES = """
name: tiny
seed: 3
root_dir: {root}
validate_dir: {root}
test_dir: {root}
train_params: {{batch_size: 2, epoches: 2, max_cav: 3}}
preprocess:
  args:
    {{voxel_size: [2, 2, 8], max_points_per_voxel: 4, max_voxel_train: 200, max_voxel_test: 200}}
  cav_lidar_range: [-32, -32, -5, 32, 32, 3]
data_augment:
  - {{NAME: random_world_flip, ALONG_AXIS_LIST: [x]}}
  - {{NAME: random_world_rotation, WORLD_ROT_ANGLE: [-0.7, 0.7]}}
postprocess:
  anchor_args: {{feature_stride: 2}}
model:
  args:
    channels: 16
    encoder: {{core_method: pillars, pillar_channels: 8, pillar_blocks: [1, 1]}}
    neck: {{position: post_fusion, layers: [1, 1], filters: [8, 8], upsample_filters: [8, 8]}}
    temporal: {{heads: 2, ffn: 16}}
    fusion: {{windows: [4, 8], window_heads: [2, 2], heads: 2, ffn: 16}}
    map: {{stride: 4, heads: 2, ffn: 16}}
optimizer: {{core_method: Adam, lr: 2e-3, clip_norm: 10}}
lr_scheduler: {{core_method: cosine}}
turbotrain:
  data: {{hist_frames: 3, future_steps: 2, sample_stride: 2, num_workers: 0}}
  pretrain: {{epoches: 2, batch_size: 2}}
  balance: {{free_steps: 2, balance_steps: 2}}
  evaluation: {{pictures: 1}}
  logging: {{log_dir: {logs}, save_steps: 1, tensorboard: false}}
  threads: 1
"""


def write_hypes(folder: Path) -> Path:
    """Write scenes and a hypes file under ``folder`` and return the file."""
    root = write_root(
        folder / "data",
        {
            "train": [junction_scene("2023-03-17-15-53-02_1_0", frames=22)],
            "val": [junction_scene("2023-03-17-15-53-02_2_0", frames=14)],
            "test": [junction_scene("2023-03-17-15-53-02_3_0", frames=14)],
        },
    )
    file = folder / "tiny.yaml"
    file.write_text(HYPES.format(root=root, logs=folder / "logs"), encoding="utf-8")
    return file


SHRUNK = """
root_dir: {root}
validate_dir: {root}
test_dir: {root}
train_params: {{batch_size: 1, epoches: 1, max_cav: 3, eval_freq: 0, save_freq: 0}}
preprocess:
  args: {{voxel_size: {voxel}, max_points_per_voxel: 4, max_voxel_train: 400, max_voxel_test: 400}}
  cav_lidar_range: [-32, -32, -5, 32, 32, 3]
postprocess:
  anchor_args: {{feature_stride: {stride}}}
model:
  args:
    channels: 16
    encoder: {{pillar_channels: 8, pillar_blocks: [1, 1], widths: [4, 4, 8, 8]}}
    neck: {{layers: [1, 1], filters: [8, 8], upsample_filters: [8, 8], out_channels: 0}}
    temporal: {{heads: 2, ffn: 32}}
    fusion: {{windows: [4, 8], window_heads: [2, 2], heads: 2, ffn: 16}}
    map: {{stride: 4, heads: 2, ffn: 16}}
    prediction_head: {{hidden: 8}}
turbotrain:
  data: {{sample_stride: 12, num_workers: 0, require_history: false}}
  pretrain: {{epoches: 1, batch_size: 1}}
  balance: {{free_steps: 1, balance_steps: 1}}
  evaluation: {{range: [-32, -32, -5, 32, 32, 3], pictures: 0}}
  logging: {{log_dir: {logs}, save_steps: 0, tensorboard: false}}
  patience: 0
  threads: 1
"""
SHRUNK_SIZES = {"second": ("[0.5, 0.5, 0.2]", 8), "pillars": ("[2, 2, 8]", 2)}
"""Encoder -> voxel and stride: cells of 4 m, 16 x 16 of them."""


def write_shrunk(tiny: Path, name: str) -> Path:
    """Lay sizes that train in a second, and nothing else, over a shipped file.

    Args:
        tiny: What ``write_hypes`` returned, for its scenes; the new file is written beside it.
        name: Bare name of the shipped file.
    """
    shipped = load_hypes(name)
    voxel, stride = SHRUNK_SIZES[shipped.model.args.encoder.core_method]
    folder = tiny.parent
    sizes = folder / f"sizes_{name}"
    sizes.write_text(
        SHRUNK.format(root=folder / "data", logs=folder / "logs", voxel=voxel, stride=stride),
        encoding="utf-8",
    )
    file = folder / f"shrunk_{name}"
    bases = [str(find_hypes(name)), sizes.name]
    file.write_text(yaml.safe_dump({"_base_": bases}), encoding="utf-8")
    return file


def tiny_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a fresh tiny data set in ``folder``."""
    return load_hypes(write_hypes(folder), overrides)


def environment(**extra: str) -> dict[str, str]:
    """Return a child's environment: one thread, no cache of the user's."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: object) -> list[str]:
    """Return the command line of the package in this interpreter."""
    return [sys.executable, "-m", "turbotrain_plugin", *(str(argument) for argument in arguments)]


def run_command(*arguments: object, cwd: Path, timeout: float = 240) -> Any:  # noqa: ANN401
    """Run the package's command line and return the finished process."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without their timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_state(first: Any, second: Any, path: str = "") -> None:  # noqa: ANN401
    """Assert that two checkpoints hold the same values bit for bit, timings left out."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype, path
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key in first:
            if key not in ("seconds", "metrics_bytes"):
                assert_same_state(first[key], second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{path}[{index}]")
    else:
        assert first == second, path
