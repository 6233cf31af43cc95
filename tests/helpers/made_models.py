"""Small network settings for tests."""

from __future__ import annotations

from turbotrain_plugin.config import (
    EncoderConfig,
    FusionConfig,
    MapConfig,
    MessageConfig,
    ModelArgs,
    NeckConfig,
    TemporalConfig,
)
from turbotrain_plugin.geometry.grid import BevGrid


def tiny_args(
    *,
    encoder: str = "pillars",
    fusion: str = "v2xpnp",
    neck: str = "post_fusion",
    stride: int = 2,
    channels: int = 16,
    ratio: int = 0,
) -> ModelArgs:
    """Return ``model.args`` of a network that trains in milliseconds; no dropout."""
    return ModelArgs(
        channels=channels,
        encoder=EncoderConfig(
            core_method=encoder,
            widths=(4, 4, 8, 8),
            pillar_channels=8,
            pillar_blocks=(1,) * stride.bit_length(),
        ),
        neck=NeckConfig(position=neck, layers=(1, 1), filters=(8, 16), upsample_filters=(8, 8)),
        temporal=TemporalConfig(heads=4, ffn=32, dropout=0.0),
        fusion=FusionConfig(
            core_method=fusion, windows=(3, 4), window_heads=(4, 2), heads=4, ffn=32, dropout=0.0
        ),
        compression=MessageConfig(ratio=ratio),
        map=MapConfig(heads=4, ffn=32, dropout=0.0),
    )


def second_grid(cells: int = 8) -> BevGrid:
    """Return a square SECOND grid: voxels of 0.1 x 0.1 x 0.2 m, 40 height bins, stride 8."""
    half = cells * 0.4
    return BevGrid((-half, -half, -5.0, half, half, 3.0), (0.1, 0.1, 0.2), 8)
