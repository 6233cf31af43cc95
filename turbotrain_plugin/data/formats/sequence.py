"""What all readers of ``<scenario>/<agent>/<frame>`` folders share: scenes, caches, memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.cache import CACHE_FOLDER, LabelCache, SceneLabels, fingerprint
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.folders import index_scene, scene_folders, split_folders
from turbotrain_plugin.data.vector_map import VectorMap
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["SequenceReader"]

_SCENES_IN_MEMORY: Final = 32
"""Scenes whose labels one process keeps; about 3 MB each."""


class SequenceReader(ABC):
    """A ``ScenarioReader`` of scenes in folders; a layout says how its two files are read.

    Args:
        roots: Dataset roots or split folders, at least one.
        split: Which split to take of a root; None: all. See ``split_folders``.
        cache_dir: Where parsed labels are kept; None: ``.turbotrain_cache`` inside each root.

    Raises:
        UserError: When a folder is missing or without scenes, a scene has no readable frame, or
            two scenes of a split have the same name.
    """

    clouds: ClassVar[tuple[str, ...]]
    """Suffixes of cloud files, the preferred one first."""
    ticks: ClassVar[bool] = False
    """Whether files are numbered by ticks of a 20 Hz simulation."""
    has_maps: ClassVar[bool] = False
    """Whether the layout has a place for vector maps."""
    labels_kept_as: ClassVar[str] = ""
    """Part of the cache's name: one file read as two layouts gives different labels."""

    def __init__(
        self, roots: Sequence[Path], *, split: str | None = None, cache_dir: Path | None = None
    ) -> None:
        if not roots:
            raise UserError("No dataset folder is given. Set root_dir to a root or split folder.")
        self._cache_dir = cache_dir
        self._caches: dict[Path, LabelCache] = {}
        self._labels: OrderedDict[Path, dict[tuple[int, int], AgentFrame]] = OrderedDict()
        folders = [folder for root in roots for folder in split_folders(Path(root), split)]
        self._scenes = tuple(scene for folder in folders for scene in self._checked(folder))
        _check_names(self._scenes)

    @staticmethod
    @abstractmethod
    def read_label_file(path: Path, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels of one label file.

        Raises:
            UserError: Naming the file, and the object where one is at fault.
        """

    @staticmethod
    @abstractmethod
    def read_cloud_file(path: Path) -> NDArray[np.float32]:
        """Return (P, 4) x, y, z, intensity of one cloud, finite rows only.

        Raises:
            UserError: When the file is missing or damaged.
        """

    @classmethod
    def index(cls, folder: Path) -> SceneIndex:
        """Return which agents and frames a scene folder holds."""
        return index_scene(folder, cls.clouds, ticks=cls.ticks)

    @classmethod
    def cloud_file(cls, scene: SceneIndex, agent_id: int, frame: int) -> Path:
        """Return the cloud of a frame; where there is none, the file it should be."""
        paths = [scene.file(agent_id, frame, suffix) for suffix in cls.clouds]
        return next((path for path in paths if path.exists()), paths[0])

    @classmethod
    def map_file(cls, scene: SceneIndex) -> Path | None:  # noqa: ARG003 - most have none
        """Return the map of a scene's area, or None.

        Raises:
            UserError: When none of several files can be chosen.
        """
        return None

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
            UserError: When the cloud is missing or damaged.
        """
        return self.read_cloud_file(self.cloud_file(scene, agent_id, frame))

    def read_map(self, scene: SceneIndex) -> VectorMap | None:  # noqa: ARG002 - most have none
        """Return None: the layout has no maps, unless its reader says otherwise."""
        return None

    def _checked(self, folder: Path) -> list[SceneIndex]:
        scenes = [self.index(path) for path in scene_folders(folder)]
        for scene in scenes:
            if not any(frames.cloud_frames for frames in scene.agents.values()):
                clouds = " or ".join(f"000000.{suffix}" for suffix in self.clouds)
                raise UserError(
                    f"{scene.folder}: empty scene, no agent has a frame with both 000000.yaml and "
                    f"{clouds} (six digits). Complete the scene or move it out of the split."
                )
        return scenes

    def _load_labels(self, scene: SceneIndex) -> SceneLabels:
        files = {
            (agent_id, frame): scene.file(agent_id, frame, "yaml")
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
            frames = [self.read_label_file(path, *which) for which, path in files.items()]
            labels = SceneLabels.pack(frames)
            cache.store(key, mark, labels)
        return labels

    def _cache_of(self, scene: SceneIndex) -> tuple[LabelCache, str]:
        """Return the cache and the scene's key; a shared folder may serve several roots."""
        folder = self._cache_dir or scene.root / CACHE_FOLDER
        parts = [scene.folder.parent.name, scene.name]
        if self.labels_kept_as:
            parts.append(self.labels_kept_as)
        if self._cache_dir is not None:
            place = str(scene.folder.resolve()).encode()
            parts.append(hashlib.blake2b(place, digest_size=6).hexdigest())
        return self._caches.setdefault(folder, LabelCache(folder)), "-".join(parts)


def _check_names(scenes: Sequence[SceneIndex]) -> None:
    seen: dict[tuple[str, str], Path] = {}
    for scene in scenes:
        first = seen.setdefault((scene.split, scene.name), scene.folder)
        if first is not scene.folder:
            raise UserError(
                f"{scene.folder}: a scene of this name is also in {first.parent}. Give each scene "
                "once."
            )
