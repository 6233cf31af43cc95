"""DiscoNet's teacher: a finished early-fusion run that a training listens to and never changes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.data.targets import grid_from_config
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import new_network
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.engine.stages import FINETUNE, network_config, stage_behind
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import Batch

KEY = "model.args.fusion.distill.teacher"


class Teacher:
    """What a teacher's network makes of the joined clouds of a batch.

    The network is in eval mode, takes no gradient, and is no part of what is trained, counted or
    saved.

    Args:
        network: An early-fusion network on its device.
    """

    def __init__(self, network: CooperativeNetwork) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, C, H, W) for a batch whose samples carry their joined clouds.

        Raises:
            ValueError: When they do not.
        """
        if batch.joined is None:
            raise ValueError(
                "`batch.joined` must hold the joined clouds a teacher reads. Found None."
            )
        return self.network.agent_maps(batch.joined)


def load_teacher(config: RunConfig, device: torch.device) -> Teacher | None:
    """Return the teacher that the settings of a stage ask for, None when they ask for none.

    Raises:
        UserError: When the folder holds no early-fusion run that fits the student.
    """
    fusion = config.model.args.fusion
    if fusion.core_method != "disconet" or not fusion.distill.teacher:
        return None
    folder = Path(fusion.distill.teacher).expanduser()
    taught, weights, state = exchange.shared(lambda: _read(folder))
    _check_fit(config, taught, folder)
    network = new_network(taught, grid_from_config(taught))
    checkpoints.load_weights(network, checkpoints.model_weights(state), weights)
    LOG.info("distilling from %s", weights)
    return Teacher(network.to(device))


def _read(folder: Path) -> tuple[RunConfig, Path, checkpoints.State]:
    """Return the settings of a run's network, the file of its weights and what that holds."""
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{KEY}: {folder} is not a run folder, there is no config.yaml.")
    recorded = load_hypes(folder / "config.yaml")
    weights = checkpoints.find_weights(folder)
    state = checkpoints.load(weights)
    stage = stage_behind(state, recorded, folder)
    if stage.kind != FINETUNE:
        raise UserError(f"{KEY}: {weights} comes from stage {stage.name}; finish that run first.")
    return network_config(recorded, stage), weights, state


def _check_fit(student: RunConfig, teacher: RunConfig, folder: Path) -> None:
    """Refuse a teacher that would read the student's joined clouds in another way."""
    method = teacher.model.args.fusion.core_method
    if method != "early":
        raise UserError(f"{KEY}: {folder} must be a run of early fusion. Found {method}.")
    pairs = {
        "model.args.channels": (student.model.args.channels, teacher.model.args.channels),
        "turbotrain.data.hist_frames": (
            student.turbotrain.data.hist_frames,
            teacher.turbotrain.data.hist_frames,
        ),
        "turbotrain.data.step_frames": (
            student.turbotrain.data.step_frames,
            teacher.turbotrain.data.step_frames,
        ),
        "the grid": (grid_from_config(student), grid_from_config(teacher)),
        "preprocess.args.max_points_per_voxel": (
            student.preprocess.args.max_points_per_voxel,
            teacher.preprocess.args.max_points_per_voxel,
        ),
    }
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            raise UserError(
                f"{KEY}: {name} of {folder} must be the student's, {wanted}. Found {found}."
            )
