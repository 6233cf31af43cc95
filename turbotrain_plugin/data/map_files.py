"""Map files: the pickle read without running it, written without the module it names.

A map file is a pickled ``Map`` of ``Lane`` of ``MapPoint`` from a module of the V2XPnP host. We
need neither: reading puts inert stand-ins in their place (``safe_pickle``), writing emits the
pickle opcodes by hand, so nothing is registered in ``sys.modules`` for the purpose.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.safe_pickle import load_pickle
from turbotrain_plugin.structures import UserError

__all__ = ["DRIVING", "Lane", "VectorMap", "read_map", "write_map"]

DRIVING: Final = 1
"""Lane type of a driving lane. Others: 0 unknown, 2 sidewalk, 3 shoulder, 4 parking lane."""

_MODULE: Final = "opencood.data_utils.datasets.map.map_types"
_RECORDS: Final = (
    "Map",
    "Lane",
    "MapPoint",
    "Crosswalk",
    "RoadLine",
    "WalkButton",
    "TrafficSignalLaneState",
    "DynamicState",
)


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """One lane in world coordinates, metres.

    Attributes:
        road_id: Road number.
        lane_id: Lane number on the road.
        type: 0 unknown, 1 driving, 2 sidewalk, 3 shoulder, 4 parking lane.
        polyline: (N, 3) float64, centre line.
        boundary: (K, 3) float64, edge points; (0, 3) when the map has none.
        entry: Names ``<road_id>_<lane_id>`` of the lanes that lead here.
        exit: Names of the lanes that follow.
    """

    road_id: int
    lane_id: int
    type: int
    polyline: NDArray[np.float64]
    boundary: NDArray[np.float64]
    entry: tuple[str, ...] = ()
    exit: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return ``<road_id>_<lane_id>``, as other lanes refer to this one."""
        return f"{self.road_id}_{self.lane_id}"


@dataclass(frozen=True, slots=True, eq=False)
class VectorMap:
    """All lanes of one area, world coordinates."""

    lanes: tuple[Lane, ...]


# ------------------------------------------------------------------------------------------ reading


def read_map(path: Path) -> VectorMap:
    """Return the lanes of a map pickle; other features (crosswalks, signals) are passed over.

    Raises:
        UserError: When the file is missing, damaged, names foreign code, or holds no map.
    """
    records = {name: type(name, (), {}) for name in _RECORDS}
    names: dict[tuple[str, str], Any] = {(_MODULE, name): stub for name, stub in records.items()}
    names[(_MODULE, "LaneType")] = type("LaneType", (int,), {})
    content = load_pickle(path, names)
    features = getattr(content, "map_features", None)
    if isinstance(features, dict):
        features = list(features.values())
    if type(content) is not records["Map"] or not isinstance(features, (list, tuple)):
        raise UserError(f"{path}: holds no vector map (a Map with a list of map_features).")
    lanes = [feature for feature in features if type(feature) is records["Lane"]]
    try:
        return VectorMap(tuple(_lane(item) for item in lanes))
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: a lane of the map is damaged ({error}).") from error


def _lane(item: Any) -> Lane:  # noqa: ANN401 - a stand-in
    return Lane(
        road_id=int(item.road_id),
        lane_id=int(item.lane_id),
        type=int(item.type),
        polyline=_points(item.polyline),
        boundary=_points(getattr(item, "boundary", None) or ()),
        entry=tuple(str(name) for name in getattr(item, "entry_lanes", None) or ()),
        exit=tuple(str(name) for name in getattr(item, "exit_lanes", None) or ()),
    )


def _points(points: Iterable[Any]) -> NDArray[np.float64]:
    rows = [(float(point.x), float(point.y), float(point.z)) for point in points]
    array = np.array(rows, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(array).all():
        raise ValueError("a point is not finite")
    return array


# ------------------------------------------------------------------------------------------ writing


def write_map(path: Path, vector_map: VectorMap) -> None:
    """Write a map as hosts expect it: pickle protocol 2 that names Map, Lane and MapPoint only.

    The file is written to a temporary name and renamed.
    """
    writer = _MapPickle()
    partial = path.with_name(f"{path.name}.part{os.getpid()}")
    partial.write_bytes(writer.dump(vector_map))
    partial.replace(path)


class _MapPickle:
    """Pickle opcodes of a map; field names and globals are memoised, as the real pickler does."""

    def __init__(self) -> None:
        self._out = bytearray(pickle.PROTO + b"\x02")
        self._memo: dict[str, int] = {}

    def dump(self, vector_map: VectorMap) -> bytes:
        """Return the whole pickle."""
        self._begin("Map")
        self._name("map_features")
        self._out += pickle.EMPTY_LIST + pickle.MARK
        for lane in vector_map.lanes:
            self._lane(lane)
        self._out += pickle.APPENDS
        self._name("dynamic_states")
        self._out += pickle.NONE
        self._end()
        return bytes(self._out + pickle.STOP)

    def _lane(self, lane: Lane) -> None:
        self._begin("Lane")
        for field in ("road_id", "lane_id", "type"):
            self._name(field)
            self._out += pickle.BININT + struct.pack("<i", int(getattr(lane, field)))
        self._name("polyline")
        self._map_points(lane.polyline)
        self._name("entry_lanes")
        self._texts(lane.entry)
        self._name("exit_lanes")
        self._texts(lane.exit)
        self._name("boundary")
        self._map_points(lane.boundary)
        self._end()

    def _map_points(self, points: NDArray[np.float64]) -> None:
        self._out += pickle.EMPTY_LIST + pickle.MARK
        for xyz in np.asarray(points, dtype=np.float64).reshape(-1, 3).tolist():
            self._begin("MapPoint")
            for axis, value in zip("xyz", xyz, strict=True):
                self._name(axis)
                self._out += pickle.BINFLOAT + struct.pack(">d", value)
            self._end()
        self._out += pickle.APPENDS

    def _texts(self, texts: Sequence[str]) -> None:
        self._out += pickle.EMPTY_LIST + pickle.MARK
        for text in texts:
            self._out += _unicode(text)
        self._out += pickle.APPENDS

    def _begin(self, record: str) -> None:
        """Push a bare instance of a record and open its state."""
        opcode = pickle.GLOBAL + f"{_MODULE}\n{record}\n".encode()
        self._remembered(f"global {record}", opcode)
        self._out += pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.MARK

    def _end(self) -> None:
        self._out += pickle.SETITEMS + pickle.BUILD

    def _name(self, field: str) -> None:
        self._remembered(field, _unicode(field))

    def _remembered(self, key: str, opcode: bytes) -> None:
        if key in self._memo:
            self._out += pickle.BINGET + bytes([self._memo[key]])
            return
        self._memo[key] = len(self._memo)
        self._out += opcode + pickle.BINPUT + bytes([self._memo[key]])


def _unicode(text: str) -> bytes:
    raw = text.encode("utf-8")
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
