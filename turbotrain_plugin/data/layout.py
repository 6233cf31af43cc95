"""What a folder should look like as a dataset root, and what it does look like."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.data.checks.files import usual_step
from turbotrain_plugin.data.checks.findings import runs
from turbotrain_plugin.data.formats import SceneIndex, SequenceReader, find_reader
from turbotrain_plugin.data.formats.detect import detect_format
from turbotrain_plugin.data.formats.folders import (
    cloud_stems,
    is_agent,
    misnamed_files,
    scene_folders,
    split_folders,
    subfolders,
)
from turbotrain_plugin.structures import UserError

__all__ = ["AgentEntry", "Layout", "SceneEntry", "SplitEntry", "check_root", "survey"]

_SPLITS: Final = ("train", "validate", "test")
_BESIDE: Final = ("map", "synthetic.json")
"""What may lie beside the splits; trajectory databases too."""
_DEPTH: Final = 2
"""Folders below the given one in which a root is looked for."""
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """Files of an agent.

    Attributes:
        agent_id: Folder number.
        frames: Frames with labels and a cloud.
        labels_only: Label files without a cloud.
        clouds_only: Clouds without a label file.
        gaps: Frames in a row that are missing, as text.
        foreign: Labels or clouds whose names are no frame's.
    """

    agent_id: int
    frames: int
    labels_only: int
    clouds_only: int
    gaps: str
    foreign: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SceneEntry:
    """A scene folder: its agents, and what else lies in it."""

    name: str
    agents: tuple[AgentEntry, ...]
    foreign: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """A split folder: its name among the splits, its scenes, and what else lies in it."""

    folder: str
    split: str
    scenes: tuple[SceneEntry, ...]
    foreign: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found.

    Attributes:
        root: The folder.
        format: Its layout.
        clouds: Suffixes of clouds.
        splits: Split folders.
        missing: What a complete root also has, one line each.
        maps: Files in ``map``.
        foreign: What lies beside the splits and is not expected there.
    """

    root: str
    format: str
    clouds: tuple[str, ...]
    splits: tuple[SplitEntry, ...]
    missing: tuple[str, ...]
    maps: tuple[str, ...]
    foreign: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)

    def text(self, scenes: int = 10) -> str:
        """Return the tree as text.

        Args:
            scenes: Scenes shown of every split; the rest is counted.
        """
        cloud = "|".join(self.clouds)
        lines = [
            f"expected  ROOT/{{train,validate,test}}/SCENE/AGENT/000000.{{yaml,{cloud}}}",
            f"found     {self.root}  ({self.format})",
        ]
        for split in self.splits:
            frames = sum(agent.frames for scene in split.scenes for agent in scene.agents)
            name = Path(split.folder).name
            role = "" if name == split.split else f" (read as {split.split})"
            lines.append(f"  {name}/{role}  {len(split.scenes)} scenes, {frames} agent frames")
            lines += [line for scene in split.scenes[:scenes] for line in _scene_lines(scene)]
            if len(split.scenes) > scenes:
                lines.append(f"    ... and {len(split.scenes) - scenes} more scenes")
            lines += [f"    ? {name}: not part of the layout" for name in split.foreign]
        if self.maps:
            lines.append(f"  map/  {', '.join(self.maps)}")
        lines += [f"  - missing: {what}" for what in self.missing]
        lines += [f"  ? {name}: not part of the layout" for name in self.foreign]
        return "\n".join(lines)


def survey(root: Path) -> Layout:
    """Compare a folder with the layout of a dataset root.

    Raises:
        UserError: When the folder is missing, or holds no scenes; it then says which folder near it
            looks like a root.
    """
    check_root(root)
    name = detect_format([root])
    reader = find_reader([root], name)
    folders = split_folders(root)
    splits = tuple(_split(folder, reader) for folder in folders)
    # A split folder stands for itself; as in split_folders, links are not followed.
    whole = folders != [Path(os.path.abspath(root))]  # noqa: PTH100
    present = {split.split for split in splits}
    missing = [f"{one}/" for one in _SPLITS if whole and one not in present]
    maps = _names(root / "map", "*.pkl") if whole else ()
    if whole and reader.has_maps and not maps:
        missing.append("map/*.pkl (training goes on without map)")
    known = {folder.name for folder in folders} | set(_BESIDE)
    foreign = [
        path.name
        for path in sorted(root.iterdir())
        if whole and path.name not in known and not _is_passed_over(path)
    ]
    return Layout(str(root), name, reader.clouds, splits, tuple(missing), maps, tuple(foreign))


# -------------------------------------------------------------------------------------- wrong roots


