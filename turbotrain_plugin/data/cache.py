"""Labels of a scene parsed once: packed arrays on disk, valid while no label file changes.

Parsing YAML costs milliseconds a file and one training window touches dozens of files, so without
this the loader would mostly parse. A cache file is an ``.npz`` without pickles, written under a
temporary name and renamed, so that several loader processes may build the same one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.structures import AgentFrame

__all__ = ["CACHE_FOLDER", "LabelCache", "SceneLabels", "fingerprint"]

_LOG = logging.getLogger(__name__)

CACHE_FOLDER: Final = ".turbotrain_cache"
"""Where caches live inside a root, beside the splits (hosts list split folders, not roots)."""

_VERSION: Final = 1
"""Part of the fingerprint: raise it when parsing or packing changes."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneLabels:
    """Poses and labels of all agents and frames of a scene. N files, M objects over all of them.

    Attributes:
        agent_ids: (N,) int64.
        frames: (N,) int64.
        poses: (N, 4, 4) float64, LiDAR to world.
        offsets: (N + 1,) int64, rows of the objects of file n: ``offsets[n]:offsets[n + 1]``.
        object_ids: (M,) int64.
        boxes: (M, 7) float64, world.
        roll_pitch_rad: (M, 2) float64.
        type_codes: (M,) int64, rows of ``type_names``.
        type_names: Class names as written.
    """

    agent_ids: NDArray[np.int64]
    frames: NDArray[np.int64]
    poses: NDArray[np.float64]
    offsets: NDArray[np.int64]
    object_ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    roll_pitch_rad: NDArray[np.float64]
    type_codes: NDArray[np.int64]
    type_names: tuple[str, ...]

    @classmethod
    def pack(cls, frames: Sequence[AgentFrame]) -> SceneLabels:
        """Return the labels of ``frames`` as packed arrays."""
        names = sorted({name for frame in frames for name in frame.raw_types})
        code = {name: index for index, name in enumerate(names)}
        counts = [len(frame.object_ids) for frame in frames]
        return cls(
            agent_ids=np.array([frame.agent_id for frame in frames], dtype=np.int64),
            frames=np.array([frame.frame for frame in frames], dtype=np.int64),
            poses=np.stack([frame.world_SE3_lidar for frame in frames]),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            object_ids=np.concatenate([frame.object_ids for frame in frames]),
            boxes=np.concatenate([frame.world_boxes for frame in frames]),
            roll_pitch_rad=np.concatenate([frame.roll_pitch_rad for frame in frames]),
            type_codes=np.array(
                [code[name] for frame in frames for name in frame.raw_types], dtype=np.int64
            ),
            type_names=tuple(names),
        )

    def unpack(self) -> dict[tuple[int, int], AgentFrame]:
        """Return (agent, frame) to its labels; the arrays are read-only views."""
        for array in (self.poses, self.object_ids, self.boxes, self.roll_pitch_rad):
            array.flags.writeable = False
        keys = zip(self.agent_ids.tolist(), self.frames.tolist(), strict=True)
        return {key: self._frame(row, *key) for row, key in enumerate(keys)}

    def _frame(self, row: int, agent_id: int, frame: int) -> AgentFrame:
        rows = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return AgentFrame(
            agent_id=agent_id,
            is_infrastructure=agent_id < 0,
            frame=frame,
            world_SE3_lidar=self.poses[row],
            object_ids=self.object_ids[rows],
            world_boxes=self.boxes[rows],
            roll_pitch_rad=self.roll_pitch_rad[rows],
            raw_types=tuple(self.type_names[code] for code in self.type_codes[rows].tolist()),
        )


def fingerprint(folder: Path, files: Iterable[Path]) -> str:
    """Return a text that changes when a file is added, removed, resized or written anew.

    Args:
        folder: The scene; paths are taken relative to it, so that a moved root keeps its cache.
        files: Label files of the scene.
    """
    digest = hashlib.blake2b(f"{_VERSION}".encode(), digest_size=16)
    for path in sorted(files):
        stat = path.stat()
        line = f"\n{path.relative_to(folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(line.encode())
    return digest.hexdigest()


class LabelCache:
    """Cache files of one folder.

    Args:
        folder: Made when the first file is stored; None switches the cache off. A folder that
            cannot be written is warned about once and then left alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def load(self, key: str, mark: str) -> SceneLabels | None:
        """Return the labels of a scene, or None when there are none, old ones or damaged ones.

        Args:
            key: What the cache calls the scene.
            mark: Its present ``fingerprint``.
        """
        if self._folder is None:
            return None
        try:
            with np.load(_path(self._folder, key), allow_pickle=False) as packed:
                if str(packed["fingerprint"]) != mark:
                    return None
                return _checked(packed)
        except Exception as error:  # a damaged zip raises anything; the labels are parsed anew
            if not isinstance(error, FileNotFoundError):
                _LOG.debug("%s: label cache not used: %s", key, error)
            return None

    def store(self, key: str, mark: str, labels: SceneLabels) -> None:
        """Write the labels of a scene; a failure is a warning, not an error."""
        if self._folder is None:
            return
        target = _path(self._folder, key)
        partial = target.with_name(f".{uuid.uuid4().hex}.part")
        arrays: dict[str, Any] = {name: getattr(labels, name) for name in _ARRAYS}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as stream:
                names = np.array(labels.type_names, dtype=np.str_)
                np.savez(stream, fingerprint=np.str_(mark), type_names=names, **arrays)
            partial.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            _LOG.warning(
                "Labels cannot be cached in %s (%s); label files are parsed in every run. Set "
                "turbotrain.data.cache_dir to a writable folder.",
                self._folder,
                error,
            )
            self._folder = None


_ARRAYS: Final = {
    "agent_ids": (),
    "frames": (),
    "poses": (4, 4),
    "offsets": (),
    "object_ids": (),
    "boxes": (7,),
    "roll_pitch_rad": (2,),
    "type_codes": (),
}
"""Packed arrays and the shape of one row of each."""


def _checked(packed: Any) -> SceneLabels:  # noqa: ANN401 - an NpzFile
    arrays: dict[str, Any] = {name: packed[name] for name in _ARRAYS}
    labels = SceneLabels(type_names=tuple(packed["type_names"].tolist()), **arrays)
    files, objects = len(labels.frames), len(labels.object_ids)
    rows = {"agent_ids": files, "frames": files, "poses": files, "offsets": files + 1}
    for name, row in _ARRAYS.items():
        if arrays[name].shape != (rows.get(name, objects), *row):
            raise ValueError(f"{name} has shape {arrays[name].shape}")
    if labels.offsets[0] != 0 or labels.offsets[-1] != objects:
        raise ValueError("offsets do not fit the objects")
    return labels


def _path(folder: Path, key: str) -> Path:
    return folder / f"{re.sub('[^A-Za-z0-9_.-]', '_', key)}.npz"
