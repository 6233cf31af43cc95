"""Scenario files to batches: formats, windows, augmentation, voxels, targets, loading."""
