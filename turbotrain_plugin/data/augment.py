"""Augmentation: one similarity per sample, applied to everything the sample holds.

A draw is p -> s Q p about the ego LiDAR: a factor s on all three axes and a horizontal orthogonal
Q, a turn and / or mirror images. What each part of a sample becomes (A = s Q):

- points, box centres, futures, past, map positions: A p; map directions: Q d; sizes: s times;
- box yaw: the direction Q (cos yaw, sin yaw), so a mirror image turns the heading the right way;
- ``ego_SE3_agent`` M: A M A^-1. A mirror image is no rigid motion, so composing it on one side only
  would leave SE(3); composed on both sides it reads "the agent's own frame is mirrored, turned and
  scaled as the ego's is", the result is rigid again (rotation Q R Q^-1, translation A t), the ego's
  current matrix stays the identity, and augmented agent-frame points A q still land on the
  augmented points: (A M A^-1) A q = A (M q).
- ``world_SE3_ego`` W: W A^-1. The world stays the true one, so the product takes augmented points
  back to it; its 3 x 3 part then holds s and the mirror image and is no rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import AugmentStep
from turbotrain_plugin.structures import GroundTruth, MapSegments, Sample

__all__ = ["Similarity", "augment", "draw"]


@dataclass(frozen=True, slots=True)
class Similarity:
    """A horizontal orthogonal matrix and a factor.

    Attributes:
        turn: (2, 2) float64, orthogonal; determinant -1 for a mirror image.
        scale: Factor on x, y, z.
    """

    turn: NDArray[np.float64]
    scale: float

    @property
    def is_identity(self) -> bool:
        """Whether nothing would change."""
        return self.scale == 1.0 and bool(np.array_equal(self.turn, np.eye(2)))

    def matrix(self) -> NDArray[np.float64]:
        """Return the (4, 4) matrix A."""
        full = np.eye(4)
        full[:2, :2] = self.turn * self.scale
        full[2, 2] = self.scale
        return full

    def xy(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return positions (..., 2) moved."""
        return (values @ (self.turn * self.scale).T).astype(np.float32)

    def direction(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return directions (..., 2) turned, lengths kept."""
        return (values @ self.turn.T).astype(np.float32)

    def points(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return points (P, 3+) moved; further columns are kept."""
        moved = values.copy()
        moved[:, :3] = values[:, :3] @ self.matrix()[:3, :3].T
        return moved

    def boxes(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes (M, 7) moved, turned and resized."""
        moved = values.copy()
        moved[:, :2] = self.xy(values[:, :2])
        moved[:, 2:6] *= np.float32(self.scale)
        heading = np.stack([np.cos(values[:, 6]), np.sin(values[:, 6])], axis=1)
        turned = heading.astype(np.float64) @ self.turn.T
        moved[:, 6] = np.arctan2(turned[:, 1], turned[:, 0])
        return moved


def draw(steps: Sequence[AugmentStep], rng: np.random.Generator) -> Similarity:
    """Draw the transforms of ``data_augment`` in order and compose them.

    ``random_world_flip`` mirrors with probability one half per axis in ``ALONG_AXIS_LIST``; the
    named axis keeps its sign, ``x`` negates y (OpenCOOD's meaning). ``random_world_rotation`` turns
    about z by a uniform angle (one value a: from -a to a), ``random_world_scaling`` multiplies by a
    uniform factor.
    """
    turn, scale = np.eye(2), 1.0
    for step in steps:
        change, factor = _DRAWS[step.NAME](step, rng)
        turn, scale = change @ turn, factor * scale
    return Similarity(turn, scale)


def augment(sample: Sample, change: Similarity) -> Sample:
    """Return the sample seen through ``change``; see the module's text for each part."""
    if change.is_identity:
        return sample
    matrix = change.matrix()
    inverse = np.linalg.inv(matrix)
    conjugated = matrix @ sample.ego_SE3_agent.astype(np.float64) @ inverse
    return replace(
        sample,
        ego_SE3_agent=conjugated.astype(np.float32),
        world_SE3_ego=sample.world_SE3_ego @ inverse,
        points=[[change.points(cloud) for cloud in clouds] for clouds in sample.points],
        truth=None if sample.truth is None else _truth(sample.truth, change),
        map=None if sample.map is None else _map(sample.map, change),
    )


def _truth(truth: GroundTruth, change: Similarity) -> GroundTruth:
    return replace(
        truth,
        boxes=change.boxes(truth.boxes),
        futures=change.xy(truth.futures),
        past=change.xy(truth.past),
    )


def _map(segments: MapSegments, change: Similarity) -> MapSegments:
    # No part of the change translates, so the zeros of padded points stay zero.
    points = segments.points.copy()
    points[..., 0:2] = change.xy(points[..., 0:2])
    points[..., 2:4] = change.direction(points[..., 2:4])
    points[..., 5:7] = change.xy(points[..., 5:7])
    return replace(segments, points=points)


_Drawn = tuple[NDArray[np.float64], float]


def _flip(step: AugmentStep, rng: np.random.Generator) -> _Drawn:
    turn = np.eye(2)
    for axis in step.ALONG_AXIS_LIST:
        if rng.random() < 0.5:
            turn = np.diag([1.0, -1.0] if axis == "x" else [-1.0, 1.0]) @ turn
    return turn, 1.0


def _rotation(step: AugmentStep, rng: np.random.Generator) -> _Drawn:
    angles = step.WORLD_ROT_ANGLE
    low, high = (-angles[0], angles[0]) if len(angles) == 1 else (angles[0], angles[-1])
    angle = rng.uniform(low, high)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]]), 1.0


def _quarter_turn(step: AugmentStep, rng: np.random.Generator) -> _Drawn:  # noqa: ARG001
    """Turn by 0, 90, 180 or 270 degrees, which keeps boxes along the grid along the grid.

    Our choice, not in OpenCOOD: at a junction most of what an ego sees drives along its own road,
    and the crossing road is learnt late or not at all.
    """
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[int(rng.integers(4))]
    return np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64), 1.0


def _scaling(step: AugmentStep, rng: np.random.Generator) -> _Drawn:
    return np.eye(2), float(rng.uniform(*step.WORLD_SCALE_RANGE))


_DRAWS: dict[str, Callable[[AugmentStep, np.random.Generator], _Drawn]] = {
    "random_world_flip": _flip,
    "random_world_rotation": _rotation,
    "random_world_quarter_turn": _quarter_turn,
    "random_world_scaling": _scaling,
}
