"""Late fusion: the objects that the agents of a sample found, as one list.

All agents' objects are suppressed together in the ego frame: of boxes that overlap, the best score
stays and takes its trajectory along (OpenCOOD's late fusion, there for boxes). Each agent has
suppressed its own before, because it sends what it has found and not its candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.config import Postprocess
from turbotrain_plugin.geometry.boxes import contains_origin
from turbotrain_plugin.geometry.iou import nms_bev
from turbotrain_plugin.structures import DetectedObjects

_FLOAT_BYTES: Final = 4
_BOX_VALUES: Final = 8
"""x, y, z, length, width, height, yaw and the score."""


def join_objects(
    objects: Sequence[DetectedObjects], rows: Tensor, postprocess: Postprocess
) -> tuple[list[DetectedObjects], int]:
    """Join the objects of each sample's agents.

    A neighbour's box around the origin is dropped: it is the ego itself, which labels leave out
    too (our choice).

    Args:
        objects: Objects of every agent, those of a sample in a row, the ego's first.
        rows: (B,) int64, agents of each sample.
        postprocess: Thresholds; ``nms_thresh`` is that of the joint suppression.

    Returns:
        The objects of each sample, by falling score, and the bytes of the busiest neighbour's
        message: boxes, scores and trajectories as float32.

    Raises:
        ValueError: When the rows do not sum to the number of lists.
    """
    counts = rows.tolist()
    if sum(counts) != len(objects) or min(counts, default=1) < 1:
        raise ValueError(
            f"`rows` must be positive and sum to the {len(objects)} agents. Found {counts}."
        )
    joined, busiest, start = [], 0, 0
    for count in counts:
        ego, *neighbours = objects[start : start + count]
        start += count
        busiest = max([busiest, *(_message_bytes(sent) for sent in neighbours)])
        joined.append(_suppressed([ego, *map(_without_ego, neighbours)], postprocess))
    return joined, busiest


def _message_bytes(sent: DetectedObjects) -> int:
    path = 0 if sent.trajectories is None else int(np.prod(sent.trajectories.shape[1:]))
    return len(sent.boxes) * (_BOX_VALUES + path) * _FLOAT_BYTES


def _without_ego(sent: DetectedObjects) -> DetectedObjects:
    kept = np.flatnonzero(~contains_origin(sent.boxes))
    return _chosen(sent, kept)


def _suppressed(agents: Sequence[DetectedObjects], postprocess: Postprocess) -> DetectedObjects:
    paths = [found.trajectories for found in agents if found.trajectories is not None]
    together = DetectedObjects(
        boxes=np.concatenate([found.boxes for found in agents]),
        scores=np.concatenate([found.scores for found in agents]),
        trajectories=np.concatenate(paths) if len(paths) == len(agents) else None,
    )
    kept = nms_bev(
        torch.from_numpy(together.boxes),
        torch.from_numpy(together.scores),
        postprocess.nms_thresh,
        max_candidates=postprocess.nms_candidates,
    )
    return _chosen(together, kept.numpy())


def _chosen(objects: DetectedObjects, index: NDArray[np.int64]) -> DetectedObjects:
    paths = objects.trajectories
    return DetectedObjects(
        boxes=objects.boxes[index],
        scores=objects.scores[index],
        trajectories=None if paths is None else paths[index],
    )
