"""The `visualize` command: pictures of a run, of its detections or of its pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import build_dataset, build_network, prepare_torch
from turbotrain_plugin.engine.evaluate import made_folder
from turbotrain_plugin.engine.pictures import CPU, PictureWork, draw_masked, draw_scenes
from turbotrain_plugin.engine.records import emit
from turbotrain_plugin.engine.stages import (
    FINETUNE,
    PRETRAIN,
    Stage,
    network_config,
    stage_behind,
    stages_of,
)
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.errors import UserError

FOLDER: Final = "vis"


@dataclass(frozen=True, slots=True)
class VisualizeRequest:
    """The options of ``opencood visualize``.

    Attributes:
        folder: Run folder.
        pretrain: Draw masked reconstruction in place of detections.
        out: Where to; without it ``vis/`` of the run folder.
        samples: Pictures, of samples spread evenly over the split.
        split: ``train``, ``validate`` or ``test``; None: the test split, or what the run learnt
            from where it names no other.
        device: Where to compute.
        overrides: ``key=value`` entries.
    """

    folder: Path
    pretrain: bool = False
    out: Path | None = None
    samples: int = 4
    split: str | None = None
    device: torch.device = CPU
    overrides: Sequence[str] = ()


def visualize_run(request: VisualizeRequest) -> list[Path]:
    """Draw samples of a run and return the files.

    Raises:
        UserError: When the folder holds no run, or not the weights that are asked for.
    """
    folder = request.folder
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder, there is no config.yaml.")
    if request.samples < 1:
        raise UserError(f"--samples must be at least 1. Found {request.samples}.")
    config = load_hypes(folder / "config.yaml", request.overrides)
    prepare_torch(config)
    out = made_folder(request.out or folder / FOLDER)
    drawn = (
        _pretraining(config, request, out) if request.pretrain else _scenes(config, request, out)
    )
    emit("\n".join(["pictures:", *(f"  {path}" for path in drawn)]))
    return drawn


def _split(config: RunConfig, request: VisualizeRequest) -> str:
    if request.split is not None:
        return request.split
    return "test" if config.test_dir or config.validate_dir else "train"


def _pretraining(config: RunConfig, request: VisualizeRequest, out: Path) -> list[Path]:
    stage = next((stage for stage in stages_of(config) if stage.kind == PRETRAIN), None)
    if stage is None:
        raise UserError(
            f"{request.folder}: this run did not pretrain (strategy "
            f"{config.turbotrain.strategy}, turbotrain.pretrain.epoches "
            f"{config.turbotrain.pretrain.epoches}); draw its detections without --pretrain."
        )
    source, state = _learner_state(config, request.folder, stage)
    work = PictureWork(
        out, source, _split(config, request), samples=request.samples, device=request.device
    )
    return draw_masked(config, stage, state, work)


def _learner_state(
    config: RunConfig, folder: Path, stage: Stage
) -> tuple[Path, Mapping[str, Tensor]]:
    """Return what pretraining left at its end, or has reached by now."""
    finished = checkpoints.stage_weights(folder, stage.name)
    if finished.is_file():
        return finished, checkpoints.load(finished)["learner"]
    last = folder / checkpoints.LAST
    if last.is_file():
        state = checkpoints.load_run_state(last)
        if stages_of(config)[state["position"]["stage"]].name == stage.name:
            return last, state["learner"]
    raise UserError(
        f"{folder}: no pretraining weights, neither {finished.name} nor {last.name} of a run that "
        "is in its pretraining."
    )


def _scenes(config: RunConfig, request: VisualizeRequest, out: Path) -> list[Path]:
    source = checkpoints.find_weights(request.folder)
    state = checkpoints.load(source)
    stage = stage_behind(state, config, request.folder)
    if stage.kind != FINETUNE:
        raise UserError(
            f"{source}: pretrained so far, it detects nothing yet; draw what it rebuilds with "
            "--pretrain."
        )
    measured = network_config(config, stage)
    dataset = build_dataset(measured, _split(config, request), "evaluate")
    network = build_network(measured, dataset)
    checkpoints.load_weights(network, checkpoints.model_weights(state), source)
    evaluated = evaluate_network(
        network.to(request.device), dataset, measured, limit=request.samples, draw=request.samples
    )
    return draw_scenes(dataset, evaluated, out)
