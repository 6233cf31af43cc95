"""V2XPnP-Seq and V2X-Real: ``root/<split>/<scenario>/<agent>/<frame>.{yaml,bin}`` at 10 Hz.

    root/{train,val,validate,test}/2023-03-17-15-53-02_1_0/{1,2,-1,-2}/000000.yaml, 000000.bin
    root/map/*.pkl

A folder given by the user is either such a root, of which all splits (or the one asked for) are
read, or one split folder of any name. Parts (``train1``, ``train2``) count as their split.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.cache import CACHE_FOLDER, LabelCache, SceneLabels, fingerprint
from turbotrain_plugin.data.formats.base import AgentFrames, SceneIndex
from turbotrain_plugin.data.formats.yaml_text import read_labels
from turbotrain_plugin.data.vector_map import VectorMap, read_map
from turbotrain_plugin.geometry.boxes import wrap_angle
from turbotrain_plugin.geometry.poses import pose_to_matrix
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = [
    "V2XPnPSeqReader",
    "index_scene",
    "read_cloud",
    "read_label_frame",
    "scene_folders",
    "split_folders",
]

_SPLIT: Final = re.compile(r"(train|validate|val|test)\d*", re.ASCII)
_AGENT: Final = re.compile(r"0|-?[1-9]\d*", re.ASCII)
# Six digits and nothing else: leaves out images and the files named `additional`, `camera_gt`.
_FRAME: Final = re.compile(r"(\d{6})\.(yaml|bin)", re.ASCII)

_SCENES_IN_MEMORY: Final = 32
"""Scenes whose labels one process keeps; about 3 MB each."""
_POINT_BYTES: Final = 16


# ------------------------------------------------------------------------------------------ folders


def split_folders(root: Path, split: str | None = None) -> list[Path]:
    """Return the split folders that ``root`` stands for.

    Args:
        root: A root with split folders, or one split folder.
        split: ``train``, ``validate`` or ``test`` to take only that one of a root; a split folder
            given directly is always taken, whatever its name.

    Raises:
        UserError: When the folder is missing, or is a root without the split.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Give a dataset root or one of its split folders.")
    # Names and parents matter below. Not resolve(): a split may be a link to another disk, and the
    # map lies beside the link.
    root = Path(os.path.abspath(root))  # noqa: PTH100
    folders = [path for path in _subfolders(root) if _SPLIT.fullmatch(path.name)]
    if not folders:
        return [root]
    wanted = [path for path in folders if split in (None, _split_name(path))]
    if not wanted:
        found = ", ".join(path.name for path in folders)
        raise UserError(f"{root}: has no split {split!r}, only {found}. Give a split folder.")
    return wanted


def scene_folders(split_folder: Path) -> list[Path]:
    """Return the scenario folders of a split folder, damaged ones included.

    Raises:
        UserError: When there is none, or the folder is itself a scenario.
    """
    folders = _subfolders(split_folder)
    with_agents = [path for path in folders if any(map(_is_agent, _subfolders(path)))]
    if not with_agents and any(map(_is_agent, folders)):
        raise UserError(f"{split_folder}: is a single scene. Give the folder that holds it.")
    if not with_agents:
        raise UserError(
            f"{split_folder}: no scenes found; expected <scenario>/<agent>/<frame>.yaml and .bin "
            "below it, agents being whole numbers."
        )
    return folders


def index_scene(folder: Path) -> SceneIndex:
    """Return which agents and frames a scene folder holds; empty agents included."""
    agents = {int(p.name): _agent_frames(p) for p in filter(_is_agent, _subfolders(folder))}
    order = sorted(agents, key=lambda agent_id: (agent_id < 0, abs(agent_id)))
    return SceneIndex(
        name=folder.name,
        split=_split_name(folder.parent),
        folder=folder,
        root=folder.parent.parent,
        agents={agent_id: agents[agent_id] for agent_id in order},
    )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())


def _is_agent(folder: Path) -> bool:
    return _AGENT.fullmatch(folder.name) is not None


def _split_name(folder: Path) -> str:
    match = _SPLIT.fullmatch(folder.name)
    if match is None:
        return folder.name
    return "validate" if match[1] == "val" else match[1]


def _agent_frames(folder: Path) -> AgentFrames:
    found: dict[str, set[int]] = {"yaml": set(), "bin": set()}
    for path in folder.iterdir():
        if match := _FRAME.fullmatch(path.name):
            found[match[2]].add(int(match[1]))
    return AgentFrames(
        cloud_frames=tuple(sorted(found["yaml"] & found["bin"])),
        label_frames=tuple(sorted(found["yaml"])),
    )


# -------------------------------------------------------------------------------------------- files


