"""Whether any two objects of a scene ever touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.objects import SceneObjects

__all__ = ["boxes_overlap", "first_collision"]

F64 = NDArray[np.float64]


def first_collision(objects: SceneObjects) -> tuple[int, int, int] | None:
    """Return (frame, index, index) of the first overlap; None if none."""
    reach = np.hypot(objects.half_sizes[:, 0], objects.half_sizes[:, 1])
    matters = np.triu(np.ones((len(reach), len(reach)), np.bool_), k=1)
    for frame in range(len(objects.xy)):
        xy, there = objects.xy[frame], objects.present[frame]
        apart = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
        close = matters & there[:, None] & there[None] & (apart < reach[:, None] + reach[None])
        a, b = np.nonzero(close)
        if not len(a):
            continue
        yaw, half = objects.yaw[frame], objects.half_sizes[:, :2]
        hit = boxes_overlap((xy[a], yaw[a], half[a]), (xy[b], yaw[b], half[b]))
        if hit.any():
            first = int(np.argmax(hit))
            return frame, int(a[first]), int(b[first])
    return None


def boxes_overlap(a: tuple[F64, F64, F64], b: tuple[F64, F64, F64]) -> NDArray[np.bool_]:
    """Return (P,) whether paired rectangles overlap (separating axes).

    Args:
        a: (P, 2) centres, (P,) yaws in rad, (P, 2) half sizes.
        b: The same of the other rectangle of each pair.
    """
    offset = b[0] - a[0]
    overlap = np.ones(len(offset), np.bool_)
    for yaw in (a[1], a[1] + np.pi / 2, b[1], b[1] + np.pi / 2):
        axis = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
        reach = np.zeros(len(offset))
        for _, turn, half in (a, b):
            reach += half[:, 0] * np.abs(np.cos(turn - yaw)) + half[:, 1] * np.abs(
                np.sin(turn - yaw)
            )
        overlap &= np.abs((offset * axis).sum(axis=1)) < reach
    return overlap
