"""From predictions and targets to the tasks that are optimised."""

from __future__ import annotations

from torch import Tensor

from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses.detection import DetectionLoss
from turbotrain_plugin.losses.pool import Pool
from turbotrain_plugin.losses.precision import full_precision
from turbotrain_plugin.losses.prediction import PredictionLoss
from turbotrain_plugin.structures import Batch, Predictions, TaskLosses


def task_losses(
    predictions: Predictions, batch: Batch, args: LossArgs, pool: Pool | None = None
) -> TaskLosses:
    """Return the tasks ``detection`` and, when trajectories were predicted, ``prediction``.

    detection = cls_weight cls + reg_weight reg + auxiliary losses of the fusion module;
    prediction = prediction_weight traj (weights and grouping are our choice). ``parts`` holds
    the unweighted components under the names cls, reg, traj and those of the auxiliary losses.
    ``pool``: the processes whose objects are counted, for all but the auxiliary losses; None: one.

    Raises:
        ValueError: When the batch carries no targets.
        UserError: When the constants in ``args`` are impossible.
    """
    if batch.targets is None:
        raise ValueError("`batch.targets` must be given to compute task losses. Found None.")
    parts: dict[str, Tensor] = DetectionLoss(args, pool)(predictions, batch.targets)
    detection = args.cls_weight * parts["cls"] + args.reg_weight * parts["reg"]
    for name, loss in predictions.auxiliary_losses.items():
        parts[name] = full_precision(loss)
        detection = detection + parts[name]
    tasks = {"detection": detection}
    if predictions.trajectories is not None:
        parts["traj"] = PredictionLoss(args, pool)(predictions, batch.targets)
        tasks["prediction"] = args.prediction_weight * parts["traj"]
    return TaskLosses(tasks, {name: part.detach() for name, part in parts.items()})
