"""Raw head outputs to objects: score, decode, suppress, cut to the range.

In OpenCOOD's order, so that the same weights give the same boxes: scores above the threshold, the
best ``nms_candidates`` of them, boxes that are too long dropped, rotated NMS, boxes not wholly
inside the evaluation range dropped. Trajectories are offsets from the box centre; they are added to
the *decoded* centre and follow their box by index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.config import Postprocess
from turbotrain_plugin.geometry.anchors import decode_boxes
from turbotrain_plugin.geometry.boxes import bev_corners, inside_range
from turbotrain_plugin.geometry.iou import nms_bev
from turbotrain_plugin.structures import DetectedObjects, Predictions


@torch.no_grad()
def decode(
    predictions: Predictions,
    anchors: Tensor,
    *,
    postprocess: Postprocess,
    range_m: Sequence[float],
) -> list[DetectedObjects]:
    """Return the detected objects of each sample, by falling score; of each agent in late fusion.

    Scores are computed in float32 whatever the precision of the heads. The candidates are brought
    to the CPU first, so that every device suppresses alike; equal scores keep the order of the
    anchors.

    Args:
        predictions: Outputs for B samples.
        anchors: (H, W, anchors, 7) boxes.
        postprocess: Thresholds.
        range_m: Evaluation range x, y, z min, then max.

    Raises:
        ValueError: When the shapes do not fit or an output that matters is not finite.
    """
    _check(predictions, anchors)
    flat_anchors = anchors.reshape(-1, 7)
    decoded: list[DetectedObjects] = []
    for sample in range(len(predictions.class_logits)):
        scores = predictions.class_logits[sample].float().sigmoid().reshape(-1)
        chosen = _candidates(scores, postprocess)
        codes = predictions.box_codes[sample].reshape(-1, 7)[chosen].float().cpu()
        boxes = decode_boxes(codes, flat_anchors[chosen].float().cpu())
        offsets = None
        if predictions.trajectories is not None:
            all_offsets = predictions.trajectories[sample]
            offsets = all_offsets.reshape(len(flat_anchors), *all_offsets.shape[-2:])[chosen]
            offsets = offsets.float().cpu()
        decoded.append(_suppress(boxes, scores[chosen].cpu(), offsets, postprocess, tuple(range_m)))
    return decoded


def _candidates(scores: Tensor, postprocess: Postprocess) -> Tensor:
    above = torch.nonzero(scores > postprocess.target_args.score_threshold).reshape(-1)
    order = torch.sort(scores[above], descending=True, stable=True).indices
    return above[order[: postprocess.nms_candidates]]


def _suppress(
    boxes: Tensor,
    scores: Tensor,
    offsets: Tensor | None,
    postprocess: Postprocess,
    range_m: tuple[float, ...],
) -> DetectedObjects:
    if not torch.isfinite(boxes).all() or (
        offsets is not None and not torch.isfinite(offsets).all()
    ):
        raise ValueError(
            "`predictions` must give finite boxes and trajectories. Found NaN or infinity among "
            "the candidates; the network has diverged."
        )
    short = torch.from_numpy(_within_extent(boxes.numpy(), postprocess.max_box_extent))
    candidates = torch.nonzero(short).reshape(-1)
    kept = nms_bev(
        boxes[candidates],
        scores[candidates],
        postprocess.nms_thresh,
        max_candidates=postprocess.nms_candidates,
    )
    index = candidates[kept]
    index = index[torch.from_numpy(inside_range(boxes[index].numpy(), range_m))]
    trajectories = None
    if offsets is not None:
        trajectories = (boxes[index, None, :2] + offsets[index]).numpy()
    return DetectedObjects(boxes[index].numpy(), scores[index].numpy(), trajectories)


def _within_extent(boxes: NDArray[np.float32], limit_m: float) -> NDArray[np.bool_]:
    if limit_m <= 0:
        return np.ones(len(boxes), dtype=bool)
    corners = bev_corners(boxes)
    extent = corners.max(axis=1) - corners.min(axis=1)
    return np.asarray((extent <= limit_m).all(axis=1), dtype=bool)


def _check(predictions: Predictions, anchors: Tensor) -> None:
    logits, codes = predictions.class_logits, predictions.box_codes
    cells = tuple(anchors.shape[:-1])
    if tuple(logits.shape[1:]) != cells or codes.shape != (*logits.shape, 7):
        raise ValueError(
            f"`predictions` must fit the anchors {cells}. Found class logits "
            f"{tuple(logits.shape)} and box codes {tuple(codes.shape)}."
        )
    paths = predictions.trajectories
    if paths is not None and (paths.ndim != 6 or paths.shape[:4] != logits.shape):
        raise ValueError(
            f"`predictions.trajectories` must have shape {(*logits.shape, 'F', 2)}. "
            f"Found {tuple(paths.shape)}."
        )
    if torch.isnan(logits).any():
        raise ValueError("`predictions.class_logits` must not be NaN; the network has diverged.")
