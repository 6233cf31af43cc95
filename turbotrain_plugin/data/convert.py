"""One layout into another, scene by scene: read as ``AgentFrame``, write, rename into place."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbotrain_plugin.data.formats import FORMATS, ScenarioReader, SceneIndex, open_root
from turbotrain_plugin.data.formats.writers import WRITERS, SequenceWriter
from turbotrain_plugin.data.vector_map import write_map
from turbotrain_plugin.structures import UserError

__all__ = ["Conversion", "convert_roots"]

_LOG = logging.getLogger(__name__)

_MAPS = {True: "v2x_intersection_vector_map.pkl", False: "v2v_corridors_vector_map.pkl"}
"""Name of the map of scenes with, and without, a roadside unit."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        scenes: Scenes.
        frames: Label files.
        clouds: Clouds.
        maps: Map files.
    """

    scenes: int
    frames: int
    clouds: int
    maps: int


def convert_roots(
    roots: Sequence[Path],
    source: str,
    target: str,
    out: Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> Conversion:
    """Write dataset folders in another format, as ``out/<split>/<scene>``.

    Roadside units and maps are left out, with a warning, where the target has no place for them;
    V2XPnP-Seq and V2X-Real alone have one for maps.

    Args:
        roots: Roots or split folders.
        source: A name of ``FORMATS``, or ``auto``.
        target: A name of ``WRITERS``.
        out: A new or empty folder.
        progress: Called with scenes done, scenes in all and a scene's name.

    Raises:
        UserError: When a format is unknown, the data cannot be read, or ``out`` is not empty or
            cannot be written.
    """
    if target not in WRITERS:
        raise UserError(f"Unknown target format {target!r}; known are {', '.join(WRITERS)}.")
    _check_empty(out)
    reader = open_root(roots, source)
    writer = WRITERS[target]()
    scenes = frames = clouds = 0
    try:
        for done, scene in enumerate(reader.scenes):
            if progress is not None:
                progress(done, len(reader.scenes), scene.name)
            written = _write_scene(reader, scene, writer, out)
            scenes += written[0] > 0
            frames, clouds = frames + written[0], clouds + written[1]
        maps = 0
        if FORMATS[target] is FORMATS["v2xpnp_seq"]:
            maps = _write_maps(reader, out)
        elif any(reader.read_map(scene) is not None for scene in reader.scenes):
            _LOG.warning("left out the vector maps: %s has no place for them", target)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}).") from error
    if progress is not None:
        progress(len(reader.scenes), len(reader.scenes), "")
    return Conversion(scenes, frames, clouds, maps)


def _check_empty(out: Path) -> None:
    try:
        filled = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise UserError(f"{out}: cannot be looked into ({error}).") from error
    if filled:
        raise UserError(f"{out}: is not empty; give a new or empty folder for the converted data.")


def _write_scene(
    reader: ScenarioReader, scene: SceneIndex, writer: SequenceWriter, out: Path
) -> tuple[int, int]:
    """Write a scene under a temporary name, rename it, and return its label files and clouds."""
    partial = out / f".{scene.split}-{scene.name}.part"
    agents = {a: f for a, f in scene.agents.items() if a >= 0 or writer.roadside_units}
    if len(agents) < len(scene.agents):
        left_out = len(scene.agents) - len(agents)
        _LOG.warning("%s: left out %d roadside unit(s)", scene.name, left_out)
    if not any(found.cloud_frames for found in agents.values()):
        _LOG.warning("%s: left out, no vehicle has a frame", scene.name)
        return 0, 0
    frames = clouds = 0
    try:
        for agent_id, found in agents.items():
            for frame in found.label_frames:
                cloud = found.has_cloud(frame)
                points = reader.read_points(scene, agent_id, frame) if cloud else None
                writer.write_frame(partial, reader.read_frame(scene, agent_id, frame), points)
                frames, clouds = frames + 1, clouds + cloud
        target = out / scene.split / scene.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return frames, clouds


def _write_maps(reader: ScenarioReader, out: Path) -> int:
    """Write the map of each area once; return how many there are."""
    written: set[str] = set()
    for scene in reader.scenes:
        name = _MAPS[scene.has_infrastructure]
        found = reader.read_map(scene) if name not in written else None
        if found is not None:
            (out / "map").mkdir(exist_ok=True)
            write_map(out / "map" / name, found)
            written.add(name)
    return len(written)
