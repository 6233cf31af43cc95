"""Our own hypes file in a host's unmodified loop: sequences, map, detection and prediction.

    python -m turbotrain_plugin.hosts train --hypes_yaml turbotrain_v2xpnp_tiny.yaml

The loop, the optimiser and its schedule, the folders and AP are the host's; data set, network,
losses and balancer are ours. A batch is ``{"ego": {"batch": ours, "label_dict": {}, ...}}`` with
the few keys that the loops read themselves. Every draw comes from torch's global stream, which the
host's loader seeds: as with the host's own data sets a run is repeated by seeding it, not by its
step. Folder and weights are those of one of our runs: ``opencood evaluate`` reads them too, and
scores prediction, for which no host has a measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from turbotrain_plugin.config import (
    OptimizerConfig,
    RunConfig,
    SchedulerConfig,
    describes_host,
    load_hypes,
    load_tree,
    to_plain,
    to_yaml,
)
from turbotrain_plugin.data import CooperativeDataset, SampleKey, collate
from turbotrain_plugin.data.prepare import PreparedSample
from turbotrain_plugin.data.targets import anchors_from_config, grid_from_config
from turbotrain_plugin.engine.assembly import build_dataset, new_network
from turbotrain_plugin.engine.initial import start_from
from turbotrain_plugin.engine.stages import PRETRAIN, Stage, network_config, stages_of
from turbotrain_plugin.engine.stages import training_config as stage_config
from turbotrain_plugin.evaluation import decode
from turbotrain_plugin.evaluation.late import join_objects
from turbotrain_plugin.geometry.boxes import corners_3d
from turbotrain_plugin.hosts.base import Host
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import Batch, Predictions, UserError

_NEVER: Final = 10**9


class OwnHypes(dict[str, Any]):
    """Keys that a host's scripts read of our hypes file, and the file itself.

    Attributes:
        config: The resolved file.
        stage: What of its strategy the host's loop trains.
    """

    config: RunConfig
    stage: Stage

    def text(self) -> str:
        """Return the resolved file."""
        return to_yaml(self.config)


def own_hypes(
    source: str | Path, overrides: Sequence[str] = (), *, cosine: bool = True
) -> OwnHypes | None:
    """Return our hypes file for a host's scripts; None where the file is the host's own.

    Args:
        source: A file or the name of a shipped one.
        overrides: ``key=value`` entries.
        cosine: Whether the host has a cosine schedule.

    Raises:
        UserError: When it is wrong, or asks for what a host's loop cannot do: other stages than one
            of fine-tuning, a teacher, some schedules.
    """
    if describes_host(load_tree(source)):
        return None
    config = load_hypes(source, overrides)
    stages = stages_of(config)
    if len(stages) > 1 or stages[0].kind == PRETRAIN:
        names = ", ".join(stage.name for stage in stages)
        raise UserError(
            f"A host's loop trains one stage; {config.turbotrain.strategy} has {names}. Pretrain "
            "with `opencood train -o turbotrain.strategy=pretrain_only`, then run this with "
            "-o turbotrain.pretrain.epoches=0 -o turbotrain.pretrain.init=RUN_FOLDER; or train "
            "from scratch with -o turbotrain.strategy=one_time."
        )
    (stage,) = stages
    if config.model.args.fusion.distill.teacher:
        raise UserError(
            "A host's loop has no place for a teacher: leave out model.args.fusion.distill.teacher,"
            " or train with `opencood train`."
        )
    hypes = OwnHypes(to_plain(config))
    hypes.config, hypes.stage = config, stage
    params = hypes["train_params"]
    hypes["train_params"] = {
        **params,
        "eval_freq": params["eval_freq"] or _NEVER,
        "save_freq": params["save_freq"] or 1,
    }
    hypes["optimizer"] = _optimizer_keys(config.optimizer)
    hypes["lr_scheduler"] = _scheduler_keys(config.lr_scheduler, stage.epoches, cosine=cosine)
    hypes["postprocess"]["gt_range"] = list(config.preprocess.cav_lidar_range)
    return hypes


def _optimizer_keys(keys: OptimizerConfig) -> dict[str, Any]:
    """Return what the hosts hand to ``torch.optim``."""
    args: dict[str, Any] = {"weight_decay": keys.args.weight_decay}
    if keys.core_method == "SGD":
        args["momentum"] = keys.args.betas[0]
    else:
        args |= {"eps": keys.args.eps, "betas": list(keys.args.betas)}
    return {"core_method": keys.core_method, "lr": keys.lr, "args": args}


def _scheduler_keys(keys: SchedulerConfig, epoches: int, *, cosine: bool) -> dict[str, Any]:
    """Return the schedule in the hosts' words."""
    if keys.core_method in ("cosine", "cosineannealwarm"):
        if not cosine:
            raise UserError(
                "This host has no cosine schedule: set lr_scheduler.core_method=multistep (with "
                "step_size), step, exponential or none."
            )
        return {
            "core_method": "cosineannealwarm",
            "epoches": epoches,
            "warmup_lr": keys.warmup_lr,
            "warmup_epoches": keys.warmup_epoches,
            "lr_min": keys.lr_min,
        }
    if keys.warmup_epoches:
        raise UserError(
            f"The hosts' {keys.core_method} schedule knows no warm-up: set "
            "lr_scheduler.warmup_epoches=0 or lr_scheduler.core_method=cosine."
        )
    if keys.core_method == "exponential":
        return {"core_method": "exponential", "gamma": keys.gamma}
    if keys.core_method == "step":
        return {"core_method": "step", "step_size": keys.step_size[0], "gamma": keys.gamma}
    milestones = list(keys.step_size) if keys.core_method == "multistep" else [_NEVER]
    return {"core_method": "multistep", "step_size": milestones, "gamma": keys.gamma}


