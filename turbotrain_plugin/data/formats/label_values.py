"""Values of a label file, checked one by one: poses, ids and boxes as every layout writes them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.geometry.boxes import wrap_angle
from turbotrain_plugin.structures import AgentFrame, UserError

__all__ = ["LabelledObjects", "labelled_objects", "make_frame", "numbers", "object_id"]

_WHOLE: Final = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_LARGEST: Final = 1e12
"""Beyond 1e12 metres or degrees a number is a mistake, and may not even fit a float."""
_LONGEST_NAME: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class LabelledObjects:
    """Objects of one label file, in the frame and handedness of the file. M objects.

    Attributes:
        ids: M ids.
        values: (M, 9) float64 x, y, z, length, width, height, yaw, roll, pitch; metres and rad.
        raw_types: M class names.
    """

    ids: list[int]
    values: NDArray[np.float64]
    raw_types: tuple[str, ...]


def labelled_objects(content: Mapping[Any, Any], path: Path) -> LabelledObjects:
    """Return the objects under ``vehicles``.

    ``center`` is added to ``location`` without rotation and ``extent`` holds half sizes, as in the
    hosts' readers. A file without ``vehicles`` has no objects; an object without ``obj_type`` is a
    ``Car``.

    Raises:
        UserError: Naming the file, and the object where one is at fault.
    """
    objects = content.get("vehicles") or {}
    if not isinstance(objects, dict):
        raise UserError(f"{path}: vehicles must map object ids to objects.")
    ids = [object_id(key, f"{path}: object id") for key in objects]
    if len(set(ids)) != len(ids):
        raise UserError(f"{path}: an object id is given twice, once as number and once as text.")
    items = zip(ids, objects.values(), strict=True)
    rows = [_object(item, f"{path}: object {number}") for number, item in items]
    values = np.array([row for row, _ in rows], dtype=np.float64).reshape(-1, 9)
    return LabelledObjects(ids, values, tuple(name for _, name in rows))


def make_frame(
    agent_id: int, frame: int, world_SE3_lidar: NDArray[np.float64], objects: LabelledObjects
) -> AgentFrame:
    """Return the frame of objects that are right-handed and in the world."""
    values = objects.values
    return AgentFrame(
        agent_id=agent_id,
        is_infrastructure=agent_id < 0,
        frame=frame,
        world_SE3_lidar=world_SE3_lidar,
        object_ids=np.array(objects.ids, dtype=np.int64),
        world_boxes=np.concatenate([values[:, :6], wrap_angle(values[:, 6:7])], axis=1),
        roll_pitch_rad=values[:, 7:].copy(),
        raw_types=objects.raw_types,
    )


def object_id(key: object, what: str) -> int:
    """Return an id given as number or text.

    Raises:
        UserError: When it is no whole number of 64 bits; ``what`` begins the message.
    """
    whole = type(key) is int and -(2**63) <= key < 2**63
    text = key if isinstance(key, str) else str(key) if whole else ""
    if len(text) > 20 or not _WHOLE.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
        raise UserError(f"{what} {_brief(key)} is not a whole number.")
    return int(text)


def numbers(mapping: Mapping[Any, Any], key: str, count: int, where: str) -> list[float]:
    """Return ``count`` finite numbers under ``key``.

    Raises:
        UserError: Naming the key and what was found.
    """
    values = mapping.get(key)
    if not isinstance(values, list) or len(values) != count:
        found = _brief(values)
        raise UserError(f"{where}: {key} must be a list of {count} numbers. Found {found}.")
    if not all(type(value) in (int, float) and abs(value) < _LARGEST for value in values):
        raise UserError(f"{where}: {key} must hold finite numbers. Found {_brief(values)}.")
    return [float(value) for value in values]


def _object(item: object, where: str) -> tuple[list[float], str]:
    """Return x, y, z, length, width, height, yaw, roll, pitch, and the class name."""
    if not isinstance(item, dict):
        raise UserError(f"{where}: must be a mapping with location, angle and extent.")
    location = numbers(item, "location", 3, where)
    center = numbers(item, "center", 3, where) if item.get("center") is not None else [0.0] * 3
    roll, yaw, pitch = map(math.radians, numbers(item, "angle", 3, where))
    half = numbers(item, "extent", 3, where)
    if min(half) <= 0:
        raise UserError(f"{where}: extent holds half sizes above 0 in metres. Found {half}.")
    centre = [a + b for a, b in zip(location, center, strict=True)]
    return [*centre, *(2.0 * size for size in half), yaw, roll, pitch], _class_name(item, where)


def _class_name(item: Mapping[Any, Any], where: str) -> str:
    # Texts only: nested aliases could be turned into an endless one.
    name = item.get("obj_type", "Car")
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise UserError(
            f"{where}: obj_type must be a class name of at most {_LONGEST_NAME} characters. "
            f"Found {_brief(name)}."
        )
    return name


def _brief(value: object) -> str:
    """Return a short text of whatever a file held, at a bounded cost."""
    if isinstance(value, list):
        if not all(value is None or isinstance(value, _SCALARS) for value in value[:10]):
            return "list"
        shown = f"[{', '.join(map(_brief, value[:10]))}]"
        return f"{len(value)} values, {shown}" if len(value) > 10 else shown
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of more than 30 digits"  # Python refuses to print the longest
    if isinstance(value, _SCALARS):
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:97]}..."
    return "nothing" if value is None else type(value).__name__


_SCALARS: Final = (bool, int, float, str)
