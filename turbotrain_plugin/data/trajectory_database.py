"""Tracks from a root's ``trajectory_database*.pkl``: an optional second source beside the labels.

Training does not need it, since the union of the labels of all agents gives the same tracks; it
serves to compare the two. It holds no class, size or heading.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.safe_pickle import load_pickle, numpy_names
from turbotrain_plugin.structures import UserError

__all__ = ["Trajectory", "read_trajectory_database"]


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One object through one scene.

    Attributes:
        values: (T, 4) float64: frame, x, y, z in the world, metres.
        valid: (T,) bool.
    """

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]


def read_trajectory_database(path: Path) -> dict[int, dict[int, Trajectory]]:
    """Return scene index to object id to trajectory.

    Raises:
        UserError: When the file is missing, damaged, names foreign code, or holds something else.
    """
    content = load_pickle(path, numpy_names())
    try:
        return {
            int(scene): {int(object_id): _trajectory(item) for object_id, item in objects.items()}
            for scene, objects in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected scene index -> object id -> trajectory (T, 4) and trajectory_mask "
            f"(T,); {type(error).__name__}: {error}."
        ) from error


def _trajectory(item: dict[str, object]) -> Trajectory:
    # The unpickler leaves its own stand-ins for arrays; `values` is the decoded array.
    values = np.asarray(item["trajectory"].values, dtype=np.float64)  # type: ignore[attr-defined]
    valid = np.asarray(item["trajectory_mask"].values).astype(np.bool_)  # type: ignore[attr-defined]
    if values.ndim != 2 or values.shape[1] != 4 or valid.shape != values.shape[:1]:
        raise ValueError(f"shapes are {values.shape} and {valid.shape}")
    return Trajectory(values, valid)