def read_label_frame(path: Path, agent_id: int, frame: int) -> AgentFrame:
    """Return pose and labels of one label file.

    ``center`` is added to ``location`` without rotation and ``extent`` holds half sizes, as in the
    hosts' readers. A file without ``vehicles`` has no objects; an object without ``obj_type`` is a
    ``Car``.

    Raises:
        UserError: Naming the file, and the object where one is at fault.
    """
    content = read_labels(path)
    pose = _numbers(content, "lidar_pose", 6, str(path))
    objects = content.get("vehicles") or {}
    if not isinstance(objects, dict):
        raise UserError(f"{path}: vehicles must map object ids to objects.")
    ids = [_object_id(key, path) for key in objects]
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: an object id is given twice, once as number and once as text.")
    items = zip(ids, objects.values(), strict=True)
    rows = [_object(item, f"{path}: object {object_id}") for object_id, item in items]
    values = np.array([row for row, _ in rows], dtype=np.float64).reshape(-1, 9)
    values[:, 6] = wrap_angle(values[:, 6])
    return AgentFrame(
        agent_id=agent_id,
        is_infrastructure=agent_id < 0,
        frame=frame,
        world_SE3_lidar=pose_to_matrix(pose),
        object_ids=np.array(ids, dtype=np.int64),
        world_boxes=values[:, :7],
        roll_pitch_rad=values[:, 7:],
        raw_types=tuple(name for _, name in rows),
    )


