"""What we know of a host: how it loads data, moves the learning rate, infers and scores.

The defaults are OpenCOOD's; a fork overrides what it does differently, one file per fork. Nothing
here imports a host: its modules come in as ``HostModules``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.hosts.tasks import loss_terms

COSINE: Final = "cosineannealwarm"
IOU_THRESHOLDS: Final = (0.3, 0.5, 0.7)
"""Of the hosts' own scores."""


@dataclass(frozen=True, slots=True)
class HostModules:
    """The modules of a host that its train.py and inference.py use."""

    yaml_utils: ModuleType
    datasets: ModuleType
    train_utils: ModuleType
    inference_utils: ModuleType
    eval_utils: ModuleType


@dataclass(frozen=True, slots=True)
class LoaderKeys:
    """How a host's train.py loads data.

    Attributes:
        workers: Processes of the training loader.
        validation_workers: Processes of the validation loader.
        shuffle_validation: Whether validation is shuffled.
        pin_memory: Whether batches are pinned.
    """

    workers: int = 8
    validation_workers: int = 8
    shuffle_validation: bool = False
    pin_memory: bool = False


@dataclass(frozen=True, slots=True)
class AgentOrder:
    """Agents of a scene as a host lists them.

    Attributes:
        agents: Folder numbers; the first that has a frame is its ego.
        leaders: Those of them that may be the ego.
    """

    agents: tuple[int, ...]
    leaders: frozenset[int]


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What a host detected in one frame, in its own frame of reference.

    Attributes:
        boxes: (N, 8, 3) corners.
        scores: (N,).
        labels: (N,) class from 1.
        truth: (M, 8, 3) corners.
        truth_labels: (M,) class from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    truth: Tensor
    truth_labels: Tensor