def check_root(root: Path) -> None:
    """Refuse a folder that is neither a root nor a split folder, and say where one is.

    Raises:
        UserError: Naming the child or parent that looks like a root.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Give a dataset root or one of its split folders.")
    here = root.absolute()
    if _is_agent_folder(here):
        raise UserError(
            f"{root}: holds the frames of one agent. Its scene is {here.parent}, its split "
            f"{here.parent.parent}; this looks like a child of the root {here.parents[2]}."
        )
    if _is_scene(here):
        raise UserError(
            f"{root}: is a single scene. Its split is {here.parent}; this looks like a child of "
            f"the root {here.parents[1]}."
        )
    if any(_is_split(folder) for folder in split_folders(root)):
        return
    below = _roots_below(here, _DEPTH)
    if below:
        raise UserError(
            f"{root}: holds no scenes itself; this looks like the parent of a root. Give "
            f"{' or '.join(str(one) for one in below[:_SHOWN])}."
        )
    found = ", ".join(path.name for path in sorted(here.iterdir())[:_SHOWN]) or "nothing"
    raise UserError(
        f"{root}: no scenes found here or below. Expected {{train,validate,test}}/SCENE/AGENT/"
        f"000000.yaml, agents being whole numbers. Found {found}."
    )


def _is_agent_folder(folder: Path) -> bool:
    return is_agent(folder) and any(folder.glob("[0-9]*.yaml"))


def _is_scene(folder: Path) -> bool:
    return any(is_agent(path) for path in subfolders(folder))


def _is_split(folder: Path) -> bool:
    return any(_is_scene(path) for path in subfolders(folder))


def _roots_below(folder: Path, depth: int) -> list[Path]:
    """Return folders that hold scenes or splits, the nearest only."""
    if not depth:
        return []
    found = [p for p in subfolders(folder) if any(_is_split(one) for one in split_folders(p))]
    return found or [one for path in subfolders(folder) for one in _roots_below(path, depth - 1)]


# ----------------------------------------------------------------------------------------- entries


def _split(folder: Path, reader: type[SequenceReader]) -> SplitEntry:
    scenes = [reader.index(path) for path in scene_folders(folder)]
    known = {scene.name for scene in scenes}
    foreign = tuple(
        path.name
        for path in sorted(folder.iterdir())
        if path.name not in known and not path.name.startswith(".")
    )
    split = scenes[0].split
    return SplitEntry(str(folder), split, tuple(_scene(one, reader) for one in scenes), foreign)


def _scene(scene: SceneIndex, reader: type[SequenceReader]) -> SceneEntry:
    step = usual_step([frames.label_frames for frames in scene.agents.values()])
    agents = tuple(_agent(scene, agent_id, reader, step) for agent_id in scene.agents)
    foreign = tuple(path.name for path in subfolders(scene.folder) if not is_agent(path))
    return SceneEntry(scene.name, agents, foreign)


def _agent(scene: SceneIndex, agent_id: int, reader: type[SequenceReader], step: int) -> AgentEntry:
    frames = scene.agents[agent_id]
    labels, clouds = set(frames.label_frames), cloud_stems(scene, agent_id, reader.clouds)
    whole = set(range(min(labels, default=0), max(labels, default=-1) + 1, step))
    gaps = [
        f"{gap[0]:06d}" if len(gap) == 1 else f"{gap[0]:06d} to {gap[-1]:06d}"
        for gap in runs(whole - labels, step)
    ]
    return AgentEntry(
        agent_id=agent_id,
        frames=len(frames.cloud_frames),
        labels_only=len(labels - clouds),
        clouds_only=len(clouds - labels),
        gaps=", ".join(gaps[:_SHOWN]) + (", ..." if len(gaps) > _SHOWN else ""),
        foreign=tuple(misnamed_files(scene.folder / str(agent_id), reader.clouds)),
    )


def _scene_lines(scene: SceneEntry) -> list[str]:
    lines = [f"    {scene.name}/"]
    for agent in scene.agents:
        remarks = [
            f"{agent.labels_only} labels without a cloud" if agent.labels_only else "",
            f"{agent.clouds_only} clouds without labels" if agent.clouds_only else "",
            f"missing {agent.gaps}" if agent.gaps else "",
            f"? {', '.join(agent.foreign[:_SHOWN])}" if agent.foreign else "",
        ]
        remark = "; ".join(one for one in remarks if one)
        frames = f"{agent.frames} frames"
        lines.append(f"      {agent.agent_id:>4}/  {frames}{'; ' + remark if remark else ''}")
    return lines + [f"      ? {name}/: no agent, its name is no number" for name in scene.foreign]


def _names(folder: Path, pattern: str) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.glob(pattern)))


def _is_passed_over(path: Path) -> bool:
    return path.name.startswith((".", "trajectory_database"))
