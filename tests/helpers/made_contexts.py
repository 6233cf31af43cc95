"""Fusion contexts with past frames, for fusions that follow motion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from turbotrain_plugin.structures import FrameMaps, FusionContext

INTERVAL_S = 0.5
CELL_M = (0.8, 0.8)


def made_context(
    record_len: Sequence[int],
    frames: Tensor | None,
    shape: tuple[int, int],
    *,
    late_s: Sequence[float] | None = None,
    labels: Tensor | None = None,
) -> FusionContext:
    """Return a context in which everybody sees everything and every frame is there.

    Args:
        record_len: Agents per sample.
        frames: (sum A, T, C, H, W), or None.
        shape: H, W.
        late_s: Age of each agent's newest frame; none is late without it.
        labels: (B, H, W, anchors), or None.
    """
    total = sum(record_len)
    known = None
    if frames is not None:
        valid = torch.ones(frames.shape[:2], dtype=torch.bool)
        known = FrameMaps(frames, valid, INTERVAL_S, CELL_M)
    return FusionContext(
        record_len=torch.tensor(record_len),
        agent_types=torch.zeros(total, dtype=torch.int64),
        roi=torch.ones(total, 1, *shape, dtype=torch.bool),
        time_offset_s=torch.zeros(total) if late_s is None else torch.tensor(late_s),
        ego_SE3_agent=torch.eye(4).expand(total, 4, 4),
        frames=known,
        labels=labels,
    )


def chosen_agents(
    context: FusionContext, index: Sequence[int], record_len: Sequence[int]
) -> FusionContext:
    """Return the context of some of the agents, in the order of ``index``."""
    rows = list(index)
    frames = context.frames
    if frames is not None:
        frames = replace(frames, maps=frames.maps[rows], valid=frames.valid[rows])
    return replace(
        context,
        record_len=torch.tensor(record_len),
        agent_types=context.agent_types[rows],
        roi=context.roi[rows],
        time_offset_s=context.time_offset_s[rows],
        ego_SE3_agent=context.ego_SE3_agent[rows],
        frames=frames,
    )
