"""The contract of the hosts' base data set: files by scene, agent and time; one frame of all.

Every agent must have the ego's files. Messages of the others may be late (``wild_setting``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opencood.hypes_yaml.yaml_utils import load_yaml
from opencood.utils import pcd_utils


class BaseDataset:
    def __init__(self, params: dict[str, Any], visualize: bool, train: bool = True) -> None:
        self.params, self.visualize, self.train = params, visualize, train
        self.max_cav = params["train_params"].get("max_cav", 7)
        self.late_ms = params.get("wild_setting", {}).get("async_overhead", 0)
        self.scenario_database: dict[int, Any] = {}
        self.len_record: list[int] = []
        root = Path(params["root_dir"] if train else params["validate_dir"])
        for number, scene in enumerate(sorted(root.iterdir())):
            names = sorted(path.name for path in scene.iterdir() if path.is_dir())
            names.sort(key=lambda name: name.startswith("-"))
            agents = {name: self._files(scene / name) for name in names[: self.max_cav]}
            frames = len(agents[names[0]])
            for name, files in agents.items():
                files["ego"] = name == names[0]
            self.scenario_database[number] = agents
            self.len_record.append(frames + (self.len_record[-1] if number else 0))

    def _files(self, folder: Path) -> dict[str, Any]:
        return {
            path.stem: {"yaml": str(path), "lidar": str(path.with_suffix(".pcd"))}
            for path in sorted(folder.glob("*.yaml"))
        }

    def __len__(self) -> int:
        return self.len_record[-1]

    def retrieve_base_data(self, idx: int, cur_ego_pose_flag: bool = True) -> dict[str, Any]:
        number = next(n for n, end in enumerate(self.len_record) if idx < end)
        agents = self.scenario_database[number]
        place = idx - (self.len_record[number - 1] if number else 0)
        ego = next(iter(agents.values()))
        stamps = list(ego)
        now = load_yaml(ego[stamps[place]]["yaml"])
        found = {}
        for name, files in agents.items():
            late = 0 if files["ego"] else min(self.late_ms // 100, place)
            then = files[stamps[place - late]]
            params = load_yaml(then["yaml"])
            params["vehicles"] = load_yaml(files[stamps[place]]["yaml"])["vehicles"]
            seen_from = now if cur_ego_pose_flag else load_yaml(ego[stamps[place - late]]["yaml"])
            params["transformation_matrix"] = np.linalg.solve(
                matrix_of(seen_from["lidar_pose"]), matrix_of(params["lidar_pose"])
            )
            found[name] = {
                "ego": files["ego"],
                "time_delay": late,
                "params": params,
                "lidar_np": pcd_utils.pcd_to_np(then["lidar"]),
            }
        return found


def matrix_of(pose: list[float]) -> Any:
    """Return the 4 x 4 matrix of x, y, z, roll, yaw, pitch in degrees, left-handed."""
    roll, yaw, pitch = np.radians(pose[3:])
    about_x = [[1, 0, 0], [0, np.cos(roll), np.sin(roll)], [0, -np.sin(roll), np.cos(roll)]]
    about_y = [[np.cos(pitch), 0, -np.sin(pitch)], [0, 1, 0], [np.sin(pitch), 0, np.cos(pitch)]]
    about_z = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(about_z) @ about_y @ about_x
    matrix[:3, 3] = pose[:3]
    return matrix
