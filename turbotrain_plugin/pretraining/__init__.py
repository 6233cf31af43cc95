"""Masked reconstruction pretraining, and what of it is carried into fine-tuning."""

from turbotrain_plugin.pretraining.foreign import InitialWeights, load_initial, our_name
from turbotrain_plugin.pretraining.leaks import collapse_warning, prior_loss, sites_iou
from turbotrain_plugin.pretraining.masking import (
    column_index,
    mask_columns,
    masked_region,
    shared_orders,
)
from turbotrain_plugin.pretraining.networks import BevModule, TokenModule
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
    "BevModule",
    "CellPoints",
    "InitialWeights",
    "MaskedPretrainer",
    "ModuleTransfer",
    "PointTargets",
    "ReconstructionHead",
    "TokenModule",
    "TransferReport",
    "cell_points",
    "choose_empty",
    "choose_points",
    "collapse_warning",
    "column_index",
    "load_initial",
    "mask_columns",
    "masked_region",
    "occupied_bins",
    "our_name",
    "prior_loss",
    "shared_orders",
    "sites_iou",
    "transfer_weights",
]
