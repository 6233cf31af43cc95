"""What crosses the doors between rooms: plain dataclasses, no behaviour beyond shape and device.

Letters: B samples, A agents of one sample, T past frames incl. the current (oldest first, current
last), F future steps, M objects, P points, V voxels, C channels, H x W the BEV grid (H = y, W = x).
``sum A`` is the number of agents of all samples of a batch, stacked, the ego first in each sample.
A box is (x, y, z, length, width, height, yaw): centre and full sizes in metres, yaw in radians
counter-clockwise from +x. Everything is right-handed, x forward, y left, z up.
"""

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures.batches import (
    Batch,
    MapTokens,
    ReconstructionPoints,
    Targets,
    Voxels,
    move_tensors,
)
from turbotrain_plugin.structures.results import (
    DetectedObjects,
    FrameMaps,
    FusionContext,
    FusionOutput,
    Predictions,
    Reconstruction,
    TaskLosses,
)
from turbotrain_plugin.structures.samples import (
    INFRASTRUCTURE,
    VEHICLE,
    AgentFrame,
    GroundTruth,
    MapSegments,
    Sample,
)

__all__ = [
    "INFRASTRUCTURE",
    "VEHICLE",
    "AgentFrame",
    "Batch",
    "DetectedObjects",
    "FrameMaps",
    "FusionContext",
    "FusionOutput",
    "GroundTruth",
    "MapSegments",
    "MapTokens",
    "Predictions",
    "Reconstruction",
    "ReconstructionPoints",
    "Sample",
    "Targets",
    "TaskLosses",
    "UserError",
    "Voxels",
    "move_tensors",
]
