"""V2XPnP-Seq and V2X-Real: ``root/<split>/<scenario>/<agent>/<frame>.{yaml,bin}`` at 10 Hz.

    root/{train,val,validate,test}/2023-03-17-15-53-02_1_0/{1,2,-1,-2}/000000.yaml, 000000.bin
    root/map/*.pkl

Right-handed, boxes in the world. Where a ``.bin`` is missing, a ``.pcd`` beside it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.files import finite_points, read_bytes
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.label_values import labelled_objects, make_frame, numbers
from turbotrain_plugin.data.formats.pcd import read_pcd
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.data.formats.yaml_text import read_labels
from turbotrain_plugin.data.vector_map import VectorMap, read_map
from turbotrain_plugin.geometry.poses import pose_to_matrix
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["V2XPnPSeqReader", "read_cloud", "read_label_frame"]

_POINT_BYTES: Final = 16


def read_label_frame(path: Path, agent_id: int, frame: int) -> AgentFrame:
    """Return pose and labels of one label file; see ``labelled_objects``.

    Raises:
        UserError: Naming the file, and the object where one is at fault.
    """
    content = read_labels(path)
    pose = numbers(content, "lidar_pose", 6, str(path))
    return make_frame(agent_id, frame, pose_to_matrix(pose), labelled_objects(content, path))


def read_cloud(path: Path) -> NDArray[np.float32]:
    """Return (P, 4) x, y, z, intensity of a ``.bin``; rows with a non-finite position dropped.

    Raises:
        UserError: When the file is missing or its size is no whole number of points.
    """
    raw = read_bytes(path)
    if len(raw) % _POINT_BYTES:
        raise UserError(
            f"{path}: truncated, its {len(raw)} bytes are no multiple of {_POINT_BYTES} (4 float32 "
            "per point). Copy the file again from its source."
        )
    return finite_points(np.frombuffer(raw, dtype="<f4").reshape(-1, 4).astype(np.float32))


class V2XPnPSeqReader(SequenceReader):
    """Reader of V2XPnP-Seq and V2X-Real; see ``SequenceReader``."""

    clouds: ClassVar[tuple[str, ...]] = ("bin", "pcd")
    has_maps: ClassVar[bool] = True

    def __init__(
        self, roots: Sequence[Path], *, split: str | None = None, cache_dir: Path | None = None
    ) -> None:
        super().__init__(roots, split=split, cache_dir=cache_dir)
        self._maps: dict[Path, VectorMap] = {}

    @staticmethod
    def read_label_file(path: Path, agent_id: int, frame: int) -> AgentFrame:
        """Return pose and labels of one label file."""
        return read_label_frame(path, agent_id, frame)

    @staticmethod
    def read_cloud_file(path: Path) -> NDArray[np.float32]:
        """Return the points of a ``.bin`` or ``.pcd``."""
        return read_pcd(path) if path.suffix == ".pcd" else read_cloud(path)

    @classmethod
    def map_file(cls, scene: SceneIndex) -> Path | None:
        """Return the map whose name fits the scene: by its roadside units, see ``read_map``."""
        return _map_path(scene)

    def read_map(self, scene: SceneIndex) -> VectorMap | None:
        """Return the junction map for scenes with a roadside unit, else the corridor map.

        Raises:
            UserError: When the map is damaged, unsafe, or none of several files can be chosen.
        """
        path = self.map_file(scene)
        if path is None:
            return None
        if path not in self._maps:
            self._maps[path] = read_map(path)
        return self._maps[path]


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