# ------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Carried:
    """Our batch on its way through a host's ``to_device``."""

    batch: Batch

    def to(self, device: torch.device | str, **_how: Any) -> Carried:  # noqa: ANN401 - torch's
        """Return it on ``device``."""
        return Carried(self.batch.to(device))


class OwnDataset(Dataset[PreparedSample]):
    """Our data set as the hosts' loops know theirs.

    Args:
        hypes: Our hypes file.
        host: Gives inference its own form of an answer.
        visualize: As in the hosts: set by inference.py.
        train: Whether to train on it.
    """

    def __init__(self, hypes: OwnHypes, host: Host, *, visualize: bool, train: bool) -> None:
        config = stage_config(hypes.config, hypes.stage)
        split = "train" if train else "test" if visualize else "validate"
        self._inner: CooperativeDataset = build_dataset(
            config, split, "train" if train else "evaluate"
        )
        self._config, self._host = config, host
        self._anchors = torch.from_numpy(anchors_from_config(config, grid_from_config(config)))
        self.max_cav = config.train_params.max_cav

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> PreparedSample:
        """Return a sample; what is random about it is drawn from torch's stream, as the order."""
        draw = int(torch.randint(_NEVER, ()))
        return self._inner[SampleKey(draw, index)]

    def reinitialize(self) -> None:
        """Do nothing: every sample draws its ego anew."""

    def collate_batch_train(self, samples: Sequence[PreparedSample]) -> dict[str, Any]:
        """Return the batch that the loop hands to network and criterion."""
        batch = collate(samples)
        boxes = [torch.from_numpy(truth.boxes) for truth in batch.truth if truth is not None]
        mask = nn.utils.rnn.pad_sequence([row.new_ones(len(row)) for row in boxes], True)
        ego = {"batch": Carried(batch), "label_dict": {}, "record_len": batch.record_len}
        ego |= {"object_bbx_mask": mask, "origin_lidar": [_points(batch)]}
        return {"ego": ego}

    collate_batch_test = collate_batch_train

    def post_process(self, batch: Mapping[str, Any], output: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return boxes, scores and truth of one frame in the host's form, in the ego's frame."""
        predictions: Predictions = output["ego"]["predictions"]
        config = self._config
        extent = config.turbotrain.evaluation.range or config.preprocess.cav_lidar_range
        anchors = self._anchors.to(predictions.class_logits.device)
        found = decode(predictions, anchors, postprocess=config.postprocess, range_m=extent)
        if predictions.rows is not None:
            found, _ = join_objects(found, predictions.rows, config.postprocess)
        (truth,) = batch["ego"]["batch"].batch.truth
        boxes = torch.from_numpy(corners_3d(found[0].boxes)).float()
        true = torch.from_numpy(corners_3d(truth.boxes)).float()
        return self._host.answer(boxes, torch.from_numpy(found[0].scores), true)

    def visualize_result(self, *_args: Any, **_kwargs: Any) -> None:  # noqa: ANN401
        """Say what draws our results.

        Raises:
            UserError: Always.
        """
        raise UserError("Our results are drawn by:  opencood visualize --model_dir RUN_FOLDER")


def _points(batch: Batch) -> Tensor:
    """Return (P, 4) points in the voxels of all agents and frames."""
    points = batch.voxels.points
    used = torch.arange(points.shape[1]) < batch.voxels.point_counts.unsqueeze(1)
    return points[used]


# ------------------------------------------------------------------------------- network and loss


def own_network(hypes: OwnHypes) -> CooperativeNetwork:
    """Return our network, which reads a host's ``batch["ego"]`` and answers a dictionary.

    Hooks translate, so that names of weights are those of every run of ours.
    """
    config, stage = network_config(hypes.config, hypes.stage), hypes.stage
    network = new_network(config, grid_from_config(config))
    if stage.init:
        children = dict(network.named_children())
        modules = {name: children[name] for name in stage.carries if name in children}
        start_from(stage.init, network, modules, config.turbotrain.pretrain)
    network.register_forward_pre_hook(_unpacked)
    network.register_forward_hook(_packed)
    return network


def _unpacked(_network: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0]["batch"].batch,)


def _packed(_network: nn.Module, inputs: tuple[Any, ...], found: Predictions) -> dict[str, Any]:
    logits = found.class_logits.permute(0, 3, 1, 2)
    codes = found.box_codes.flatten(3).permute(0, 3, 1, 2)
    return {"psm": logits, "rm": codes, "predictions": found, "batch": inputs[0]}


class OwnLoss(nn.Module):
    """Our task losses as a host's criterion.

    Args:
        hypes: Our hypes file.

    Attributes:
        loss_dict: Task -> loss, and their sum under ``total_loss``.
    """

    def __init__(self, hypes: OwnHypes) -> None:
        super().__init__()
        self._keys = hypes.config.loss.args
        self.loss_dict: dict[str, Tensor] = {}

    def forward(self, output: Mapping[str, Any], labels: Any, **_more: Any) -> Tensor:  # noqa: ANN401, ARG002
        """Return the sum of the tasks; the labels are in our batch."""
        losses = task_losses(output["predictions"], output["batch"], self._keys)
        total = losses.total()
        self.loss_dict = {**losses.tasks, "total_loss": total}
        return total

    def logging(
        self,
        epoch: int,
        batch_id: int,
        batch_len: int,
        writer: Any,  # noqa: ANN401 - tensorboardX's
        pbar: Any = None,  # noqa: ANN401 - tqdm's
        suffix: str = "",
    ) -> None:
        """Log the tasks and their sum, in the hosts' rhythm."""
        values = {name: float(loss.detach()) for name, loss in self.loss_dict.items()}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        line = f"[epoch {epoch}][{batch_id + 1}/{batch_len}]  {shown}"
        if pbar is not None:
            pbar.set_description(line)
        for name, value in values.items():
            writer.add_scalar(f"{name}{suffix}", value, epoch * batch_len + batch_id)
