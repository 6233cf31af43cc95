"""Folders that all layouts share: ``root/<split>/<scenario>/<agent>/<frame>.{yaml,bin,pcd}``.

A folder given by the user is either such a root, of which all splits (or the one asked for) are
read, or one split folder of any name. Parts (``train1``, ``train2``) count as their split.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from turbotrain_plugin.data.formats.base import AgentFrames, SceneIndex
from turbotrain_plugin.structures import UserError

__all__ = [
    "cloud_stems",
    "frame_numbers",
    "index_scene",
    "is_agent",
    "misnamed_files",
    "misnamed_folders",
    "scene_folders",
    "split_folders",
    "subfolders",
]

_LOG = logging.getLogger(__name__)

_SPLIT: Final = re.compile(r"(train|validate|val|test)\d*", re.ASCII)
_AGENT: Final = re.compile(r"0|-?[1-9]\d*", re.ASCII)
# Six digits and nothing else: leaves out images and the files named `additional`, `camera_gt`.
_FRAME: Final = re.compile(r"(\d{6})\.([a-z]+)", re.ASCII)
_OTHER_TASKS: Final = ("additional", "camera_gt")


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
    folders = [path for path in subfolders(root) if _SPLIT.fullmatch(path.name)]
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
    folders = subfolders(split_folder)
    with_agents = [path for path in folders if any(map(is_agent, subfolders(path)))]
    if not with_agents and any(map(is_agent, folders)):
        raise UserError(f"{split_folder}: is a single scene. Give the folder that holds it.")
    if not with_agents:
        raise UserError(
            f"{split_folder}: no scenes found; expected <scenario>/<agent>/<frame>.yaml and .bin "
            "or .pcd below it, agents being whole numbers."
        )
    return folders


def index_scene(
    folder: Path, clouds: Sequence[str] = ("bin",), *, ticks: bool = False
) -> SceneIndex:
    """Return which agents and frames a scene folder holds; empty agents included.

    Args:
        folder: The scene.
        clouds: Suffixes of clouds without the dot; a frame with any of them has a cloud.
        ticks: Whether files are numbered by ticks of 0.05 s (see ``_grid``).
    """
    labels: dict[int, set[int]] = {}
    points: dict[int, set[int]] = {}
    for agent_folder in filter(is_agent, subfolders(folder)):
        found = _stems(agent_folder)
        labels[int(agent_folder.name)] = found.get("yaml", set())
        points[int(agent_folder.name)] = set().union(*(found.get(one, set()) for one in clouds))
    step, offset = _grid(labels.values()) if ticks else (1, 0)
    order = sorted(labels, key=lambda agent_id: (agent_id < 0, abs(agent_id)))
    off_grid = sum((stem - offset) % step != 0 for stems in labels.values() for stem in stems)
    if off_grid:
        _LOG.warning(
            "%s: left out %d label file(s) between the frames of 10 Hz (every %d file numbers)",
            folder,
            off_grid,
            step,
        )
    return SceneIndex(
        name=folder.name,
        split=_split_name(folder.parent),
        folder=folder,
        root=folder.parent.parent,
        agents={
            agent_id: AgentFrames(
                cloud_frames=_frames(labels[agent_id] & points[agent_id], step, offset),
                label_frames=_frames(labels[agent_id], step, offset),
            )
            for agent_id in order
        },
        stem_step=step,
        stem_offset=offset,
    )


def cloud_stems(scene: SceneIndex, agent_id: int, clouds: Sequence[str]) -> set[int]:
    """Return the frames of an agent's clouds, those without labels included."""
    found = _stems(scene.folder / str(agent_id))
    stems: set[int] = set().union(*(found.get(one, set()) for one in clouds))
    return set(_frames(stems, scene.stem_step, scene.stem_offset))


def _grid(agents: Iterable[set[int]]) -> tuple[int, int]:
    """Return the step of file numbers between two frames of 10 Hz, and the number of frame 0.

    A simulation of 20 Hz saved at 10 Hz numbers its files by ticks: 000068, 000070, ... (a strided
    copy keeps an even step). An odd usual step means that somebody has numbered them anew.
    """
    stems = [sorted(agent) for agent in agents]
    steps = Counter(b - a for agent in stems for a, b in pairwise(agent))
    step = 1 if steps and steps.most_common(1)[0][0] % 2 else 2
    rests = Counter(stem % step for agent in stems for stem in agent)
    return step, rests.most_common(1)[0][0] if rests else 0


def _frames(stems: set[int], step: int, offset: int) -> tuple[int, ...]:
    return tuple(sorted((s - offset) // step for s in stems if (s - offset) % step == 0))


def _stems(folder: Path) -> dict[str, set[int]]:
    """Return suffix to numbers of the files of an agent."""
    found: dict[str, set[int]] = {}
    for path in folder.iterdir():
        if match := _FRAME.fullmatch(path.name):
            found.setdefault(match[2], set()).add(int(match[1]))
    return found


def frame_numbers(folder: Path, suffix: str) -> list[int]:
    """Return the sorted numbers of an agent's files with a suffix."""
    return sorted(_stems(folder).get(suffix, ()))


def misnamed_files(folder: Path, clouds: Sequence[str]) -> list[str]:
    """Return the names of labels and clouds of an agent that are no frame's, sorted.

    Files named ``additional`` or ``camera_gt`` belong to other tasks and are not meant.
    """
    suffixes = {".yaml", ".yml", *(f".{one}" for one in clouds)}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes
        and not _FRAME.fullmatch(path.name)
        and not path.name.startswith(".")
        and not any(word in path.name for word in _OTHER_TASKS)
    )


def misnamed_folders(scene: Path) -> list[Path]:
    """Return the folders of a scene that hold label files and are no agent's."""
    folders = [path for path in subfolders(scene) if not is_agent(path)]
    return [path for path in folders if any(path.glob("*.yaml"))]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones left out, sorted by name."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir())


def is_agent(folder: Path) -> bool:
    """Return whether a folder is named like an agent: a whole number."""
    return _AGENT.fullmatch(folder.name) is not None


def _split_name(folder: Path) -> str:
    match = _SPLIT.fullmatch(folder.name)
    if match is None:
        return folder.name
    return "validate" if match[1] == "val" else match[1]
