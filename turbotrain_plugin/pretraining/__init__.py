"""Masked reconstruction pretraining, and what of it is carried into fine-tuning."""

from turbotrain_plugin.pretraining.masking import column_index, mask_columns, masked_region
from turbotrain_plugin.pretraining.pretrainer import MaskedPretrainer
from turbotrain_plugin.pretraining.reconstruction import (
    CellPoints,
    PointTargets,
    ReconstructionHead,
    cell_points,
    choose_empty,
    choose_points,
    occupied_bins,
)
from turbotrain_plugin.pretraining.transfer import (
    ModuleTransfer,
    TransferReport,
    transfer_weights,
)

__all__ = [
    "CellPoints",
    "MaskedPretrainer",
    "ModuleTransfer",
    "PointTargets",
    "ReconstructionHead",
    "TransferReport",
    "cell_points",
    "choose_empty",
    "choose_points",
    "column_index",
    "mask_columns",
    "masked_region",
    "occupied_bins",
    "transfer_weights",
]
