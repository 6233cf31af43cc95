"""Losses: tensors in, named scalars out, nothing logged."""

from turbotrain_plugin.losses.detection import DetectionLoss, box_error
from turbotrain_plugin.losses.focal import (
    PRINTED,
    STANDARD,
    FocalShape,
    focal_from_logits,
    occupancy_focal,
)
from turbotrain_plugin.losses.pool import Pool
from turbotrain_plugin.losses.prediction import PredictionLoss
from turbotrain_plugin.losses.reconstruction import chamfer_loss, nearest_pairs, occupancy_loss
from turbotrain_plugin.losses.tasks import task_losses

__all__ = [
    "PRINTED",
    "STANDARD",
    "DetectionLoss",
    "FocalShape",
    "Pool",
    "PredictionLoss",
    "box_error",
    "chamfer_loss",
    "focal_from_logits",
    "nearest_pairs",
    "occupancy_focal",
    "occupancy_loss",
    "task_losses",
]
