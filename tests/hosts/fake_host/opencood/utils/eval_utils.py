"""AP in the order of frames or sorted over all; overlaps are by distance, which is enough here."""

from __future__ import annotations

from typing import Any

import numpy as np


def caluclate_tp_fp(boxes: Any, scores: Any, truth: Any, stat: Any, iou: float) -> None:
    stat[iou]["gt"] += len(truth)
    if boxes is None:
        return
    order = np.argsort(-scores.numpy())
    free = [box.mean(0).numpy() for box in truth]
    for index in order:
        centre = boxes[index].mean(0).numpy()
        gaps = [float(np.hypot(*(centre - other)[:2])) for other in free]
        hit = bool(gaps) and min(gaps) < 4.0 * (1.0 - iou)
        if hit:
            free.pop(int(np.argmin(gaps)))
        stat[iou]["tp"].append(int(hit))
        stat[iou]["fp"].append(int(not hit))
    stat[iou]["score"] += scores.numpy()[order].tolist()


def calculate_ap(stat: Any, iou: float, global_sort_detections: bool) -> Any:
    hits = np.asarray(stat[iou]["tp"], dtype=np.float64)
    if global_sort_detections:
        hits = hits[np.argsort(-np.asarray(stat[iou]["score"]), kind="stable")]
    true = hits.cumsum()
    precision = true / np.arange(1, len(hits) + 1) if len(hits) else np.zeros(0)
    recall = true / stat[iou]["gt"]
    area, before = 0.0, 0.0
    for index, value in enumerate(recall):
        area += (value - before) * float(precision[index:].max())
        before = value
    stat[iou]["tp"].clear()  # the hosts spoil it as well
    return area, recall, precision


def eval_final_results(stat: Any, save_path: str, global_sort_detections: bool) -> None:
    print(save_path, calculate_ap(stat, 0.5, global_sort_detections)[0])  # noqa: T201
