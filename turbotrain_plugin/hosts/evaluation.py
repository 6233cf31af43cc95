"""A host's model over a split: the host's own scores, and both our APs of the same boxes.

Ours are taken over the detections as the host hands them out, with no cut of our own, so the range
is the host's. The host's axes are left-handed; corners are compared within them, and areas and
overlaps are the same as in ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation.average_precision import (
    SampleHits,
    ap_global,
    ap_opencood,
    match_greedily,
    threshold_name,
)
from turbotrain_plugin.evaluation.matching import overlap_matrix
from turbotrain_plugin.hosts.base import FrameResult
from turbotrain_plugin.hosts.session import Session


def boxes_of_corners(corners: Tensor) -> NDArray[np.float32]:
    """Return (N, 7) x, y, z, length, width, height, yaw of (N, 8, 3) corners in the host's order.

    Corners 0 to 3 are the bottom: front with y negative, front, rear, rear; 4 to 7 lie above them.
    """
    bottom = corners[:, :4]
    along, across = bottom[:, 0] - bottom[:, 3], bottom[:, 1] - bottom[:, 0]
    sizes = [along.norm(dim=1), across.norm(dim=1), corners[:, 4, 2] - corners[:, 0, 2]]
    yaw = torch.atan2(along[:, 1], along[:, 0])
    boxes = torch.cat([corners.mean(1), torch.stack([*sizes, yaw], dim=1)], dim=1)
    found: NDArray[np.float32] = boxes.float().numpy()
    return found


def detect_all(
    session: Session,
    model: nn.Module,
    dataset: Any,  # noqa: ANN401 - a host's
    hypes: dict[str, Any],
    workers: int,
) -> Iterator[FrameResult]:
    """Yield what the host detects in every frame, in the order of the data set."""
    loader = DataLoader(
        dataset, batch_size=1, num_workers=workers, collate_fn=dataset.collate_batch_test
    )
    method = session.host.fusion_method(hypes)
    device = next(model.parameters()).device
    model.eval()
    for batch in loader:
        if batch is None:
            continue
        with torch.no_grad():
            moved = session.modules.train_utils.to_device(batch, device)
            yield session.host.infer(session.modules, moved, model, dataset, method)


def our_scores(frames: Sequence[FrameResult], keys: EvaluationConfig) -> dict[str, Any]:
    """Return the ``detection`` entry of results.json, and AP per class where there are several."""
    labels = {int(label) for frame in frames for label in frame.truth_labels.unique()}
    found = _scores_of([_hits(frame, keys, None) for frame in frames], keys)
    if len(labels) > 1:
        found["by_class"] = {
            str(label): _scores_of([_hits(frame, keys, label) for frame in frames], keys)
            for label in sorted(labels)
        }
    return found


def _hits(frame: FrameResult, keys: EvaluationConfig, label: int | None) -> SampleHits:
    kept = slice(None) if label is None else frame.labels == label
    kept_truth = slice(None) if label is None else frame.truth_labels == label
    detected, truth = boxes_of_corners(frame.boxes[kept]), boxes_of_corners(frame.truth[kept_truth])
    scores = frame.scores[kept].double().numpy()
    order = np.argsort(-scores, kind="stable")
    boxes = detected[order]
    return SampleHits(
        scores=scores[order],
        matched=match_greedily(overlap_matrix(boxes, truth), keys.iou),
        distance_m=np.hypot(boxes[:, 0], boxes[:, 1]),
        object_distance_m=np.hypot(truth[:, 0], truth[:, 1]),
    )


def _scores_of(samples: Sequence[SampleHits], keys: EvaluationConfig) -> dict[str, Any]:
    names = {index: threshold_name(iou) for index, iou in enumerate(keys.iou)}
    return {
        "ap_global": {name: ap_global(samples, index) for index, name in names.items()},
        "ap_opencood": {name: ap_opencood(samples, index) for index, name in names.items()},
        "n_gt": sum(sample.n_objects for sample in samples),
        "n_det": sum(len(sample.scores) for sample in samples),
    }
