"""Chamfer loss against scipy's distance matrices and against autograd through all pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from benchmarks.measure import peak_memory
from turbotrain_plugin.losses import chamfer_loss

_METRIC: dict[str, Literal["cityblock", "sqeuclidean"]] = {
    "l1": "cityblock",
    "l2": "sqeuclidean",
}


def _case(seed: int, cells: int = 40, predicted: int = 20, capacity: int = 64) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, capacity + 1, size=cells)
    target = rng.uniform(-0.5, 0.5, size=(cells, capacity, 3))
    # Quantised points make ties, which any choice of partner must price alike.
    target[::3] = np.round(target[::3], 1)
    points = rng.normal(0.0, 0.4, size=(cells, predicted, 3))
    points[::4] = np.round(points[::4], 1)
    return [torch.from_numpy(points), torch.from_numpy(target), torch.from_numpy(counts)]


def _by_scipy(points: Tensor, target: Tensor, counts: Tensor, distance: str, pool: str) -> float:
    forward, backward = [], []
    for cell, count in enumerate(counts.tolist()):
        pairs = cdist(points[cell].numpy(), target[cell, :count].numpy(), _METRIC[distance])
        forward.append(pairs.min(axis=1))
        backward.append(pairs.min(axis=0))
    if pool == "all":
        return float(np.concatenate(forward).mean() + np.concatenate(backward).mean())
    return float(np.mean([f.mean() + b.mean() for f, b in zip(forward, backward, strict=True)]))


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("pool", ["cell", "all"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_equals_scipy(distance: str, pool: str, seed: int) -> None:
    points, target, counts = _case(seed)
    loss = chamfer_loss(points, target, counts, distance=distance, pool=pool)
    assert loss.item() == pytest.approx(_by_scipy(points, target, counts, distance, pool))


def _through_all_pairs(
    points: Tensor, target: Tensor, counts: Tensor, distance: str, pool: str
) -> Tensor:
    difference = points[:, :, None] - target[:, None]
    pairs = difference.abs().sum(-1) if distance == "l1" else difference.square().sum(-1)
    padded = torch.arange(target.shape[1]) >= counts[:, None]
    forward = pairs.masked_fill(padded[:, None], torch.inf).amin(dim=2)
    backward = pairs.amin(dim=1).masked_fill(padded, 0.0).sum(dim=1)
    if pool == "all":
        return forward.mean() + backward.sum() / counts.sum()
    return (forward.mean(dim=1) + backward / counts).mean()


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("pool", ["cell", "all"])
def test_gradient_equals_autograd_through_all_pairs(distance: str, pool: str) -> None:
    rng = np.random.default_rng(7)
    points = torch.from_numpy(rng.normal(0.0, 0.4, size=(30, 20, 3))).requires_grad_()
    target = torch.from_numpy(rng.uniform(-0.5, 0.5, size=(30, 64, 3)))
    counts = torch.from_numpy(rng.integers(1, 65, size=30))
    (ours,) = torch.autograd.grad(
        chamfer_loss(points, target, counts, distance=distance, pool=pool), points
    )
    (theirs,) = torch.autograd.grad(
        _through_all_pairs(points, target, counts, distance, pool), points
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_memory_is_a_fifth_of_that_of_all_pairs_at_most(distance: str) -> None:
    """Forward and backward, every slot filled; benchmarks/chamfer.py measures the paper's grid."""
    rng = np.random.default_rng(0)
    cells = 6000
    points = torch.from_numpy(rng.normal(0.0, 0.4, size=(cells, 20, 3)).astype(np.float32))
    target = torch.from_numpy(rng.uniform(-0.5, 0.5, size=(cells, 64, 3)).astype(np.float32))
    counts = torch.full((cells,), 64)
    points.requires_grad_()

    def step(loss: Callable[..., Tensor], *more: str, **options: str) -> Callable[[], None]:
        return lambda: torch.autograd.backward(loss(points, target, counts, *more, **options))

    ours = peak_memory(step(chamfer_loss, distance=distance))
    theirs = peak_memory(step(_through_all_pairs, distance, "cell"))
    assert theirs > 5 * ours
