"""Balanced steps through sparse convolutions, whose autograd functions are spconv's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.balancing.graph import leaves_of_tasks
from turbotrain_plugin.balancing.sweep import low_memory_gradients, torch_starts_inside_graphs
from turbotrain_plugin.models.spconv_support import load_spconv

pytest.importorskip("spconv.pytorch")


class SparseTrunk(nn.Module):
    """Submanifold and strided sparse convolutions, made dense, and a head a task."""

    def __init__(self) -> None:
        super().__init__()
        spconv = load_spconv()
        self.spconv = spconv
        self.trunk = spconv.SparseSequential(
            spconv.SubMConv3d(4, 8, 3, bias=False, indice_key="a"),
            nn.ReLU(),
            spconv.SparseConv3d(8, 8, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        self.detection_head = nn.Linear(8, 2)
        self.prediction_head = nn.Linear(8, 3)

    def forward(self, features: Tensor, coordinates: Tensor) -> dict[str, Tensor]:
        sparse = self.spconv.SparseConvTensor(features, coordinates, [8, 16, 16], 1)
        z = self.trunk(sparse).dense().amax(dim=2).flatten(2).transpose(1, 2)
        return {
            "detection": (self.detection_head(z) - 1.0).square().mean(),
            "prediction": (self.prediction_head(z) + z[..., :3]).square().mean(),
        }


@pytest.fixture
def model() -> SparseTrunk:
    torch.manual_seed(0)
    return SparseTrunk()


@pytest.fixture
def voxels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sites = torch.randperm(8 * 16 * 16, generator=generator)[:200]
    place = torch.stack([sites * 0, sites // 256, sites // 16 % 16, sites % 16], dim=1)
    return torch.randn(200, 4, generator=generator), place.int()


def test_a_balanced_step(
    model: SparseTrunk,
    voxels: tuple[Tensor, Tensor],
    make_balancer: Callable[..., GradientBalancer],
) -> None:
    separate: list[dict[str, Tensor]] = []
    for task in ("detection", "prediction"):
        model.zero_grad()
        loss: Any = model(*voxels)[task]
        loss.backward()
        separate.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    trunk = [n for n in separate[0] if n.startswith("trunk")]
    first, second = (torch.cat([g[n].flatten() for n in trunk]).double() for g in separate)
    product = float(first @ second)
    weights = [1.0 - min(product, 0.0) / float(g @ g) for g in (first, second)]
    balancer = make_balancer(model)
    balancer.zero_grad()
    balancer.backward(model(*voxels))
    for name in trunk:
        expected = weights[0] * separate[0][name] + weights[1] * separate[1][name]
        torch.testing.assert_close(model.get_parameter(name).grad, expected, rtol=1e-4, atol=1e-7)
    balancer.step()
    assert balancer.last_record is not None
    assert list(balancer.last_record.weights.values()) == pytest.approx(weights, rel=1e-4)
    assert set(balancer.shared_names) == set(trunk)


@pytest.mark.skipif(not torch_starts_inside_graphs(), reason="torch cannot start inside a graph")
def test_the_low_memory_sweep(model: SparseTrunk, voxels: tuple[Tensor, Tensor]) -> None:
    losses = model(*voxels)
    leaves = leaves_of_tasks(losses)
    expected = {
        task: torch.autograd.grad(loss, leaves[task], retain_graph=True)
        for task, loss in losses.items()
    }
    found = low_memory_gradients(losses, leaves)
    for task, gradients in expected.items():
        for leaf, gradient in zip(leaves[task], gradients, strict=True):
            torch.testing.assert_close(found[task][leaf], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.skipif(not torch_starts_inside_graphs(), reason="torch cannot start inside a graph")
@pytest.mark.parametrize("source", ["cut", "feature"])
def test_one_pass_below(model: SparseTrunk, voxels: tuple[Tensor, Tensor], source: str) -> None:
    """With the first convolution below the cut, and with all of them below the feature."""
    separate = []
    for task in ("detection", "prediction"):
        model.zero_grad()
        model(*voxels)[task].backward()
        separate.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        free_steps=0,
        balance_steps=1,
        named_parameters=model.named_parameters(),
        source=source,
        cut="trunk.0",
    )
    balancer.zero_grad()
    balancer.backward(model(*voxels))
    written = {name: parameter.grad for name, parameter in model.named_parameters()}
    balancer.step()
    assert balancer.last_record is not None
    weights = list(balancer.last_record.weights.values())
    if source == "cut":
        first, second = (g["trunk.2.weight"].flatten().double() for g in separate)
        product = min(float(first @ second), 0.0)
        assert weights == pytest.approx([1 - product / float(g @ g) for g in (first, second)])
    for name in ("trunk.0.weight", "trunk.2.weight"):
        expected = weights[0] * separate[0][name] + weights[1] * separate[1][name]
        torch.testing.assert_close(written[name], expected, rtol=1e-4, atol=1e-7)
