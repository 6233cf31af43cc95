"""Tiny V2XPnP-Seq roots written by hand: few agents, few frames, boxes known in closed form.

Nothing here uses the package's geometry or readers, so that tests compare two independent ways.

    scene = junction_scene("2023-01-01-00-00-00_1_0", frames=12)
    root = write_root(tmp_path, {"train": [scene], "test": [...]})
    world_box(scene.objects[0], frame=3)          # (7,) what a reader must return
    world_SE3_lidar(scene.agents[0], frame=3)     # (4, 4)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.vector_map import Lane, VectorMap, write_map

FRAME_S = 0.1
"""Seconds between two frames."""


@dataclass(frozen=True)
class MadeObject:
    """A box in steady motion; z is the height of its centre in the world."""

    object_id: int
    start_xyz_m: tuple[float, float, float]
    velocity_mps: tuple[float, float] = (0.0, 0.0)
    size_m: tuple[float, float, float] = (4.6, 1.9, 1.6)
    yaw_deg: float = 0.0
    raw_type: str = "Car"
    first_frame: int = 0
    last_frame: int = 10**6
    labelled_by: tuple[int, ...] | None = None
    """Agents whose files hold the object; None: all."""


@dataclass(frozen=True)
class MadeAgent:
    """A sensor in steady motion; negative ids are roadside units."""

    agent_id: int
    start_xyz_m: tuple[float, float, float]
    velocity_mps: tuple[float, float] = (0.0, 0.0)
    roll_deg: float = 0.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    without_cloud: frozenset[int] = frozenset()
    """Frames whose .bin is not written."""
    without_labels: frozenset[int] = frozenset()
    """Frames whose .yaml is not written."""


@dataclass(frozen=True)
class MadeScene:
    """Agents and objects over ``frames`` frames of 0.1 s."""

    name: str
    agents: tuple[MadeAgent, ...]
    objects: tuple[MadeObject, ...]
    frames: int = 12


def rotation(roll_deg: float, yaw_deg: float, pitch_deg: float) -> NDArray[np.float64]:
    """R = Rz(yaw) Ry(-pitch) Rx(-roll), elementary right-handed rotations written out."""
    r, y, p = np.deg2rad([-roll_deg, yaw_deg, -pitch_deg])
    rx = np.array([[1, 0, 0], [0, np.cos(r), -np.sin(r)], [0, np.sin(r), np.cos(r)]])
    ry = np.array([[np.cos(p), 0, np.sin(p)], [0, 1, 0], [-np.sin(p), 0, np.cos(p)]])
    rz = np.array([[np.cos(y), -np.sin(y), 0], [np.sin(y), np.cos(y), 0], [0, 0, 1]])
    product: NDArray[np.float64] = rz @ ry @ rx
    return product


def world_SE3_lidar(agent: MadeAgent, frame: int) -> NDArray[np.float64]:
    """(4, 4) pose of the agent's LiDAR in the world."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(agent.roll_deg, agent.yaw_deg, agent.pitch_deg)
    matrix[:3, 3] = _moved(agent.start_xyz_m, agent.velocity_mps, frame)
    return matrix


def world_box(made: MadeObject, frame: int) -> NDArray[np.float64]:
    """(7,) x, y, z, length, width, height, yaw in the world."""
    centre = _moved(made.start_xyz_m, made.velocity_mps, frame)
    return np.array([*centre, *made.size_m, np.deg2rad(made.yaw_deg)])


def visible_objects(scene: MadeScene, agent_id: int, frame: int) -> list[MadeObject]:
    """Objects that the agent's file of that frame holds, in file order."""
    return [
        made
        for made in scene.objects
        if made.first_frame <= frame <= made.last_frame
        and (made.labelled_by is None or agent_id in made.labelled_by)
    ]


