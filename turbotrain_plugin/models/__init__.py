"""Networks: point encoders, temporal and agent fusion, map, heads, and the whole of them."""

from typing import Final

from turbotrain_plugin.config import ModelArgs
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.cooperative import CooperativeNetwork, Encoder
from turbotrain_plugin.models.fusion import FUSIONS, AgentFusion
from turbotrain_plugin.models.pillars import PillarEncoder
from turbotrain_plugin.models.second import SecondEncoder
from turbotrain_plugin.models.spconv_support import SelfTest, spconv_self_test

ENCODERS: Final = {"second": SecondEncoder, "pillars": PillarEncoder}
"""``model.args.encoder.core_method`` -> class, called with the keys, the grid and C."""


def build_model(
    args: ModelArgs,
    grid: BevGrid,
    *,
    hist_frames: int,
    future_steps: int,
    anchors_per_cell: int,
    frame_interval_s: float = 0.5,
) -> CooperativeNetwork:
    """Build the network that ``model.args`` describes.

    Args:
        args: ``model.args``.
        grid: The BEV grid.
        hist_frames: T, past frames including the current one.
        future_steps: F.
        anchors_per_cell: Anchors per BEV cell.
        frame_interval_s: Seconds between two past frames.

    Raises:
        UserError: When the keys do not fit the grid or an encoder's library is missing.
    """
    encoder = ENCODERS[args.encoder.core_method](args.encoder, grid, args.channels)
    return CooperativeNetwork(
        args,
        grid,
        encoder,
        hist_frames=hist_frames,
        head_shape=(anchors_per_cell, future_steps),
        frame_interval_s=frame_interval_s,
    )


__all__ = [
    "ENCODERS",
    "FUSIONS",
    "AgentFusion",
    "CooperativeNetwork",
    "Encoder",
    "PillarEncoder",
    "SecondEncoder",
    "SelfTest",
    "build_model",
    "spconv_self_test",
]
