"""Frames of the OPV2V layout as batches of intermediate fusion; clouds are made up from boxes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opencood.data_utils.datasets.basedataset import BaseDataset, matrix_of
from opencood.hypes_yaml.yaml_utils import load_yaml

MOST_AGENTS = 3
POINTS = 5


class IntermediateFusionDataset:
    def __init__(self, params: dict[str, Any], visualize: bool, train: bool = True) -> None:
        del visualize
        self.params = params
        self.train = train
        root = Path(params["root_dir"] if train else params["validate_dir"])
        self.frames = [
            [path.parents[1] / agent.name / path.name for agent in sorted(scene.iterdir())]
            for scene in sorted(root.iterdir())
            for path in sorted((sorted(scene.iterdir())[0]).glob("*.yaml"))
        ]
        self.range = np.asarray(params["preprocess"]["cav_lidar_range"], dtype=np.float64)
        self.cell = float(params["preprocess"]["args"]["voxel_size"][0])
        self.width, self.height = params["model"]["args"]["grid_size"]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        files = self.frames[index][:MOST_AGENTS]
        labels = [load_yaml(str(file)) for file in files]
        truth = np.asarray([[*v["location"], *v["extent"]] for v in labels[0]["vehicles"].values()])
        if self.train and random.random() < 0.5:
            truth[:, 1] *= -1.0
        clouds = [self._cloud(truth) for _ in files]
        return {"ego": {"clouds": clouds, "truth": truth}}

    def _cloud(self, truth: Any) -> Any:
        around = np.random.normal(0.0, 0.7, (len(truth), 8, 3)) + truth[:, None, :3]
        clutter = np.random.uniform(self.range[:3], self.range[3:], (20, 3))
        points = np.concatenate([around.reshape(-1, 3), clutter])
        inside = ((points > self.range[:3]) & (points < self.range[3:])).all(1)
        return points[inside]

    def _voxels(self, clouds: list[Any]) -> dict[str, Tensor]:
        features, coords, counts = [], [], []
        for agent, cloud in enumerate(clouds):
            cells = np.floor((cloud[:, :2] - self.range[:2]) / self.cell).astype(np.int64)
            for x, y in sorted(set(map(tuple, cells.tolist()))):
                own = cloud[(cells == (x, y)).all(1)][:POINTS]
                voxel = np.zeros((POINTS, 4), dtype=np.float32)
                voxel[: len(own), :3] = own
                features.append(voxel)
                coords.append([agent, 0, y, x])
                counts.append(len(own))
        return {
            "voxel_features": torch.from_numpy(np.stack(features)),
            "voxel_coords": torch.tensor(coords, dtype=torch.int32),
            "voxel_num_points": torch.tensor(counts, dtype=torch.int32),
        }

    def _labels(self, truth: Any) -> dict[str, Any]:
        positive = np.zeros((self.height, self.width, 2))
        targets = np.zeros((self.height, self.width, 14))
        for x, y, z, half_l, half_w, half_h in truth:
            column = int((x - self.range[0]) // self.cell)
            row = int((y - self.range[1]) // self.cell)
            if 0 <= column < self.width and 0 <= row < self.height:
                positive[row, column, 0] = 1.0
                centre = self.range[:2] + (np.array([column, row]) + 0.5) * self.cell
                sizes = np.log([half_h, half_w, half_l])
                targets[row, column, :7] = [x - centre[0], y - centre[1], z, *sizes, 0.0]
        return {"pos_equal_one": positive, "neg_equal_one": 1.0 - positive, "targets": targets}

    def collate_batch_train(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        samples = [entry["ego"] for entry in batch]
        labels = [self._labels(sample["truth"]) for sample in samples]
        return {
            "ego": {
                "processed_lidar": self._voxels([c for s in samples for c in s["clouds"]]),
                "record_len": torch.tensor([len(sample["clouds"]) for sample in samples]),
                "label_dict": {
                    name: torch.from_numpy(np.stack([label[name] for label in labels]))
                    for name in labels[0]
                },
                "object_bbx_mask": torch.tensor([[1.0] * len(s["truth"]) for s in samples[:1]]),
                "truth": torch.from_numpy(samples[0]["truth"]),
            }
        }

    def collate_batch_test(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        return self.collate_batch_train(batch)

    def post_process(
        self, data: dict[str, Any], output: dict[str, Any]
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        truth = data["ego"]["truth"]
        yaws = torch.zeros(len(truth))
        truth_corners = corners(truth[:, :3], truth[:, 3:].flip(1) * 2.0, yaws)
        heads = output["ego"]
        score = heads["psm"][0, 0].sigmoid()
        rows, columns = torch.nonzero(score > 0.2, as_tuple=True)
        if not len(rows):
            return None, None, truth_corners
        best = score[rows, columns].argsort(descending=True)[:20]
        rows, columns = rows[best], columns[best]
        code = heads["rm"][0, :7][:, rows, columns].T
        low = torch.from_numpy(self.range[:2]).float()
        cells = torch.stack([columns, rows], dim=1)
        centre = torch.cat([code[:, :2] + low + (cells + 0.5) * self.cell, code[:, 2:3]], dim=1)
        boxes = corners(centre, code[:, 3:6].exp() * 2.0, code[:, 6])
        return boxes, score[rows, columns], truth_corners


def corners(centre: Tensor, hwl: Tensor, yaw: Tensor) -> Tensor:
    signs = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    flat = hwl[:, [2, 1]][:, None].float() * signs / 2.0
    turned = torch.stack(
        [
            flat[..., 0] * yaw.cos()[:, None] - flat[..., 1] * yaw.sin()[:, None],
            flat[..., 0] * yaw.sin()[:, None] + flat[..., 1] * yaw.cos()[:, None],
        ],
        dim=-1,
    )
    low, high = (
        torch.cat([turned, (side * hwl[:, :1] / 2.0)[:, None].expand(-1, 4, -1)], dim=-1)
        for side in (-1.0, 1.0)
    )
    return torch.cat([low, high], dim=1).float() + centre[:, None].float()


class CloudFusionDataset(BaseDataset, IntermediateFusionDataset):
    """Clouds as they were recorded, moved to the ego; objects of all agents."""

    def __init__(self, params: dict[str, Any], visualize: bool, train: bool = True) -> None:
        BaseDataset.__init__(self, params, visualize, train)
        self.range = np.asarray(params["preprocess"]["cav_lidar_range"], dtype=np.float64)
        self.cell = float(params["preprocess"]["args"]["voxel_size"][0])
        self.width, self.height = params["model"]["args"]["grid_size"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        agents = self.retrieve_base_data(index, cur_ego_pose_flag=True)
        leading, first = next(iter(agents.items()))
        assert first["ego"], leading
        ego_from_world = np.linalg.inv(matrix_of(first["params"]["lidar_pose"]))
        clouds, truth = [], {}
        for agent in agents.values():
            ego_from_agent = agent["params"]["transformation_matrix"]
            points = agent["lidar_np"][:, :3] @ ego_from_agent[:3, :3].T + ego_from_agent[:3, 3]
            low, high = self.range[:3], self.range[3:] - 1e-6
            clouds.append(points[((points > low) & (points < high)).all(1)])
            for number, item in agent["params"]["vehicles"].items():
                centre = np.add(item["location"], item["center"])
                place = ego_from_world[:3, :3] @ centre + ego_from_world[:3, 3]
                truth.setdefault(number, [*place, *item["extent"]])
        return {"ego": {"clouds": clouds, "truth": np.asarray(list(truth.values()))}}

    def __len__(self) -> int:
        return BaseDataset.__len__(self)


class OnlineFusionDataset(CloudFusionDataset):
    """Stands for the data sets of live simulations."""


__all__ = {
    "IntermediateFusionDataset": IntermediateFusionDataset,
    "CloudFusionDataset": CloudFusionDataset,
    "OnlineFusionDataset": OnlineFusionDataset,
}


def build_dataset(
    hypes: dict[str, Any], visualize: bool = False, train: bool = True
) -> IntermediateFusionDataset:
    name = hypes["fusion"]["core_method"]
    assert name in ("IntermediateFusionDataset", "CloudFusionDataset")
    return __all__[name](params=hypes, visualize=visualize, train=train)
