"""Made-up V2X scenes in the V2XPnP-Seq layout, for users and tests without real data."""

from __future__ import annotations

from turbotrain_plugin.synthetic.cache import cache_root, ensure_dataset
from turbotrain_plugin.synthetic.generate import generate, is_complete
from turbotrain_plugin.synthetic.presets import (
    PRESETS,
    REAL_NOISE,
    SPEC_VERSION,
    LabelNoise,
    Preset,
    SensorModel,
)

__all__ = [
    "PRESETS",
    "REAL_NOISE",
    "SPEC_VERSION",
    "LabelNoise",
    "Preset",
    "SensorModel",
    "cache_root",
    "ensure_dataset",
    "generate",
    "is_complete",
]
