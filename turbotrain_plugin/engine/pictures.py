"""The pictures of a run: scenes from above, masked reconstruction, training curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import BatchLoader, CooperativeDataset
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import build_dataset, build_network, derive_seed
from turbotrain_plugin.engine.records import LOG, METRICS
from turbotrain_plugin.engine.stages import (
    PRETRAIN,
    Stage,
    network_config,
    stages_of,
    training_config,
)
from turbotrain_plugin.engine.validation import Evaluated, raw_key, sample_indices
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.pretraining import MaskedPretrainer, masked_region
from turbotrain_plugin.reporting import (
    ReconstructionDrawing,
    SceneDrawing,
    draw_curves,
    draw_reconstruction,
    draw_scene,
)
from turbotrain_plugin.structures import (
    Batch,
    DetectedObjects,
    Reconstruction,
    Sample,
    move_tensors,
)

CPU: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class PictureWork:
    """Which samples to draw.

    Attributes:
        vis: Folder for the pictures.
        source: File of the weights, for messages.
        split: ``train``, ``validate`` or ``test``.
        samples: How many, spread evenly.
        index: One sample in place of ``samples``.
        device: Where to compute.
    """

    vis: Path
    source: Path
    split: str
    samples: int = 1
    index: int | None = None
    device: torch.device = CPU


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
    drawn = draw_scenes(dataset, evaluated, vis)
    for stage in stages_of(config):
        weights = checkpoints.stage_weights(folder, stage.name)
        if stage.kind == PRETRAIN and weights.is_file() and evaluated.drawn:
            work = PictureWork(vis, weights, dataset.split, index=min(evaluated.drawn))
            drawn += draw_masked(config, stage, checkpoints.load(weights)["learner"], work)
    if (folder / METRICS).is_file():
        drawn.append(draw_curves(folder / METRICS, vis / "curves.png"))
    return drawn


def draw_scenes(dataset: CooperativeDataset, evaluated: Evaluated, vis: Path) -> list[Path]:
    """Draw the samples whose detections were kept."""
    return [_scene(dataset, index, found, vis) for index, found in evaluated.drawn.items()]


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


def draw_masked(
    config: RunConfig, stage: Stage, learner_state: Mapping[str, Tensor], work: PictureWork
) -> list[Path]:
    """Draw what a pretrained network makes of samples, as they are: not augmented, fixed ego.

    Args:
        config: The run's configuration.
        stage: Its pretraining stage.
        learner_state: State of the ``MaskedPretrainer``, heads included.
        work: What to draw, and where to.
    """
    # A sample by its number is one of what was evaluated; else those the stage learns from.
    settings = network_config if work.index is not None else training_config
    config = settings(config, stage)
    block = config.turbotrain
    plain = replace(
        block,
        pretrain=replace(block.pretrain, data_augment=False),
        data=replace(block.data, train_ego="fixed"),
    )
    dataset = build_dataset(replace(config, turbotrain=plain), work.split, "pretrain")
    learner = MaskedPretrainer(build_network(config, dataset), dataset.grid, block.pretrain)
    checkpoints.load_weights(learner, learner_state, work.source)
    learner.to(work.device).eval()
    indices = sample_indices(dataset, work.samples) if work.index is None else [work.index]
    generator = torch.Generator(device=work.device)
    drawn = []
    for index, batch in zip(
        indices, BatchLoader(dataset, [[raw_key(i)] for i in indices]), strict=True
    ):
        generator.manual_seed(derive_seed(config.seed, stage.name, "picture"))
        with torch.no_grad():
            _, found = learner(batch.to(work.device), generator)
        scene, frame, _ = batch.keys[0]
        LOG.debug("drawing the reconstruction of sample %d: %s, frame %d", index, scene, frame)
        drawing = reconstruction_drawing(
            batch,
            move_tensors(found, CPU),
            dataset.grid,
            z_scale=block.pretrain.points.z_scale,
        )
        path = work.vis / f"reconstruction_{scene}_{frame:06d}.png"
        drawn.append(draw_reconstruction(drawing, path))
    return drawn


def reconstruction_drawing(
    batch: Batch, reconstruction: Reconstruction, grid: BevGrid, *, z_scale: float = 1.0
) -> ReconstructionDrawing:
    """Return what a picture of a masked batch of one sample shows.

    The target is what the point loss is taken over: current points in masked cells, whatever other
    frames are rebuilt, too. ``z_scale`` is
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
    occupied = torch.zeros_like(region)
    occupied[rows, columns] = True
    occupancy = reconstruction.occupancy
    return ReconstructionDrawing(
        scene=scene,
        frame=frame,
        range_m=grid.range_m,
        visible=_visible_points(batch, reconstruction),
        mask=_mask_states(batch, reconstruction.masked, grid),
        target=xyz[region[rows, columns]].numpy(),
        rebuilt=_rebuilt_points(reconstruction, grid, z_scale),
        occupied=None if occupancy is None else occupied.numpy(),
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


def _mask_states(batch: Batch, masked: Tensor, grid: BevGrid) -> NDArray[np.int64]:
    """Return (H, W): 0 no current points, 1 seen, 2 hidden from some agents, 3 hidden from all."""
    touched = torch.ones_like(masked)
    held, hidden, seen = (
        masked_region(batch, chosen, grid, "any")[0, -1] for chosen in (touched, masked, ~masked)
    )
    states: NDArray[np.int64] = (held.long() + hidden.long() + (hidden & ~seen).long()).numpy()
    return states


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