class Host:
    """OpenCOOD itself, and the base of its forks.

    Attributes:
        name: In YAML (``turbotrain.host.name``).
        title: What it is called.
        commit: The commit that was read and run.
        loader: How its train.py loads data.
        has_cosine: Whether ``cosineannealwarm`` is among its schedules.
        one_scheduler_argument: Whether ``setup_lr_schedular`` takes no number of steps.
        left_handed: Whether it is written for CARLA's axes, y to the right.
        one_class: Whether it takes every object for a car.
    """

    name: ClassVar[str] = "opencood"
    title: ClassVar[str] = "OpenCOOD"
    commit: ClassVar[str] = "31ba16025da27ffe4e336f011290dfbc66f9a1f1"
    loader: ClassVar[LoaderKeys] = LoaderKeys()
    has_cosine: ClassVar[bool] = True
    one_scheduler_argument: ClassVar[bool] = False
    left_handed: ClassVar[bool] = True
    one_class: ClassVar[bool] = True

    def recognises(self, root: Path) -> bool:
        """Return whether the checkout at ``root`` is this host."""
        return (root / "opencood" / "tools" / "train.py").is_file()

    # ---------------------------------------------------------------------------- data we read

    def dataset_class(self, modules: HostModules, hypes: dict[str, Any]) -> type:
        """Return the data set's class that ``fusion.core_method`` names.

        Raises:
            UserError: When there is none, or it does not read scenes frame by frame.
        """
        known: dict[str, type] = vars(modules.datasets)["__all__"]
        name = str(hypes["fusion"]["core_method"])
        fitting = [one for one in known if not one.startswith("Online")]
        if name not in fitting:
            raise UserError(
                f"fusion.core_method: with turbotrain.host.data.format our reader takes the place "
                f"of the scan of {', '.join(fitting)}. Found {name!r}."
            )
        return known[name]

    def takes_part(self, scene: str, hypes: dict[str, Any], *, train: bool) -> bool:
        """Return whether the host reads a scene of that name."""
        del scene, hypes, train
        return True

    def agent_order(
        self, agents: Sequence[int], hypes: dict[str, Any], *, train: bool
    ) -> AgentOrder:
        """Return a scene's agents in the host's order: by text, a vehicle first."""
        del hypes, train
        return vehicle_first(sorted(agents, key=str))

    # ------------------------------------------------------------------------------------ training

    def prepare(self, hypes: dict[str, Any]) -> None:
        """Put into the hypes what the host's scripts put there."""

    def make_scheduler(
        self,
        modules: HostModules,
        hypes: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        steps_per_epoch: int,
    ) -> Any:  # noqa: ANN401 - torch's or timm's
        """Return the host's learning-rate schedule."""
        setup = modules.train_utils.setup_lr_schedular
        if self.one_scheduler_argument:
            return setup(hypes, optimizer)
        return setup(hypes, optimizer, steps_per_epoch)

    def epoch_begins(self, scheduler: Any, hypes: dict[str, Any], epoch: int, steps: int) -> None:  # noqa: ANN401
        """Move the learning rate before the first step of an epoch."""
        if hypes["lr_scheduler"]["core_method"] == COSINE:
            scheduler.step_update(epoch * steps)
        else:
            scheduler.step(epoch)

    def step_done(
        self,
        scheduler: Any,  # noqa: ANN401
        hypes: dict[str, Any],
        epoch: int,
        step: int,
        steps: int,
    ) -> None:
        """Move the learning rate after a step."""
        if hypes["lr_scheduler"]["core_method"] == COSINE:
            scheduler.step_update(epoch * steps + step)

    def epoch_ends(self, scheduler: Any, epoch: int) -> None:  # noqa: ANN401
        """Move the learning rate after an epoch and its validation."""

    def between_epochs(self, dataset: Any) -> None:  # noqa: ANN401 - a host's data set
        """Do to the training set what the host does between two epochs."""

    def skips(self, batch: Any) -> bool:  # noqa: ANN401 - a host's dictionary, or None
        """Return whether the host passes over a training batch."""
        return batch is None

    def tell_epoch(self, batch: dict[str, Any], epoch: int) -> None:
        """Put the epoch into a batch, where the host does."""

    def set_train_mode(self, model: nn.Module) -> None:
        """Put the model into training mode, as before every step."""
        model.train()

    def losses(
        self,
        criterion: nn.Module,
        output: dict[str, Any],
        ego: dict[str, Any],
        dataset: Any,  # noqa: ANN401
        hypes: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the host would differentiate, and its terms by name."""
        del dataset, hypes
        total: Tensor = criterion(output, ego["label_dict"])
        return total, loss_terms(getattr(criterion, "loss_dict", {}), total)

    # ---------------------------------------------------------------------------------- evaluation

    def fusion_method(self, hypes: dict[str, Any]) -> str:
        """Return ``late``, ``early`` or ``intermediate``, after the data set."""
        name = str(hypes["fusion"]["core_method"]).lower()
        return next((kind for kind in ("late", "early") if name.startswith(kind)), "intermediate")

    def infer(
        self,
        modules: HostModules,
        batch: dict[str, Any],
        model: nn.Module,
        dataset: Any,  # noqa: ANN401
        method: str,
    ) -> FrameResult:
        """Detect in one frame by the host's own inference function."""
        function = getattr(modules.inference_utils, f"inference_{method}_fusion")
        return self.frame_result(function(batch, model, dataset))

    def safe_answer(self, answer: Any) -> Any:  # noqa: ANN401
        """Return an answer of an inference function that the host's inference.py can go on with.

        Called where a launched script would stop on a frame in which nothing was detected.
        """
        return answer

    def answer(self, boxes: Tensor, scores: Tensor, truth: Tensor) -> Any:  # noqa: ANN401
        """Return what ``post_process`` of this host's data sets answers.

        Args:
            boxes: (N, 8, 3) corners.
            scores: (N,).
            truth: (M, 8, 3) corners.
        """
        return (boxes, scores, truth) if len(boxes) else (None, None, truth)

    def frame_result(self, answer: Any) -> FrameResult:  # noqa: ANN401
        """Return what the host's inference function answers: boxes, scores and truth."""
        boxes, scores, truth = answer[:3]
        return single_class_result(boxes, scores, truth)

    def scores(self, modules: HostModules, frames: Sequence[FrameResult]) -> dict[str, float]:
        """Return AP by the host's own code: in the order of frames, and sorted over all of them.

        Names are ``ap_0.50`` and ``ap_0.50_global_sort``. Without any true object nothing is
        scored, where the host's code would divide by zero.
        """
        stat = counted(modules, frames)
        if not stat[IOU_THRESHOLDS[0]]["gt"]:
            return {}
        found = {}
        for iou in IOU_THRESHOLDS:
            for ending, sort in (("", False), ("_global_sort", True)):
                kept = copy.deepcopy(stat)  # the host's function cumulates in place
                found[f"ap_{iou:.2f}{ending}"] = float(
                    modules.eval_utils.calculate_ap(kept, iou, sort)[0]
                )
        return found


def vehicle_first(agents: Sequence[int]) -> AgentOrder:
    """Return the order turned until a vehicle leads; roadside units lead where there are no others.

    The hosts do this once, for one roadside unit; ours holds for several.
    """
    order = list(agents)
    while order[0] < 0 and any(agent >= 0 for agent in order):
        order.append(order.pop(0))
    return AgentOrder(tuple(order), same_kind(order))


def same_kind(agents: Sequence[int]) -> frozenset[int]:
    """Return the agents that are vehicles, or roadside units, as the first is."""
    return frozenset(agent for agent in agents if (agent < 0) == (agents[0] < 0))


def counted(modules: HostModules, frames: Sequence[FrameResult]) -> dict[float, Any]:
    """Return the host's counts of true and false positives: IoU -> what its AP is made of."""
    stat: dict[float, Any] = {
        iou: {"tp": [], "fp": [], "gt": 0, "score": []} for iou in IOU_THRESHOLDS
    }
    for frame in frames:
        boxes = frame.boxes if len(frame.boxes) else None
        for iou in IOU_THRESHOLDS:
            modules.eval_utils.caluclate_tp_fp(boxes, frame.scores, frame.truth, stat, iou)
    return stat


def single_class_result(boxes: Any, scores: Any, truth: Any) -> FrameResult:  # noqa: ANN401
    """Return a frame of one class; a host says None where nothing was detected."""
    truth = torch.as_tensor(truth).detach().cpu().reshape(-1, 8, 3)
    if boxes is None:
        boxes, scores = truth.new_zeros(0, 8, 3), truth.new_zeros(0)
    boxes, scores = boxes.detach().cpu(), scores.detach().cpu()
    return FrameResult(
        boxes=boxes,
        scores=scores,
        labels=torch.ones(len(scores), dtype=torch.int64),
        truth=truth,
        truth_labels=torch.ones(len(truth), dtype=torch.int64),
    )
