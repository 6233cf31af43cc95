"""Bytes of a file, bounded, and what every cloud goes through once it is an array."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.structures import UserError

__all__ = ["finite_points", "read_bytes"]

_MAX_BYTES: Final = 64 * 2**20
"""A cloud of 128 beams has 4 MB as numbers and about 10 MB as text."""
_FARTHEST_M: Final = 1e6


def read_bytes(path: Path, limit: int = _MAX_BYTES) -> bytes:
    """Return the content of a file of at most ``limit`` bytes.

    Raises:
        UserError: When the file is missing, unreadable or larger.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(
                f"{path}: refused, {size} bytes where such a file has at most {limit}. Check where "
                "the file comes from."
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error


def finite_points(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of (P, 4) whose position is one; an unknown intensity becomes 0.

    NaN and infinity mark missing returns. A damaged bit makes 1e38 of a metre, which later sums
    could not hold: such rows are dropped too.
    """
    there = np.ones(len(points), dtype=np.bool_)
    for axis in range(3):  # whole columns are several times faster than rows of three
        there &= np.abs(points[:, axis]) < _FARTHEST_M
    kept = points.copy() if there.all() else points[there]
    unknown = ~np.isfinite(kept[:, 3])
    if unknown.any():
        kept[unknown, 3] = 0.0
    return kept
