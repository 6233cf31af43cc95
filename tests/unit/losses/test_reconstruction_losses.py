"""Chamfer and occupancy losses: hand values, graph, options, refusals, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.losses import (
    PRINTED,
    STANDARD,
    chamfer_loss,
    focal_from_logits,
    nearest_pairs,
    occupancy_loss,
)


def _made(
    cells: int, predicted: int, capacity: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(cells, predicted, 3, generator=generator, dtype=dtype) - 0.5
    target = torch.rand(cells, capacity, 3, generator=generator, dtype=dtype) - 0.5
    counts = torch.randint(1, capacity + 1, (cells,), generator=generator)
    return points, target, counts


# Two predicted points, three true points (the fourth slot is padding), and one cell with one.
_PREDICTED = torch.tensor([[[0.0, 0, 0], [1.0, 0, 0]], [[0.0, 0, 0], [0.0, 2.0, 0]]])
_TARGET = torch.tensor(
    [
        [[0.0, 0.5, 0], [1.0, 0.0, 0], [3.0, 0, 1.0], [0.0, 0, 0]],
        [[0.0, 0.0, 3.0], [0.0, 0, 0], [0.0, 2.0, 0], [0.0, 0, 0]],
    ]
)
_COUNTS = torch.tensor([3, 1])


@pytest.mark.parametrize(
    ("distance", "pool", "expected"),
    [
        # l1: cell 0: predicted 0.5, 0; true 0.5, 0, 3; cell 1: predicted 3, 5; true 3.
        ("l1", "cell", ((0.5 + 0) / 2 + 3.5 / 3 + (3 + 5) / 2 + 3.0) / 2),
        ("l1", "all", (0.5 + 0 + 3 + 5) / 4 + (3.5 + 3.0) / 4),
        # l2: squares: cell 0: 0.25, 0; 0.25, 0, 5; cell 1: 9, 13; 9.
        ("l2", "cell", (0.25 / 2 + 5.25 / 3 + (9 + 13) / 2 + 9.0) / 2),
        ("l2", "all", (0.25 + 0 + 9 + 13) / 4 + (5.25 + 9.0) / 4),
    ],
)
def test_hand_values(distance: str, pool: str, expected: float) -> None:
    loss = chamfer_loss(_PREDICTED, _TARGET, _COUNTS, distance=distance, pool=pool)
    assert loss.item() == pytest.approx(expected)


def test_identical_points_are_at_distance_zero() -> None:
    points = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(0))
    shuffled = points[:, torch.randperm(7, generator=torch.Generator().manual_seed(1))]
    assert chamfer_loss(points, shuffled, torch.full((5,), 7)) == 0


def test_order_of_points_is_irrelevant() -> None:
    predicted, target, _ = _made(6, 5, 8)
    full = torch.full((6,), 8)
    generator = torch.Generator().manual_seed(2)
    other_predicted = predicted[:, torch.randperm(5, generator=generator)]
    other_target = target[:, torch.randperm(8, generator=generator)]
    torch.testing.assert_close(
        chamfer_loss(other_predicted, other_target, full), chamfer_loss(predicted, target, full)
    )


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_padding_is_never_read(distance: str) -> None:
    predicted, target, counts = _made(6, 5, 8)
    predicted.requires_grad_()
    expected = chamfer_loss(predicted, target, counts, distance=distance)
    target[torch.arange(8) >= counts[:, None]] = float("nan")
    loss = chamfer_loss(predicted, target, counts, distance=distance)
    torch.autograd.backward(loss)
    torch.testing.assert_close(loss, expected)
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()


@pytest.mark.parametrize("pool", ["cell", "all"])
def test_no_cell_gives_zero_with_the_graph_intact(pool: str) -> None:
    everything = torch.rand(4, 20, 3, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = chamfer_loss(everything[nothing], torch.zeros(0, 64, 3), nothing, pool=pool)
    torch.autograd.backward(loss)
    assert loss == 0
    assert everything.grad is not None
    assert not everything.grad.any()


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("pool", ["cell", "all"])
def test_gradcheck(distance: str, pool: str) -> None:
    predicted, target, counts = _made(3, 4, 6, dtype=torch.float64)
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda points: chamfer_loss(points, target, counts, distance=distance, pool=pool),
        (predicted,),
    )


def test_blocks_do_not_change_the_partners() -> None:
    predicted, target, counts = _made(50, 5, 8)
    whole = nearest_pairs(predicted, target, counts)
    pieces = nearest_pairs(predicted, target, counts, cells_at_once=7)
    real = torch.arange(8) < counts[:, None]
    assert torch.equal(whole[0], pieces[0])
    assert torch.equal(whole[1][real], pieces[1][real])


def _graph_bytes(loss: Tensor) -> int:
    """Bytes of the distinct tensors the graph keeps for the backward pass."""
    kept: dict[int, int] = {}
    todo, seen = [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            if name.startswith("_saved_"):
                value = getattr(node, name)
                if isinstance(value, Tensor):
                    storage = value.untyped_storage()
                    kept[storage.data_ptr()] = storage.nbytes()
        todo.extend(parent for parent, _ in node.next_functions)
    return sum(kept.values())


def test_the_graph_holds_far_less_than_all_pairs() -> None:
    predicted, target, _ = _made(200, 20, 64)
    full = torch.full((200,), 64)
    points = predicted.requires_grad_()
    ours = _graph_bytes(chamfer_loss(points, target, full))
    pairs = (points[:, :, None] - target[:, None]).abs().sum(-1)
    expanded = _graph_bytes(pairs.amin(2).mean() + pairs.amin(1).mean())
    assert 0 < ours * 5 < expanded


def test_float32_under_autocast() -> None:
    predicted, target, counts = _made(6, 5, 8)
    half = predicted.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chamfer_loss(half, target, counts, distance="l2")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, chamfer_loss(half.float(), target, counts, distance="l2"))


@pytest.mark.parametrize("count", [0, 5])
def test_counts_beyond_the_slots_are_refused(count: int) -> None:
    counts = torch.tensor([3, count])
    with pytest.raises(ValueError, match=r"`counts` must lie in \[1, 4\].*Found"):
        chamfer_loss(_PREDICTED, _TARGET, counts)


def test_wrong_shapes_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`predicted` must be \(R, Q, 3\)"):
        chamfer_loss(_PREDICTED[0], _TARGET, _COUNTS)
    with pytest.raises(ValueError, match=r"one row a cell.*Found 2, 2 and 1"):
        chamfer_loss(_PREDICTED, _TARGET, _COUNTS[:1])
    with pytest.raises(ValueError, match=r"`distance` must be 'l1' or 'l2'\. Found 'l3'"):
        chamfer_loss(_PREDICTED, _TARGET, _COUNTS, distance="l3")
    with pytest.raises(ValueError, match=r"`pool` must be 'cell' or 'all'\. Found 'batch'"):
        chamfer_loss(_PREDICTED, _TARGET, _COUNTS, pool="batch")


def test_occupancy_is_the_mean_over_bins() -> None:
    logits = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    occupied = torch.rand(5, 20, generator=torch.Generator().manual_seed(1)) < 0.3
    loss = occupancy_loss(logits, occupied, STANDARD)
    torch.testing.assert_close(loss, focal_from_logits(logits, occupied, STANDARD).mean())


def test_occupancy_without_cells_is_zero_with_the_graph_intact() -> None:
    logits = torch.randn(5, 20, requires_grad=True)
    loss = occupancy_loss(logits[:0], torch.zeros(0, 20, dtype=torch.bool), PRINTED)
    torch.autograd.backward(loss)
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()
