"""The agents of a sample as one: all clouds joined (early fusion), or one agent alone (late)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config.data import Range
from turbotrain_plugin.data.voxelize import inside_range
from turbotrain_plugin.structures import Sample

__all__ = ["busiest_neighbour", "join_agents", "single_agent"]


def join_agents(sample: Sample) -> Sample:
    """Return the sample with one agent, the ego, that saw the points of all agents.

    Points are joined frame by frame, the ego's first, in the order of the agents; none is changed,
    since they are in the ego frame already. A frame is valid when any agent has it.
    """
    frames = range(sample.frame_valid.shape[1])
    clouds = [np.concatenate([own[t] for own in sample.points]) for t in frames]
    return replace(
        single_agent(sample, 0),
        frame_valid=np.any(sample.frame_valid, axis=0)[None],
        points=[clouds],
    )


def single_agent(sample: Sample, index: int) -> Sample:
    """Return the sample with one of its agents, its points still in the ego frame."""
    one = slice(index, index + 1)
    return replace(
        sample,
        agent_ids=sample.agent_ids[one],
        agent_types=sample.agent_types[one],
        frame_valid=sample.frame_valid[one],
        ego_SE3_agent=sample.ego_SE3_agent[one],
        time_offset_s=sample.time_offset_s[one],
        points=sample.points[one],
    )


def busiest_neighbour(sample: Sample, range_m: Range) -> NDArray[np.int64]:
    """Return (1,) the most current points in the range that a neighbour has, 0 without one."""
    counts = [int(inside_range(frames[-1], range_m).sum()) for frames in sample.points[1:]]
    return np.array([max(counts, default=0)], np.int64)
