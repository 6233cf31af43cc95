"""A host's batch of intermediate fusion as ours: voxels, agents, points; T = 1.

Clouds of all agents are in the ego's frame already (``proj_first``, the hosts' default), so every
pose is the identity. Axes stay the host's.
"""

from __future__ import annotations

from typing import Any

import torch

from turbotrain_plugin.structures import Batch, ReconstructionPoints, UserError, Voxels


def to_batch(ego: dict[str, Any]) -> Batch:
    """Return our batch of a host's ``batch['ego']``.

    Raises:
        UserError: When it holds no voxels, as with bird's-eye-view pre-processors.
    """
    lidar = ego.get("processed_lidar", {})
    if "voxel_features" not in lidar:
        raise UserError(
            "This needs voxels: preprocess.core_method must be SpVoxelPreprocessor. Found a batch "
            f"with {', '.join(lidar) or 'no processed_lidar'}."
        )
    points = lidar["voxel_features"]
    record_len = ego.get("record_len")
    if record_len is None:  # early and late fusion: one cloud a frame
        frames = ego["label_dict"]["targets"].shape[0]
        record_len = torch.ones(frames, dtype=torch.int64, device=points.device)
    agents = int(record_len.sum())
    identity = torch.eye(4, device=points.device).expand(agents, 1, 4, 4)
    return Batch(
        record_len=record_len,
        agent_types=torch.zeros(agents, dtype=torch.int64, device=points.device),
        frame_valid=torch.ones(agents, 1, dtype=torch.bool, device=points.device),
        time_offset_s=torch.zeros(agents, device=points.device),
        ego_SE3_agent=identity,
        voxels=Voxels(points, lidar["voxel_coords"], lidar["voxel_num_points"], agents),
        map=None,
        targets=None,
        reconstruction=None,
        truth=[None] * len(record_len),
        keys=[],
    )


def with_points(batch: Batch) -> Batch:
    """Return the batch with the points in its voxels as what pretraining rebuilds."""
    voxels = batch.voxels
    slots = torch.arange(voxels.points.shape[1], device=voxels.points.device)
    used = slots < voxels.point_counts.unsqueeze(1)
    agent = voxels.coordinates[:, 0].long().unsqueeze(1).expand_as(used)[used]
    sample_of_agent = torch.repeat_interleave(
        torch.arange(len(batch.record_len), device=agent.device), batch.record_len
    )
    batch.reconstruction = ReconstructionPoints(
        xyz=voxels.points[used][:, :3],
        sample=sample_of_agent[agent],
        agent=agent,
        age=torch.zeros_like(agent),
    )
    return batch
