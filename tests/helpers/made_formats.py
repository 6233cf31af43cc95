"""Made scenes as OPV2V and V2V4Real files, without the package's geometry, readers or writers.

Label files of V2V4Real come from PyYAML's full dumper, as the real ones do; clouds are ascii.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tests.helpers.made_scenes import (
    MadeAgent,
    MadeScene,
    lidar_points,
    visible_objects,
    world_box,
    world_SE3_lidar,
)

OPV2V_SCENE = "2021_08_16_22_26_54"
REAL_SCENE = "testoutput_CAV_data_2022-03-15-09-54-40_1"


def ascii_pcd(points: NDArray[np.float32]) -> str:
    """(P, 4) as an ascii cloud; the intensity is the red channel."""
    red = np.rint(points[:, 3] * 255).astype(np.uint32)
    colour = (red << 16).view(np.float32)
    rows = [
        f"{x:.9g} {y:.9g} {z:.9g} {c:.9g}"
        for (x, y, z), c in zip(points[:, :3], colour, strict=True)
    ]
    head = [
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        "FIELDS x y z rgb",
        "SIZE 4 4 4 4",
        "TYPE F F F F",
        "COUNT 1 1 1 1",
        f"WIDTH {len(rows)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(rows)}",
        "DATA ascii",
    ]
    return "\n".join([*head, *rows]) + "\n"


def write_opv2v(
    split_folder: Path, scene: MadeScene, *, first_stem: int = 68, step: int = 2
) -> Path:
    """Write a scene left-handed, as CARLA has it, numbered by ticks; return its folder."""
    for agent in scene.agents:
        folder = split_folder / scene.name / str(agent.agent_id)
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(scene.frames):
            stem = f"{first_stem + step * frame:06d}"
            if frame not in agent.without_labels:
                text = yaml.safe_dump(opv2v_labels(scene, agent, frame))
                (folder / f"{stem}.yaml").write_text(text)
            if frame not in agent.without_cloud:
                points = lidar_points(scene, agent, frame)
                points[:, 1] = -points[:, 1]
                (folder / f"{stem}.pcd").write_text(ascii_pcd(points))
    (split_folder / scene.name / "data_protocol.yaml").write_text("world: {}\n")
    return split_folder / scene.name


def opv2v_labels(scene: MadeScene, agent: MadeAgent, frame: int) -> dict[str, object]:
    """The content of a label file: y to the right, angles clockwise seen from above."""
    x, y, z = map(float, world_SE3_lidar(agent, frame)[:3, 3])
    pose = [x, -y, z, -agent.roll_deg, -agent.yaw_deg, agent.pitch_deg]
    vehicles = {}
    for made in visible_objects(scene, agent.agent_id, frame):
        box = world_box(made, frame).tolist()
        half = [size / 2 for size in box[3:6]]
        vehicles[made.object_id] = {
            "angle": [0.0, -made.yaw_deg, 0.0],
            "center": [0.0, 0.0, half[2]],
            "extent": half,
            "location": [box[0], -box[1], box[2] - half[2]],
            "speed": 0.0,
        }
    return {
        "camera0": {"cords": pose, "extrinsic": np.eye(4).tolist()},
        "ego_speed": 20.0,
        "lidar_pose": pose,
        "plan_trajectory": [[x, -y]],
        "predicted_ego_pos": pose,
        "true_ego_pos": pose,
        "vehicles": vehicles,
    }


def write_v2v4real(split_folder: Path, scene: MadeScene) -> Path:
    """Write a scene with poses as NumPy matrices and boxes in LiDAR frames."""
    for agent in scene.agents:
        folder = split_folder / scene.name / str(agent.agent_id)
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(scene.frames):
            text = yaml.dump(v2v4real_labels(scene, agent, frame))
            (folder / f"{frame:06d}.yaml").write_text(text)
            cloud = ascii_pcd(lidar_points(scene, agent, frame))
            (folder / f"{frame:06d}.pcd").write_text(cloud)
    return split_folder / scene.name


def v2v4real_labels(scene: MadeScene, agent: MadeAgent, frame: int) -> dict[str, object]:
    """The content of a label file, NumPy values included."""
    pose = world_SE3_lidar(agent, frame)
    turn = pose[:3, :3]
    vehicles = {}
    for made in visible_objects(scene, agent.agent_id, frame):
        box = world_box(made, frame)
        own = Rotation.from_matrix(turn.T) * Rotation.from_euler("z", box[6])
        # R = Rz(yaw) Ry(-pitch) Rx(-roll): the intrinsic z-y-x angles are yaw, -pitch, -roll.
        yaw, minus_pitch, minus_roll = own.as_euler("ZYX", degrees=True).tolist()
        vehicles[made.object_id] = {
            "angle": [-minus_roll, yaw, -minus_pitch],
            "ass_id": made.object_id,
            "center": [0.0, 0.0, 0.0],
            "extent": (box[3:6] / 2).tolist(),
            "location": (turn.T @ (box[:3] - pose[:3, 3])).tolist(),
            "obj_type": made.raw_type,
        }
    return {
        "ego_speed": 0,
        "gps": [np.float64(value) for value in (40.1, -83.0, 250.0, 1.0, 0.01, 0.02)],
        "lidar_pose": pose,
        "true_ego_pos": pose,
        "vehicles": vehicles,
    }
