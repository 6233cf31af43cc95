"""The pictures of a run: scenes from above, masked reconstruction, training curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import BatchLoader, CooperativeDataset
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import build_dataset, build_network, derive_seed
from turbotrain_plugin.engine.records import LOG, METRICS
from turbotrain_plugin.engine.stages import PRETRAIN, Stage, network_config, stages_of
from turbotrain_plugin.engine.validation import Evaluated, raw_key
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.reporting import (
    ReconstructionDrawing,
    SceneDrawing,
    draw_curves,
    draw_reconstruction,
    draw_scene,
)
from turbotrain_plugin.structures import Batch, DetectedObjects, Reconstruction, Sample


def draw_all(
    config: RunConfig,
    folder: Path,
    out: Path,
    dataset: CooperativeDataset,
    evaluated: Evaluated,
) -> list[Path]:
    """Draw into ``out/vis`` and return the files.

    Args:
        config: The run's configuration.
        folder: Run folder, for curves and pretraining weights.
        out: Where results are written.
        dataset: What was evaluated.
        evaluated: The pass, with the detections to draw.
    """
    vis = out / "vis"
    vis.mkdir(parents=True, exist_ok=True)
    drawn = [
        _scene(dataset, index, detections, vis) for index, detections in evaluated.drawn.items()
    ]
    for stage in stages_of(config):
        weights = checkpoints.stage_weights(folder, stage.name)
        if stage.kind == PRETRAIN and weights.is_file() and evaluated.drawn:
            split, index = dataset.split, min(evaluated.drawn)
            drawn.append(_reconstruction(config, stage, weights, (split, index), vis))
    if (folder / METRICS).is_file():
        drawn.append(draw_curves(folder / METRICS, vis / "curves.png"))
    return drawn


def _scene(dataset: CooperativeDataset, index: int, detections: DetectedObjects, vis: Path) -> Path:
    sample = dataset.sample(raw_key(index))
    path = vis / f"{sample.scene}_{sample.frame:06d}.png"
    return draw_scene(scene_drawing(sample, detections, dataset.grid), path)


def scene_drawing(sample: Sample, detections: DetectedObjects, grid: BevGrid) -> SceneDrawing:
    """Return what a picture of a sample with its detections shows."""
    truth: dict[str, Any] = {}
    if sample.truth is not None:
        truth = {
            "boxes": sample.truth.boxes,
            "past": sample.truth.past,
            "past_valid": sample.truth.past_valid,
            "futures": sample.truth.futures,
            "future_valid": sample.truth.future_valid,
        }
    return SceneDrawing(
        scene=sample.scene,
        frame=sample.frame,
        range_m=grid.range_m,
        points=[frames[-1] for frames in sample.points],
        agent_ids=sample.agent_ids,
        agent_types=sample.agent_types,
        ego_SE3_agent=sample.ego_SE3_agent[:, -1],
        lanes=_lanes(sample),
        detections=detections.boxes,
        scores=detections.scores,
        trajectories=detections.trajectories,
        **truth,
    )


def _lanes(sample: Sample) -> list[NDArray[np.float32]]:
    if sample.map is None:
        return []
    pairs = zip(sample.map.points, sample.map.valid, strict=True)
    return [points[valid, :2] for points, valid in pairs]


def _reconstruction(
    config: RunConfig, stage: Stage, weights: Path, which: tuple[str, int], vis: Path
) -> Path:
    """Draw what the pretrained network makes of a sample: (split, index) of what was evaluated."""
    config = network_config(config, stage)
    split, index = which
    dataset = build_dataset(config, split, "pretrain")
    dataset_grid = dataset.grid
    learner = MaskedPretrainer(
        build_network(config, dataset), dataset_grid, config.turbotrain.pretrain
    )
    checkpoints.load_weights(learner, checkpoints.load(weights)["learner"], weights)
    learner.eval()
    batch = next(iter(BatchLoader(dataset, [[raw_key(index)]])))
    generator = torch.Generator().manual_seed(derive_seed(config.seed, stage.name, "picture"))
    with torch.no_grad():
        _, reconstruction = learner(batch, generator)
    scene, frame, _ = batch.keys[0]
    LOG.debug("drawing the reconstruction of %s, frame %d", scene, frame)
    z_scale = config.turbotrain.pretrain.points.z_scale
    drawing = reconstruction_drawing(batch, reconstruction, dataset_grid, z_scale=z_scale)
    return draw_reconstruction(drawing, vis / f"reconstruction_{scene}_{frame:06d}.png")


def reconstruction_drawing(
    batch: Batch, reconstruction: Reconstruction, grid: BevGrid, *, z_scale: float = 1.0
) -> ReconstructionDrawing:
    """Return what a picture of a masked batch of one sample shows.

    The target is what the point loss is taken over: current points in masked cells. ``z_scale`` is
    ``pretrain.points.z_scale``.
    """
    if batch.reconstruction is None:
        raise ValueError("`batch.reconstruction` must hold the current points. Found None.")
    scene, frame, _ = batch.keys[0]
    region = reconstruction.region[0, -1]
    xyz = batch.reconstruction.xyz[batch.reconstruction.age == 0]
    cell_x, cell_y = grid.cell_m
    columns = ((xyz[:, 0] - grid.range_m[0]) / cell_x).long().clamp(0, grid.width - 1)
    rows = ((xyz[:, 1] - grid.range_m[1]) / cell_y).long().clamp(0, grid.height - 1)
    occupancy = reconstruction.occupancy
    return ReconstructionDrawing(
        scene=scene,
        frame=frame,
        range_m=grid.range_m,
        visible=_visible_points(batch, reconstruction),
        target=xyz[region[rows, columns]].numpy(),
        rebuilt=_rebuilt_points(reconstruction, grid, z_scale),
        occupancy=None
        if occupancy is None
        else occupancy[0, -1].sigmoid().amax(-1).float().numpy(),
    )


def _visible_points(batch: Batch, reconstruction: Reconstruction) -> NDArray[np.float32]:
    """Return the points of the current frames that the encoder was given."""
    frames = batch.frame_valid.shape[1]
    current = batch.voxels.coordinates[:, 0] % frames == frames - 1
    shown = current & ~reconstruction.masked
    slots = torch.arange(batch.voxels.points.shape[1]) < batch.voxels.point_counts[shown, None]
    points: NDArray[np.float32] = batch.voxels.points[shown][slots][:, :3].numpy()
    return points


def _rebuilt_points(
    reconstruction: Reconstruction, grid: BevGrid, z_scale: float
) -> NDArray[np.float32] | None:
    """Return the predicted points of the region in metres: the inverse of the targets' units."""
    if reconstruction.points is None:
        return None
    rows, columns = reconstruction.region[0, -1].nonzero(as_tuple=True)
    unit = reconstruction.points[0, -1, rows, columns].float().numpy()
    centres = grid.cell_centres()[rows.numpy(), columns.numpy()]
    cell_x, cell_y = grid.cell_m
    low, high = grid.range_m[2], grid.range_m[5]
    x = centres[:, None, 0] + unit[..., 0] * cell_x
    y = centres[:, None, 1] + unit[..., 1] * cell_y
    z = (low + high) / 2 + unit[..., 2] / z_scale * (high - low)
    return np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float32)
