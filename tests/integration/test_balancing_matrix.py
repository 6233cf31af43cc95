"""Precision x accumulation x kind of step x clipping x source, against explicit computations."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.balance_matrix import (
    PRECISIONS,
    RATE,
    ROWS,
    SOURCES,
    assert_close,
    clipped,
    flat,
    is_encoder,
    is_shared,
    only,
    ours,
    slow,
)
from tests.helpers.made_tasks import TinyTasks, made_inputs
from turbotrain_plugin.balancing.sweep import torch_starts_inside_graphs

pytestmark = pytest.mark.skipif(
    not torch_starts_inside_graphs(), reason="torch cannot start inside a graph"
)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("balanced", [False, True], ids=["free", "balanced"])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("precision", sorted(PRECISIONS))
def test_one_step(precision: str, n: int, balanced: bool, clip: bool, source: str) -> None:
    keys = PRECISIONS[precision]
    model, x = TinyTasks(dtype=keys["dtype"]), made_inputs(rows=ROWS, dtype=keys["dtype"])
    expected = slow(model, x, keys, n, source, balanced=balanced)
    if clip:
        expected = clipped(expected)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found, balancer = ours(model, x, keys, n, source, balanced=balanced, clip=clip)
    assert_close(found, expected, keys["rtol"])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name].add(found[name], alpha=-RATE)), name
    record = balancer.last_record
    assert record is not None
    assert record.balanced == balanced
    if balanced:  # else no source would differ from the plain sum
        assert set(record.conflict.values()) == {True}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("balanced", [False, True], ids=["free", "balanced"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("precision", ["float64", "fp32"])
def test_accumulation_is_one_large_batch(
    precision: str, n: int, balanced: bool, source: str
) -> None:
    """Everywhere but below a cut, which has to be weighed before all micro-batches are known."""
    keys = PRECISIONS[precision]
    x = made_inputs(rows=ROWS, dtype=keys["dtype"])
    large, _ = ours(
        TinyTasks(dtype=keys["dtype"]), x, keys, 1, source, balanced=balanced, clip=False
    )
    small, _ = ours(
        TinyTasks(dtype=keys["dtype"]), x, keys, n, source, balanced=balanced, clip=False
    )
    below = {"cut": is_encoder, "feature": is_shared}.get(source)
    if balanced and below is not None:
        gap = flat(only(large, below)) - flat(only(small, below))
        assert 1e-4 < float(gap.norm() / flat(large).norm()) < 0.2
        large, small = (only(gradient, lambda name: not below(name)) for gradient in (large, small))
    assert_close(small, large, keys["rtol"])


def test_the_sources_differ_here() -> None:
    """Else the matrix could not tell one from another."""
    keys = PRECISIONS["float64"]
    model, x = TinyTasks(), made_inputs(rows=ROWS)
    found = [
        slow(model, x, keys, 1, source, balanced=True) for source in ("exact", "cut", "feature")
    ]
    found.append(slow(model, x, keys, 1, "exact", balanced=False))
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert float((flat(one) - flat(other)).norm() / flat(one).norm()) > 1e-3
