"""Peak memory and time of the Chamfer loss at the paper's grid, against comparing all pairs.

A batch of 4 windows of the dense synthetic scene, 70 % of the columns hidden: the cells to rebuild
and their true points are those of a pretraining step; the 20 predicted points a cell are random.
Each method runs forward and backward on the same tensors and must give the same loss.

    python -m benchmarks.chamfer [--repeats 5] [--out DIR]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import measure, peak_memory, write_result
from turbotrain_plugin.config import PretrainConfig, RunConfig, load_hypes
from turbotrain_plugin.data import BatchLoader, SampleKey
from turbotrain_plugin.engine.assembly import build_dataset
from turbotrain_plugin.losses import chamfer_loss
from turbotrain_plugin.pretraining import (
    PointTargets,
    cell_points,
    choose_points,
    mask_columns,
    masked_region,
)

HYPES = "turbotrain_v2xpnp.yaml"
BATCH = 4
TARGET = 5.0
"""Times less memory than all pairs."""

Loss = Callable[[Tensor, PointTargets], Tensor]


def ours(predicted: Tensor, targets: PointTargets) -> Tensor:
    return chamfer_loss(predicted, targets.xyz, targets.counts)


def _of_pairs(pairs: Tensor, targets: PointTargets) -> Tensor:
    slots = torch.arange(targets.xyz.shape[1], device=pairs.device)
    padded = slots >= targets.counts[:, None]
    forward = pairs.masked_fill(padded[:, None], torch.inf).amin(dim=2)
    backward = pairs.amin(dim=1).masked_fill(padded, 0.0).sum(dim=1)
    return (forward.mean(dim=1) + backward / targets.counts).mean()


def all_pairs(predicted: Tensor, targets: PointTargets) -> Tensor:
    """Differences of every pair, as the lineage computes them."""
    difference = predicted[:, :, None] - targets.xyz[:, None]
    return _of_pairs(difference.abs().sum(dim=-1), targets)


def all_distances(predicted: Tensor, targets: PointTargets) -> Tensor:
    """Distances of every pair without their differences: torch's own fused operator."""
    return _of_pairs(torch.cdist(predicted, targets.xyz, p=1.0), targets)


METHODS: dict[str, Loss] = {
    "ours": ours,
    "all pairs": all_pairs,
    "all distances (cdist)": all_distances,
}


def step_targets(config: RunConfig, device: torch.device) -> PointTargets:
    """Return what a step of the file's pretraining rebuilds, for 4 samples."""
    dataset = build_dataset(config, "train", "pretrain")
    stride = max(1, len(dataset) // BATCH)
    keys = [SampleKey(0, (number * stride) % len(dataset)) for number in range(BATCH)]
    batch = next(iter(BatchLoader(dataset, [keys])))
    keys_of = config.turbotrain.pretrain
    generator = torch.Generator().manual_seed(0)
    masked = mask_columns(
        batch.voxels.coordinates,
        dataset.grid,
        keys_of.mask.ratio,
        generator,
        map_count=batch.voxels.map_count,
    )
    region = masked_region(batch, masked, dataset.grid, keys_of.loss_region)
    assert batch.reconstruction is not None
    found = cell_points(batch.reconstruction, dataset.grid)
    targets = choose_points(found, region, keys_of.points.max_targets, generator)
    return PointTargets(targets.cell.to(device), targets.xyz.to(device), targets.counts.to(device))


def compare(targets: PointTargets, repeats: int, count: int) -> dict[str, Any]:
    """Return memory and time of every method on these targets.

    Raises:
        RuntimeError: When the losses differ.
    """
    generator = torch.Generator().manual_seed(1)
    predicted = 0.3 * torch.randn(len(targets.cell), count, 3, generator=generator)
    predicted = predicted.to(targets.xyz.device).requires_grad_()

    def step_of(loss: Loss) -> Callable[[], None]:
        def step() -> None:
            predicted.grad = None
            torch.autograd.backward(loss(predicted, targets))

        return step

    values = {name: float(loss(predicted, targets).detach()) for name, loss in METHODS.items()}
    if max(values.values()) - min(values.values()) > 1e-5:
        raise RuntimeError(f"The losses differ: {values}.")
    steps = {name: step_of(loss) for name, loss in METHODS.items()}
    for step in steps.values():
        step()
    memory = {name: peak_memory(step) for name, step in steps.items()}
    return {
        "cells": len(targets.cell),
        "true_points_mean": float(targets.counts.double().mean()),
        "loss": values["ours"],
        "peak_mb": {name: bytes_ / 1e6 for name, bytes_ in memory.items()},
        "times_less_memory": {name: bytes_ / memory["ours"] for name, bytes_ in memory.items()},
        "time": measure(steps, repeats),
        "target_times_less_than_all_pairs": TARGET,
        "met": memory["all pairs"] / memory["ours"] >= TARGET,
    }


def full_cells(targets: PointTargets) -> PointTargets:
    """Return as many cells with every slot filled: the hardest case for blocks of like size."""
    generator = torch.Generator().manual_seed(2)
    xyz = torch.rand(targets.xyz.shape, generator=generator).to(targets.xyz.device) - 0.5
    counts = torch.full_like(targets.counts, targets.xyz.shape[1])
    return PointTargets(targets.cell, xyz, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root", default="synthetic:probe", help="training split")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    config = load_hypes(HYPES, [f"root_dir={options.root}", "turbotrain.data.num_workers=0"])
    points = PretrainConfig().points
    targets = step_targets(config, torch.device(options.device))
    results = {
        "step": compare(targets, options.repeats, points.count),
        "every slot filled": compare(full_cells(targets), options.repeats, points.count),
    }
    settings = {
        "hypes": HYPES,
        "root": options.root,
        "batch": BATCH,
        "predicted": points.count,
        "max_targets": points.max_targets,
        "device": options.device,
    }
    write_result(options.out, "chamfer", settings, results)
    for name, result in results.items():
        print(name, result["cells"], "cells", result["peak_mb"], result["times_less_memory"])


if __name__ == "__main__":
    main()
