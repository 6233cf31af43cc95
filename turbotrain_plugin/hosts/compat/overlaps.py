"""The IoU by which the hosts match anchors, for checkouts whose Cython extension is not built.

It is computed on axis-aligned boxes with one added to every side, as if metres were pixels
(Girshick's convention): sides ``x2 - x1 + 1``. Labels equal to the host's need the same.
"""

from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.hosts.compat.base import Shim
from turbotrain_plugin.hosts.compat.packages import supplied

_MODULE: Final = "opencood.utils.box_overlaps"


def bbox_overlaps(
    boxes: NDArray[np.float32], query_boxes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return (N, K) float32 overlaps of (N, 4) and (K, 4) boxes x1, y1, x2, y2."""
    one = np.float32(1.0)
    first, second = boxes[:, None, :], query_boxes[None, :, :]
    shared = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    shared = np.maximum(shared + one, np.float32(0.0)).prod(-1)
    areas = [(b[..., 2:] - b[..., :2] + one).prod(-1) for b in (first, second)]
    overlaps: NDArray[np.float32] = (shared / (areas[0] + areas[1] - shared)).astype(np.float32)
    return overlaps


def _not_built() -> bool:
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    folders = [Path(entry or ".") / "opencood" / "utils" for entry in sys.path]
    return not any((f / f"box_overlaps{s}").is_file() for f in folders for s in suffixes)


BOX_OVERLAPS: Final = Shim(
    "extension.box_overlaps",
    "The checkout's Cython extension is not built for this Python; numpy does its work.",
    _not_built,
    lambda: supplied(_MODULE, {"bbox_overlaps": bbox_overlaps}),
)
