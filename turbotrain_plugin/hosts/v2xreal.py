"""V2X-Real (ucla-mobility/V2X-Real): several classes, a schedule stepped without an epoch."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from turbotrain_plugin.data.windows import MODES
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.hosts.base import (
    IOU_THRESHOLDS,
    AgentOrder,
    FrameResult,
    Host,
    HostModules,
    same_kind,
)
from turbotrain_plugin.hosts.checkout import PACKAGE

_CLASSES: Final = "SUPER_CLASS_MAP"
_WITHOUT_ROADSIDE: Final = "2023-04-07"
"""Recording day whose scenes the host evaluates on in the mode v2v alone."""


class V2XReal(Host):
    """Differences of V2X-Real."""

    name: ClassVar[str] = "v2xreal"
    title: ClassVar[str] = "V2X-Real"
    commit: ClassVar[str] = "b6d5be142a92beaba129bb9da40855d647df35ea"
    has_cosine: ClassVar[bool] = False
    one_scheduler_argument: ClassVar[bool] = True
    left_handed: ClassVar[bool] = False
    one_class: ClassVar[bool] = False
    draws_egos: ClassVar[bool] = True
    """Whether any agent may be the ego in training, drawn anew for every epoch."""

    def recognises(self, root: Path) -> bool:
        """Return whether classes are grouped, and no masked pretraining is there (CooPre's)."""
        package = root / PACKAGE
        grouped = package / "data_utils" / "__init__.py"
        coopre = package / "loss" / "chamfer_loss.py"
        return grouped.is_file() and _CLASSES in grouped.read_text() and not coopre.is_file()

    def takes_part(self, scene: str, hypes: dict[str, Any], *, train: bool) -> bool:
        """Leave out the day without roadside units in evaluation, but for the mode v2v."""
        return train or _mode(hypes) == "v2v" or _WITHOUT_ROADSIDE not in scene

    def agent_order(
        self, agents: Sequence[int], hypes: dict[str, Any], *, train: bool
    ) -> AgentOrder:
        """Return the agents of ``dataset_mode``; in training all of them, drawn at random."""
        order = sorted(agents, key=str)
        if train and self.draws_egos:
            random.shuffle(order)
            return AgentOrder(tuple(order), frozenset(order))
        vehicles = [agent for agent in order if agent >= 0]
        roadside = [agent for agent in order if agent < 0]
        chosen = {
            "vc": vehicles + roadside,
            "ic": roadside + vehicles,
            "v2v": vehicles,
            "i2i": roadside,
        }[_mode(hypes)]
        return AgentOrder(tuple(chosen), same_kind(chosen) if chosen else frozenset())

    def epoch_begins(self, scheduler: Any, hypes: dict[str, Any], epoch: int, steps: int) -> None:  # noqa: ANN401
        """Step the schedule, which the host does before the first epoch as well."""
        del hypes, epoch, steps
        scheduler.step()

    def step_done(
        self,
        scheduler: Any,  # noqa: ANN401
        hypes: dict[str, Any],
        epoch: int,
        step: int,
        steps: int,
    ) -> None:
        """Leave the rate alone within an epoch."""

    def between_epochs(self, dataset: Any) -> None:  # noqa: ANN401
        """Scan the folders again, which also draws new egos."""
        dataset.reinitialize()

    def safe_answer(self, answer: Any) -> Any:  # noqa: ANN401
        """Return no boxes where the host says None, which its inference.py indexes."""
        boxes, scores, truth, truth_labels = answer
        if boxes is None:
            boxes, scores = truth.new_zeros(0, 8, 3), truth.new_zeros(0, 2)
        return boxes, scores, truth, truth_labels

    def answer(self, boxes: Tensor, scores: Tensor, truth: Tensor) -> Any:  # noqa: ANN401
        """Return boxes, (N, 2) score and class, truth and its classes; everything is of class 1."""
        scored = torch.stack([scores, torch.ones_like(scores)], dim=1)
        return boxes, scored, truth, torch.ones(len(truth), dtype=torch.int64)

    def frame_result(self, answer: Any) -> FrameResult:  # noqa: ANN401
        """Return a frame of several classes; scores come as (N, 2), score and class."""
        boxes, scores, truth, truth_labels = self.safe_answer(answer)
        truth = truth.detach().cpu().reshape(-1, 8, 3)
        boxes, scores = boxes.detach().cpu(), scores.detach().cpu()
        return FrameResult(
            boxes=boxes,
            scores=scores[:, 0],
            labels=scores[:, -1].to(torch.int64),
            truth=truth,
            truth_labels=truth_labels.detach().cpu().to(torch.int64).reshape(-1),
        )

    def scores(self, modules: HostModules, frames: Sequence[FrameResult]) -> dict[str, float]:
        """Return ``<class>_ap_0.50`` by the host's code, in the order of frames, and their means.

        Classes without a true object are left out, where the host's code would divide by zero.
        """
        classes = getattr(importlib.import_module(f"{PACKAGE}.data_utils"), _CLASSES)
        found: dict[str, float] = {}
        for label, name in enumerate(classes, start=1):
            stat: dict[float, Any] = {
                iou: {"tp": [], "fp": [], "gt": 0, "score": []} for iou in IOU_THRESHOLDS
            }
            for frame in frames:
                kept, true = frame.labels == label, frame.truth_labels == label
                for iou in IOU_THRESHOLDS:
                    modules.eval_utils.caluclate_tp_fp(
                        frame.boxes[kept], frame.scores[kept], frame.truth[true], stat, iou
                    )
            if stat[IOU_THRESHOLDS[0]]["gt"]:
                for iou in IOU_THRESHOLDS:
                    area = float(modules.eval_utils.calculate_ap(stat, iou)[0])
                    found[f"{name}_ap_{iou:.2f}"] = area
        for iou in IOU_THRESHOLDS:
            areas = [value for key, value in found.items() if key.endswith(f"_ap_{iou:.2f}")]
            if areas:
                found[f"ap_{iou:.2f}"] = sum(areas) / len(areas)
        return found


def _mode(hypes: dict[str, Any]) -> str:
    mode = str(hypes.get("dataset_mode", ""))
    if mode not in MODES:
        raise UserError(f"dataset_mode must be one of {', '.join(MODES)}. Found {mode!r}.")
    return mode
