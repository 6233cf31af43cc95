"""Flaws of real labels, put on purpose into made-up ones.

What they look like was measured on real V2XPnP-Seq tracks: jitter of standing objects, hops of
walking people, tracks with the heading reversed, a second id for the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.objects import Placement, SceneObjects
from turbotrain_plugin.synthetic.presets import LabelNoise

__all__ = ["FlawedLabels", "flaw_labels", "flaw_points"]

F64 = NDArray[np.float64]

_HOP_FRAMES: Final = (4, 13)


@dataclass(frozen=True, slots=True)
class FlawedLabels:
    """What the labels say, instead of what is.

    Attributes:
        centres: (T, N, 3), layout frame.
        angles: (T, N, 3) roll, pitch, yaw in rad.
        hidden: (T, N) bool, labels left out.
        second_ids: (N,) int64, id that the second agent uses; equal to the first id mostly.
    """

    centres: F64
    angles: F64
    hidden: NDArray[np.bool_]
    second_ids: NDArray[np.int64]


def flaw_labels(
    objects: SceneObjects, placement: Placement, noise: LabelNoise, rng: np.random.Generator
) -> FlawedLabels:
    """Return labels with the flaws that ``noise`` asks for; exact ones when it asks for none."""
    frames, count = objects.present.shape
    people = np.array([kind in ("Pedestrian", "Child") for kind in objects.types], dtype=bool)
    hopping = people & (rng.random(count) < noise.staircase_share)
    centres = placement.centres.copy()
    for column in np.nonzero(hopping)[0].tolist():
        centres[:, column] = _staircase(centres[:, column], rng)
    moving = objects.speed > 0.3
    ahead = np.stack(
        [np.cos(objects.yaw), np.sin(objects.yaw), np.zeros_like(objects.yaw)], axis=-1
    )
    along = noise.jitter_moving_m * rng.standard_normal((frames, count, 1)) * ahead
    around = noise.jitter_standing_m * rng.standard_normal((frames, count, 3)) * [1, 1, 0.3]
    centres += np.where(moving[..., None], along, around)
    flipped: NDArray[np.bool_] = rng.random((count, 1)) < noise.flip_share
    # Half a turn about the own up axis: roll and pitch change sign.
    reversed_angles = placement.angles * [-1, -1, 1] + [0, 0, np.pi]
    angles = np.where(flipped, reversed_angles, placement.angles)
    doubled = rng.random(count) < noise.duplicate_share
    second = np.where(doubled, objects.ids + int(objects.ids.max(initial=0)), objects.ids)
    hidden = rng.random((frames, count)) < noise.missing_share
    return FlawedLabels(centres, angles, hidden, second)


def _staircase(track: F64, rng: np.random.Generator) -> F64:
    """Return (T, 3) a track that stands for 4-12 frames and then jumps to where it should be."""
    held = np.zeros(len(track), np.int64)
    start = 0
    while start < len(track):
        end = start + int(rng.integers(*_HOP_FRAMES))
        held[start:end] = start
        start = end
    return track[held]


def flaw_points(
    points: NDArray[np.float32], noise: LabelNoise, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return (P, 4) points of which a share has NaN coordinates."""
    if noise.nan_share:
        points[rng.random(len(points)) < noise.nan_share, :3] = np.nan
    return points