def read_cloud(path: Path) -> NDArray[np.float32]:
    """Return (P, 4) x, y, z, intensity of a ``.bin``; rows with a non-finite position dropped.

    Raises:
        UserError: When the file is missing or its size is no whole number of points.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    if len(raw) % _POINT_BYTES:
        raise UserError(
            f"{path}: truncated, its {len(raw)} bytes are no multiple of {_POINT_BYTES} (4 float32 "
            "per point). Copy the file again from its source."
        )
    points = np.frombuffer(raw, dtype="<f4").reshape(-1, 4).astype(np.float32)
    kept = points[np.isfinite(points[:, :3]).all(axis=1)]
    kept[:, 3] = np.nan_to_num(kept[:, 3], nan=0.0, posinf=0.0, neginf=0.0)
    return kept


def _object_id(key: object, path: Path) -> int:
    text = key if isinstance(key, str) else str(key)
    if not _AGENT.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
        raise UserError(f"{path}: object id {key!r} is not a whole number.")
    return int(text)


def _object(item: object, where: str) -> tuple[list[float], str]:
    """Return x, y, z, length, width, height, yaw, roll, pitch, and the class name."""
    if not isinstance(item, dict):
        raise UserError(f"{where}: must be a mapping with location, angle and extent.")
    location = _numbers(item, "location", 3, where)
    center = _numbers(item, "center", 3, where) if item.get("center") is not None else [0.0] * 3
    roll, yaw, pitch = map(math.radians, _numbers(item, "angle", 3, where))
    half = _numbers(item, "extent", 3, where)
    if min(half) <= 0:
        raise UserError(f"{where}: extent holds half sizes above 0 in metres. Found {half}.")
    centre = [a + b for a, b in zip(location, center, strict=True)]
    name = str(item.get("obj_type", "Car"))
    return [*centre, *(2.0 * size for size in half), yaw, roll, pitch], name


def _numbers(mapping: Mapping[Any, Any], key: str, count: int, where: str) -> list[float]:
    values = mapping.get(key)
    if not isinstance(values, list) or len(values) != count:
        found = _brief(values)
        raise UserError(f"{where}: {key} must be a list of {count} numbers. Found {found}.")
    # Beyond 1e12 metres or degrees a number is a mistake, and may not even fit a float.
    if not all(type(value) in (int, float) and abs(value) < 1e12 for value in values):
        raise UserError(f"{where}: {key} must hold finite numbers. Found {_brief(values)}.")
    return [float(value) for value in values]


def _brief(value: object) -> str:
    if isinstance(value, list) and all(isinstance(v, (int, float, str)) for v in value[:10]):
        return f"{len(value)} values, {value[:10]}" if len(value) > 10 else str(value)
    return "nothing" if value is None else type(value).__name__


# ------------------------------------------------------------------------------------------- reader


class V2XPnPSeqReader:
    """Reader of V2XPnP-Seq and V2X-Real (a ``ScenarioReader``).

    Args:
        roots: Dataset roots or split folders, at least one.
        split: Which split to take of a root; None: all. See ``split_folders``.
        cache_dir: Where parsed labels are kept; None: ``.turbotrain_cache`` inside each root.

    Raises:
        UserError: When a folder is missing or without scenes, a scene has no readable frame, or
            two scenes of a split have the same name.
    """

    def __init__(
        self, roots: Sequence[Path], *, split: str | None = None, cache_dir: Path | None = None
    ) -> None:
        if not roots:
            raise UserError("No dataset folder is given. Set root_dir to a root or split folder.")
        self._cache_dir = cache_dir
        self._caches: dict[Path, LabelCache] = {}
        self._labels: OrderedDict[Path, dict[tuple[int, int], AgentFrame]] = OrderedDict()
        self._maps: dict[Path, VectorMap] = {}
        folders = [folder for root in roots for folder in split_folders(Path(root), split)]
        self._scenes = tuple(scene for folder in folders for scene in _checked_scenes(folder))
        _check_names(self._scenes)

    @property
    def scenes(self) -> tuple[SceneIndex, ...]:
        """All scenes, in the order of the folders, then by name."""
        return self._scenes

    def read_frame(self, scene: SceneIndex, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels; the first call for a scene parses, or loads from the cache.

        Raises:
            UserError: When a label file of the scene is damaged.
        """
        labels = self._labels.get(scene.folder)
        if labels is None:
            labels = self._load_labels(scene).unpack()
            self._labels[scene.folder] = labels
            if len(self._labels) > _SCENES_IN_MEMORY:
                self._labels.popitem(last=False)
        self._labels.move_to_end(scene.folder)
        if (agent_id, frame) not in labels:
            raise ValueError(
                f"Parameter `frame` should be one of the agent's label frames. Found {frame} of "
                f"agent {agent_id} in scene {scene.name}."
            )
        return labels[agent_id, frame]

    def read_points(self, scene: SceneIndex, agent_id: int, frame: int) -> NDArray[np.float32]:
        """Return (P, 4) x, y, z, intensity in the agent's own LiDAR frame.

        Raises:
            UserError: When the cloud is missing or truncated.
        """
        return read_cloud(scene.folder / str(agent_id) / f"{frame:06d}.bin")

    def read_map(self, scene: SceneIndex) -> VectorMap | None:
        """Return the junction map for scenes with a roadside unit, else the corridor map.

        Raises:
            UserError: When the map is damaged, unsafe, or none of several files can be chosen.
        """
        path = _map_path(scene)
        if path is None:
            return None
        if path not in self._maps:
            self._maps[path] = read_map(path)
        return self._maps[path]

    def _load_labels(self, scene: SceneIndex) -> SceneLabels:
        files = {
            (agent_id, frame): scene.folder / str(agent_id) / f"{frame:06d}.yaml"
            for agent_id, frames in scene.agents.items()
            for frame in frames.label_frames
        }
        cache, key = self._cache_of(scene)
        try:
            mark = fingerprint(scene.folder, files.values())
        except OSError as error:
            raise UserError(f"{scene.folder}: changed while it was read ({error}).") from error
        labels = cache.load(key, mark)
        if labels is None:
            frames = [read_label_frame(path, *which) for which, path in files.items()]
            labels = SceneLabels.pack(frames)
            cache.store(key, mark, labels)
        return labels

    def _cache_of(self, scene: SceneIndex) -> tuple[LabelCache, str]:
        """Return the cache and the scene's key; a shared folder may serve several roots."""
        folder = self._cache_dir or scene.root / CACHE_FOLDER
        key = f"{scene.folder.parent.name}-{scene.name}"
        if self._cache_dir is not None:
            place = str(scene.folder.resolve()).encode()
            key += f"-{hashlib.blake2b(place, digest_size=6).hexdigest()}"
        return self._caches.setdefault(folder, LabelCache(folder)), key


def _checked_scenes(folder: Path) -> list[SceneIndex]:
    scenes = [index_scene(path) for path in scene_folders(folder)]
    for scene in scenes:
        if not any(frames.cloud_frames for frames in scene.agents.values()):
            raise UserError(
                f"{scene.folder}: empty scene, no agent has a frame with both 000000.yaml and "
                "000000.bin (six digits). Complete the scene or move it out of the split."
            )
    return scenes


def _check_names(scenes: Sequence[SceneIndex]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for scene in scenes:
        first = seen.setdefault((scene.split, scene.name), scene.folder)
        if first is not scene.folder:
            raise UserError(
                f"{scene.folder}: a scene of this name is also in {first.parent}. Give each scene "
                "once."
            )


def _map_path(scene: SceneIndex) -> Path | None:
    files = sorted((scene.root / "map").glob("*.pkl"))
    if len(files) <= 1:
        return files[0] if files else None
    area = "intersection" if scene.has_infrastructure else "corridor"
    fitting = [path for path in files if area in path.name]
    if len(fitting) != 1:
        raise UserError(
            f"{scene.root / 'map'}: expected one file with {area!r} in its name for scene "
            f"{scene.name}. Found {', '.join(path.name for path in files)}."
        )
    return fitting[0]
