"""Evaluation of late fusion on a made scene: what only a neighbour sees is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import CooperativeDataset
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.validation import Evaluated, evaluate_network, raw_key
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import MapTokens, Predictions, Voxels

HIDDEN = 14
"""The object that is in the cloud and the labels of roadside unit -1 only."""
LOWEST_M = -1.5
"""In the ego's frame: 0.4 m above the ground."""


class PointCounter(CooperativeNetwork):
    """Detects a car wherever an agent has points above the ground; learns nothing."""

    def encode(self, voxels: Voxels, voxel_features: Tensor | None = None) -> Tensor:  # noqa: ARG002
        slots = torch.arange(voxels.points.shape[1]) < voxels.point_counts[:, None]
        high = ((voxels.points[..., 2] > LOWEST_M) & slots).any(1).float()
        maps = torch.zeros(voxels.map_count, 16, self.grid.height, self.grid.width)
        index, _, row, column = voxels.coordinates.long().unbind(1)
        maps[index, 0, row, column] = high
        return maps

    def fuse_time(self, features: Tensor, frame_valid: Tensor) -> Tensor:
        current: Tensor = features.unflatten(0, frame_valid.shape)[:, -1]
        return current

    def heads(self, features: Tensor, map_tokens: MapTokens | None) -> Predictions:
        assert map_tokens is not None
        assert len(map_tokens.nearest) == len(features)
        logits = torch.full((*features[:, 0].shape, 2), -9.0)
        logits[..., 1] += 12 * features[:, 0]
        cells = logits.shape
        trajectories = torch.zeros(*cells, 2, 2) + torch.tensor([[0.0, 3.0], [0.0, 6.0]])
        return Predictions(logits, torch.zeros(*cells, 7), trajectories)


def config_for(folder: Path, fusion: str) -> RunConfig:
    keys = [
        f"model.args.fusion.core_method={fusion}",
        "model.args.neck.position=pre_temporal",
        "model.args.encoder.pillar_blocks=[1]",
        "model.args.map.stride=4",
        "postprocess.anchor_args.feature_stride=1",
        "train_params.max_cav=4",
        "preprocess.args.max_points_per_voxel=32",
        "preprocess.args.max_voxel_test=2000",
    ]
    return tiny_config(folder, keys)


def evaluated(config: RunConfig) -> tuple[Evaluated, CooperativeDataset]:
    data = build_dataset(config, "test", "evaluate")
    network = build_network(config, data)
    network.__class__ = PointCounter
    return evaluate_network(network, data, config, draw=1), data


def nearest_m(seen: Evaluated, data: CooperativeDataset) -> tuple[float, float]:
    """Return how far the hidden object is from a detection, now and in half a second."""
    ((index, objects),) = seen.drawn.items()
    truth = data.sample(raw_key(index)).truth
    assert truth is not None
    row = truth.object_ids.tolist().index(HIDDEN)
    distance = np.linalg.norm(objects.boxes[:, :2] - truth.boxes[row, :2], axis=1)
    assert objects.trajectories is not None
    at = int(distance.argmin())
    assert truth.future_valid[row, 0]
    later = np.linalg.norm(objects.trajectories[at, 0] - truth.futures[row, 0])
    return float(distance[at]), float(later)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("late")


def test_late_fusion_finds_what_only_a_neighbour_sees(folder: Path) -> None:
    config = config_for(folder, "late")
    late, data = evaluated(config)
    args = config.model.args
    without = replace(args, fusion=replace(args.fusion, core_method="no_fusion"))
    alone, _ = evaluated(replace(config, model=replace(config.model, args=without)))
    assert nearest_m(alone, data)[0] > 4
    now, later = nearest_m(late, data)
    assert now < 2
    assert later < 2
    found, missed = late.result.to_json()["prediction"], alone.result.to_json()["prediction"]
    assert found["n_matched"] > missed["n_matched"]
    assert alone.message_bytes == 0
    assert 0 < late.message_bytes < 12 * 4 * 100
    assert late.message_bytes % ((8 + 2 * 2) * 4) == 0