def lidar_points(scene: MadeScene, agent: MadeAgent, frame: int) -> NDArray[np.float32]:
    """(P, 4) own LiDAR frame: 27 points inside every visible box, 121 on the ground z = 0."""
    grid = np.stack(np.meshgrid(*[[-0.45, 0.0, 0.45]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    clouds = []
    for made in visible_objects(scene, agent.agent_id, frame):
        box = world_box(made, frame)
        clouds.append((grid * box[3:6]) @ rotation(0.0, made.yaw_deg, 0.0).T + box[:3])
    world = world_SE3_lidar(agent, frame)
    x, y = np.meshgrid(np.linspace(-20, 20, 11), np.linspace(-20, 20, 11))
    ground = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=-1)
    ground[:, :2] += world[:2, 3]
    points = np.concatenate([*clouds, ground])
    own = (points - world[:3, 3]) @ world[:3, :3]
    return np.concatenate([own, np.full((len(own), 1), 0.5)], axis=1).astype(np.float32)


def yaml_text(scene: MadeScene, agent: MadeAgent, frame: int) -> str:
    """The agent's label file, formatted by hand with the keys of the real one."""
    x, y, z = _moved(agent.start_xyz_m, agent.velocity_mps, frame)
    pose = [x, y, z, agent.roll_deg, agent.yaw_deg, agent.pitch_deg]
    lines = [
        f"ego_speed: {float(np.hypot(*agent.velocity_mps))}",
        f"infra: {str(agent.agent_id < 0).lower()}",
        *_sequence("lidar_pose", pose, indent=0),
        *_sequence("true_ego_pose", pose, indent=0),
    ]
    objects = visible_objects(scene, agent.agent_id, frame)
    lines.append("vehicles:" if objects else "vehicles: {}")
    for made in objects:
        box = world_box(made, frame)
        lines.append(f"  {made.object_id}:")
        lines += _sequence("angle", [0.0, made.yaw_deg, 0.0], indent=4)
        lines += _sequence("center", [0.0, 0.0, 0.0], indent=4)
        lines += _sequence("extent", [size / 2 for size in made.size_m], indent=4)
        lines += _sequence("location", box[:3].tolist(), indent=4)
        lines.append(f"    obj_type: {made.raw_type}")
    return "\n".join(lines) + "\n"


def write_scene(split_folder: Path, scene: MadeScene) -> Path:
    """Write ``<split_folder>/<scene>/<agent>/<frame>.{yaml,bin}`` and return the scene folder."""
    for agent in scene.agents:
        folder = split_folder / scene.name / str(agent.agent_id)
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(scene.frames):
            if frame not in agent.without_labels:
                text = yaml_text(scene, agent, frame)
                (folder / f"{frame:06d}.yaml").write_text(text, encoding="utf-8")
            if frame not in agent.without_cloud:
                cloud = lidar_points(scene, agent, frame).astype("<f4")
                (folder / f"{frame:06d}.bin").write_bytes(cloud.tobytes())
    return split_folder / scene.name


def write_root(
    root: Path, splits: Mapping[str, Sequence[MadeScene]], *, with_map: bool = True
) -> Path:
    """Write a root with the given splits and both map files; return ``root``."""
    for split, scenes in splits.items():
        for scene in scenes:
            write_scene(root / split, scene)
    if with_map:
        (root / "map").mkdir(parents=True, exist_ok=True)
        write_map(root / "map" / "v2x_intersection_vector_map.pkl", straight_map(y_m=0.0))
        write_map(root / "map" / "v2v_corridors_vector_map.pkl", straight_map(y_m=100.0))
    return root


def straight_map(y_m: float, count: int = 8) -> VectorMap:
    """``count`` parallel driving lanes along x, 40 points 1 m apart, and one sidewalk."""
    x = np.arange(40.0) - 20.0
    lanes = []
    for index in range(count):
        line = np.stack([x, np.full(40, y_m + 3.5 * index), np.zeros(40)], axis=-1)
        side = np.array([0.0, 1.75, 0.0])
        edges = np.concatenate([line + side, line - side])
        lanes.append(Lane(7, index + 1, 1, line, edges, (), ()))
    walk = np.stack([x, np.full(40, y_m - 5.0), np.full(40, 0.15)], axis=-1)
    lanes.append(Lane(8, -1, 2, walk, np.zeros((0, 3)), (), ()))
    return VectorMap(tuple(lanes))


def junction_scene(name: str, frames: int = 12, *, infrastructure: bool = True) -> MadeScene:
    """Two cars and two tilted roadside units within 50 m; four objects, one only seen by -1."""
    agents = (
        MadeAgent(1, (0.0, 0.0, 1.9), velocity_mps=(5.0, 0.0)),
        MadeAgent(2, (20.0, 10.0, 1.9), yaw_deg=180.0, pitch_deg=1.0),
        MadeAgent(-1, (10.0, -12.0, 4.1), yaw_deg=90.0, roll_deg=-2.9, pitch_deg=-1.6),
        MadeAgent(-2, (25.0, 12.0, 2.6), yaw_deg=-120.0, roll_deg=1.6, pitch_deg=3.0),
    )
    objects = (
        MadeObject(11, (12.0, 3.0, 0.8), velocity_mps=(8.0, 0.0)),
        MadeObject(12, (-15.0, -4.0, 0.8), yaw_deg=30.0, raw_type="PoliceCar"),
        MadeObject(13, (8.0, 8.0, 0.87), (1.4, 0.0), (0.64, 0.64, 1.74), 0.0, "Pedestrian"),
        MadeObject(14, (15.0, -8.0, 0.8), (0.0, 6.0), yaw_deg=90.0, labelled_by=(-1,)),
    )
    kept = tuple(agent for agent in agents if infrastructure or agent.agent_id >= 0)
    return MadeScene(name, kept, objects, frames)


def _moved(
    start_xyz_m: tuple[float, float, float], velocity_mps: tuple[float, float], frame: int
) -> tuple[float, float, float]:
    """World position after ``frame`` steps; rounded as the files are, to 6 decimals."""
    x, y, z = start_xyz_m
    time_s = frame * FRAME_S
    return round(x + velocity_mps[0] * time_s, 6), round(y + velocity_mps[1] * time_s, 6), z


def _sequence(name: str, values: Sequence[float], *, indent: int) -> list[str]:
    pad = " " * indent
    return [f"{pad}{name}:", *(f"{pad}- {value!r}" for value in map(float, values))]
