"""The `data` commands that show: plots of statistics, scenes from above, the folder tree."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats import SceneIndex, SequenceReader, find_reader
from turbotrain_plugin.data.formats.folders import scene_folders, split_folders
from turbotrain_plugin.data.layout import check_root, survey
from turbotrain_plugin.data.root_stats import RootStats
from turbotrain_plugin.data.tracks import union_labels
from turbotrain_plugin.data.vector_map import read_map
from turbotrain_plugin.engine.records import Steps, emit, write_json
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.geometry.poses import transform_points
from turbotrain_plugin.reporting import (
    OverviewDrawing,
    SceneDrawing,
    draw_film,
    draw_overview,
    draw_scene,
)
from turbotrain_plugin.structures import AgentFrame

__all__ = ["browse", "plot_stats", "tree"]

F64 = NDArray[np.float64]

_FRAME_S: Final = 0.1
_SLOWEST_S: Final = 0.25
"""A picture of a thinned recording does not stay longer than this."""


def plot_stats(found: RootStats, roots: Sequence[Path], out: Path) -> Path:
    """Draw a page of statistics.

    Raises:
        UserError: When the file cannot be written.
    """
    samples = found.samples
    scenes = sum(split.scenes for split in found.splits)
    frames = sum(split.agent_frames for split in found.splits)
    names = ", ".join(root.absolute().name for root in roots)
    drawing = OverviewDrawing(
        title=f"{names}: {scenes:,} scenes, {frames:,} agent frames",
        classes=[one.name for one in found.classes],
        objects=[one.objects for one in found.classes],
        boxes=[one.boxes for one in found.classes],
        speed_mps=samples.speed_mps,
        size_m=samples.size_m,
        range_m=samples.range_m,
        points=samples.points,
        agent_distance_m=samples.agent_distance_m,
    )
    try:
        return draw_overview(drawing, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}).") from error


def tree(root: Path, json_file: Path | None, *, scenes: int) -> int:
    """Print the expected layout of a root and what was found.

    Raises:
        UserError: When the folder is no root; it says which folder looks like one.
    """
    layout = survey(root)
    if json_file is not None:
        write_json(json_file, layout.to_json())
    emit(layout.text(scenes))
    return 0


def browse(
    roots: Sequence[Path],
    *,
    scene: str | None,
    frame: int | None,
    out: Path | None,
    around_m: float,
    step: int,
) -> int:
    """Draw one frame of a scene, or all of it where ``out`` ends in ``.gif``.

    Args:
        roots: Roots or split folders.
        scene: Name or number of the scene; None: the first.
        frame: 10 Hz frame; None: the middle one. Of a GIF the first.
        out: PNG or GIF; None: a PNG here, named after scene and frame.
        around_m: Metres shown around the agents.
        step: Every n-th recorded frame becomes a picture of a GIF.

    Raises:
        UserError: For an unknown scene or frame, data that cannot be read, or a file that cannot be
            written.
    """
    if step < 1:
        raise UserError(f"--step must be at least 1. Found {step}.")
    if not around_m > 0:
        raise UserError(f"--around must be a distance above 0 m. Found {around_m:g}.")
    for root in roots:
        check_root(root)
    reader = find_reader(roots)
    found = _scene(roots, reader, scene)
    frames = sorted({f for agent in found.agents.values() for f in agent.cloud_frames})
    if not frames:
        raise UserError(f"{found.folder}: empty scene, no frame has labels and a cloud.")
    if frame is not None and frame not in frames:
        raise UserError(
            f"{found.name} has no frame {frame}. It has {len(frames)} frames from {frames[0]} to "
            f"{frames[-1]}."
        )
    chosen = frames[len(frames) // 2] if frame is None else frame
    if out is None:
        out = Path(f"{found.name}_{chosen:06d}.png")
    if out.suffix not in (".png", ".gif"):
        raise UserError(f"{out}: pictures are .png or .gif files. Found {out.suffix or 'neither'}.")
    film = out.suffix == ".gif"
    shown = [one for one in frames if frame is None or one >= frame][::step] if film else [chosen]
    view = _View(reader, found, shown, around_m)
    try:
        if film:
            distance_s = (shown[1] - shown[0]) * _FRAME_S if len(shown) > 1 else _FRAME_S
            draw_film(view.drawings(), out, frame_s=min(distance_s, _SLOWEST_S))
        else:
            draw_scene(view.drawing(chosen), out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}).") from error
    emit(f"{out}: {found.split}/{found.name}, {len(shown)} of {len(frames)} frames")
    return 0


def _scene(roots: Sequence[Path], reader: type[SequenceReader], name: str | None) -> SceneIndex:
    folders = [
        path for root in roots for part in split_folders(root) for path in scene_folders(part)
    ]
    names = [path.name for path in folders]
    if name is None:
        return reader.index(folders[0])
    if name in names:
        return reader.index(folders[names.index(name)])
    if name.isdecimal() and int(name) < len(folders):
        return reader.index(folders[int(name)])
    near = difflib.get_close_matches(name, names, 1, 0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(
        f"There is no scene {name!r} among the {len(names)} scenes (number them 0 to "
        f"{len(names) - 1}, or give a name).{hint}"
    )


class _View:
    """A scene in the world, moved to the middle of its agents, so that all frames have one frame.

    Args:
        reader: Of the scene's layout.
        scene: The scene.
        frames: Frames that will be drawn.
        around_m: Metres shown around the agents.
    """

    def __init__(
        self,
        reader: type[SequenceReader],
        scene: SceneIndex,
        frames: Sequence[int],
        around_m: float,
    ) -> None:
        self._reader = reader
        self._scene = scene
        self._frames = frames
        places = np.array(
            [
                labels.world_SE3_lidar[:3, 3]
                for frame in (frames[0], frames[len(frames) // 2], frames[-1])
                for labels in self._labels(frame)
            ]
        )
        low, high = places.min(axis=0), places.max(axis=0)
        self._middle = (low + high) / 2
        half = (high - low)[:2] / 2 + around_m
        self._range_m = (-half[0], -half[1], -100.0, half[0], half[1], 100.0)
        self._lanes = self._read_lanes()

    def drawings(self) -> Iterator[SceneDrawing]:
        """Yield the drawings of all frames, read one after the other."""
        progress = Steps("frames")
        for done, frame in enumerate(self._frames, start=1):
            yield self.drawing(frame)
            progress(done, len(self._frames), f"{frame:06d}")

    def drawing(self, frame: int) -> SceneDrawing:
        """Return what is known of one frame."""
        labels = self._labels(frame)
        poses = np.stack([one.world_SE3_lidar for one in labels])
        poses[:, :3, 3] -= self._middle
        clouds = [
            self._reader.read_cloud_file(self._reader.cloud_file(self._scene, one.agent_id, frame))
            for one in labels
        ]
        boxes = union_labels(labels).world_boxes
        boxes = np.concatenate([boxes[:, :3] - self._middle, boxes[:, 3:]], axis=1)
        return SceneDrawing(
            scene=self._scene.name,
            frame=frame,
            range_m=self._range_m,
            points=[
                transform_points(pose, points.astype(np.float64))
                for pose, points in zip(poses, clouds, strict=True)
            ],
            agent_ids=[one.agent_id for one in labels],
            agent_types=np.array([int(one.is_infrastructure) for one in labels]),
            ego_SE3_agent=poses,
            lanes=self._lanes,
            boxes=boxes,
            by_agent=True,
        )

    def _labels(self, frame: int) -> list[AgentFrame]:
        return [
            self._reader.read_label_file(self._scene.file(agent_id, frame, "yaml"), agent_id, frame)
            for agent_id, found in self._scene.agents.items()
            if found.has_cloud(frame)
        ]

    def _read_lanes(self) -> list[F64]:
        path = self._reader.map_file(self._scene)
        if path is None:
            return []
        return [lane.polyline - self._middle for lane in read_map(path).lanes]
