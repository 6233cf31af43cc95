"""Which layout a folder has, from its files alone; a doubt is an error, never a guess.

Reading left-handed data as right-handed ones would go unnoticed until the metrics are bad, so a
layout is taken only where something speaks for it and nothing strong against it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.data.formats.folders import index_scene, scene_folders, split_folders
from turbotrain_plugin.data.formats.numpy_yaml import NumpyLabelLoader
from turbotrain_plugin.data.formats.yaml_text import read_labels
from turbotrain_plugin.structures import UserError

__all__ = ["detect_format"]

_LOG = logging.getLogger(__name__)

_LABEL_FILES: Final = 20
"""Label files that are looked at, most of them only where those before are damaged."""
_CARLA_KEYS: Final = ("true_ego_pos", "predicted_ego_pos", "plan_trajectory")
_REAL_KEYS: Final = ("true_ego_pose", "infra")
_CARLA_SCENE: Final = re.compile(r"\d{4}(_\d\d){5}", re.ASCII)
_LOOKED_FOR: Final = (
    "v2xpnp_seq (.bin clouds, or the keys true_ego_pose or infra, or obj_type of objects), "
    "opv2v (.pcd clouds and the keys true_ego_pos, predicted_ego_pos or plan_trajectory, or a "
    "scene name such as 2021_08_16_22_26_54), "
    "v2v4real (.pcd clouds and a 4 x 4 matrix as lidar_pose)"
)


@dataclass(slots=True)
class _Evidence:
    """What the files of a root show.

    Attributes:
        clouds: Suffixes of the clouds.
        marks: Layout to what speaks strongly for it.
        hints: Layout to what speaks for it where nothing speaks strongly.
        labelled: Whether a label file could be read.
        damage: The first that could not.
    """

    clouds: set[str] = field(default_factory=set)
    marks: dict[str, list[str]] = field(default_factory=dict)
    hints: dict[str, list[str]] = field(default_factory=dict)
    labelled: bool = False
    damage: str = ""


def detect_format(roots: Sequence[Path]) -> str:
    """Return the format of dataset folders, and log it with the reason.

    Args:
        roots: Roots or split folders.

    Raises:
        UserError: When a folder is missing or empty, has no known layout or marks of two, or when
            the roots differ.
    """
    found: dict[str, tuple[Path, str]] = {}
    for root in roots:
        name, why = _decide(root, _look(root))
        found.setdefault(name, (root, why))
    if not found:
        raise UserError("No dataset folder is given. Set root_dir to a root or split folder.")
    if len(found) > 1:
        listed = "; ".join(f"{root}: {name} ({why})" for name, (root, why) in found.items())
        raise UserError(f"The folders have different formats. Found {listed}. Read them apart.")
    name, (root, why) = next(iter(found.items()))
    _LOG.info("%s: read as %s (%s)", root, name, why)
    return name


def _decide(root: Path, seen: _Evidence) -> tuple[str, str]:
    """Return a format and the reason."""
    if not seen.labelled and seen.clouds <= {"bin"}:
        # Nothing to read yet; the reader of the default layout says what is missing.
        return "v2xpnp_seq", "no readable label file" if seen.clouds else "no clouds"
    candidates = seen.marks or seen.hints
    if len(candidates) == 1:
        name, why = next(iter(candidates.items()))
        needs = "pcd" if name != "v2xpnp_seq" else ""
        if not needs or needs in seen.clouds:
            clouds = ", ".join(f".{suffix} clouds" for suffix in sorted(seen.clouds))
            return name, ", ".join(dict.fromkeys([clouds or "no clouds", *why]))
    found = "; ".join(f"for {name}: {', '.join(why)}" for name, why in candidates.items())
    damage = f" The first unreadable label file: {seen.damage}" if seen.damage else ""
    raise UserError(
        f"{root}: the data format is {'ambiguous' if found else 'unknown'}. Looked for "
        f"{_LOOKED_FOR}. Found {found or 'none of these'}. Set turbotrain.data.format if you know "
        f"it.{damage}"
    )


def _look(root: Path) -> _Evidence:
    seen = _Evidence()
    tried = 0
    for scene_folder in _scenes(root):
        scene = index_scene(scene_folder, ("bin", "pcd"))
        for agent_id, agent in scene.agents.items():
            frames = agent.label_frames
            if frames and not seen.clouds:
                first = next(iter(agent.cloud_frames), frames[0])
                paths = {suffix: scene.file(agent_id, first, suffix) for suffix in ("bin", "pcd")}
                # A .pcd beside a .bin is a copy that nobody reads.
                present = [suffix for suffix, path in paths.items() if path.exists()]
                seen.clouds.update(present[:1])
            for frame in frames[: 0 if seen.labelled else 2]:
                if tried < _LABEL_FILES and not seen.labelled:
                    tried += 1
                    _read(scene.file(agent_id, frame, "yaml"), scene_folder.name, seen)
        if seen.labelled and seen.clouds:
            break
    if "bin" in seen.clouds:
        seen.marks.setdefault("v2xpnp_seq", []).append(".bin clouds")
    return seen


def _scenes(root: Path) -> Iterator[Path]:
    for folder in split_folders(root):
        yield from scene_folders(folder)


def _read(path: Path, scene: str, seen: _Evidence) -> None:
    """Add what one label file shows."""
    try:
        content = read_labels(path, NumpyLabelLoader)
    except UserError as error:
        seen.damage = seen.damage or str(error)
        return
    seen.labelled = True
    pose = content.get("lidar_pose")
    if isinstance(pose, list) and len(pose) == 4:
        seen.marks["v2v4real"] = ["a 4 x 4 lidar_pose"]
        return
    for name, keys in (("v2xpnp_seq", _REAL_KEYS), ("opv2v", _CARLA_KEYS)):
        if present := [f"the key {key}" for key in keys if key in content]:
            seen.marks[name] = present
    if _names_classes(content):
        seen.hints["v2xpnp_seq"] = ["obj_type of objects"]
    if _CARLA_SCENE.fullmatch(scene):
        seen.hints["opv2v"] = ["the scene's name"]


def _names_classes(content: Mapping[Any, Any]) -> bool:
    objects = content.get("vehicles")
    values = objects.values() if isinstance(objects, dict) else ()
    return any(isinstance(item, dict) and "obj_type" in item for item in values)
