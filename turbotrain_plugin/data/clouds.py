"""Batches straight from point clouds: for networks and loops of one's own, without data sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.prepare import (
    PreparedSample,
    collate,
    reconstruction_points,
    sample_voxels,
)
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import VEHICLE, Batch, Sample

__all__ = ["cloud_batch"]


def cloud_batch(
    clouds: Sequence[Sequence[NDArray[np.floating]]],
    grid: BevGrid,
    *,
    max_points: int = 5,
    max_voxels: int = 32000,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Return a batch of one sensor's clouds, with the points that pretraining rebuilds.

    Args:
        clouds: For each sample its T clouds (P, 3+), the current one last, all in the frame of the
            current sensor; columns beyond x, y, z are left out.
        grid: The voxel grid; points outside are dropped.
        max_points: Points kept per voxel.
        max_voxels: Voxels kept per cloud.
        rng: Shuffles the points first, so that what the limits drop is random.

    Raises:
        ValueError: When samples differ in their number of clouds, or there are none.
    """
    lengths = {len(frames) for frames in clouds}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "`clouds` must hold the same number of clouds, at least one, for every sample. "
            f"Found {sorted(lengths)}."
        )
    frames = lengths.pop()
    samples = [_sample(number, own) for number, own in enumerate(clouds)]
    return collate(
        [
            PreparedSample(
                key=(sample.scene, sample.frame, 0),
                agent_types=sample.agent_types,
                frame_valid=sample.frame_valid,
                time_offset_s=sample.time_offset_s,
                ego_SE3_agent=sample.ego_SE3_agent,
                voxels=sample_voxels(sample, grid, max_points, max_voxels, rng),
                map=None,
                targets=None,
                reconstruction=reconstruction_points(sample, grid, frames),
                truth=None,
            )
            for sample in samples
        ]
    )


def _sample(number: int, clouds: Sequence[NDArray[np.floating]]) -> Sample:
    points = [_with_intensity(cloud) for cloud in clouds]
    return Sample(
        scene="clouds",
        frame=number,
        agent_ids=(0,),
        agent_types=np.full(1, VEHICLE, np.int64),
        frame_valid=np.ones((1, len(points)), bool),
        ego_SE3_agent=np.tile(np.eye(4, dtype=np.float32), (1, len(points), 1, 1)),
        time_offset_s=np.zeros(1, np.float32),
        world_SE3_ego=np.eye(4),
        points=[points],
        truth=None,
        map=None,
    )


def _with_intensity(cloud: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return (P, 4) with an intensity of zero."""
    if cloud.ndim != 2 or cloud.shape[1] < 3:
        raise ValueError(f"a cloud must have shape (P, 3+). Found {cloud.shape}.")
    return np.pad(cloud[:, :3].astype(np.float32), ((0, 0), (0, 1)))
