"""Scenario files to batches: formats, windows, augmentation, voxels, targets, loading."""

from turbotrain_plugin.data.augment import Similarity, augment, draw
from turbotrain_plugin.data.clips import ClipBuilder, build_sample, select_objects
from turbotrain_plugin.data.clouds import cloud_batch
from turbotrain_plugin.data.loader import BatchLoader, CooperativeDataset, SampleKey, make_loader
from turbotrain_plugin.data.prepare import PreparedSample, collate
from turbotrain_plugin.data.targets import (
    SampleTargets,
    anchors_from_config,
    grid_from_config,
    make_targets,
)
from turbotrain_plugin.data.voxelize import VoxelCloud, voxelize, voxelize_cloud
from turbotrain_plugin.data.windows import MODES, ClipIndex, ClipOptions, Mode, Window

__all__ = [
    "MODES",
    "BatchLoader",
    "ClipBuilder",
    "ClipIndex",
    "ClipOptions",
    "CooperativeDataset",
    "Mode",
    "PreparedSample",
    "SampleKey",
    "SampleTargets",
    "Similarity",
    "VoxelCloud",
    "Window",
    "anchors_from_config",
    "augment",
    "build_sample",
    "cloud_batch",
    "collate",
    "draw",
    "grid_from_config",
    "make_loader",
    "make_targets",
    "select_objects",
    "voxelize",
    "voxelize_cloud",
]
