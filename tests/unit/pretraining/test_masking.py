"""Masks: exact counts, whole columns, independence, edges; and the region they open."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.made_batches import make_batch, small_grid
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.pretraining import (
    column_index,
    mask_columns,
    masked_region,
    shared_orders,
)

# 8 x 16 cells of 2 x 2 voxels, 3 voxels high.
_GRID = BevGrid((-6.4, -3.2, -3.0, 6.4, 3.2, 3.0), (0.4, 0.4, 2.0), 2)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _columns(map_index: int, count: int, seed: int = 0) -> Tensor:
    """Voxels of ``count`` distinct columns of a map, one to four voxels each."""
    generator = _seeded(seed)
    cells = torch.randperm(_GRID.height * _GRID.width, generator=generator)[:count]
    rows = []
    for cell in cells.tolist():
        for _ in range(int(torch.randint(1, 5, (1,), generator=generator))):
            z, dy, dx = torch.randint(0, 2, (3,), generator=generator).tolist()
            y, x = divmod(cell, _GRID.width)
            rows.append([map_index, z, 2 * y + dy, 2 * x + dx])
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, 4)


def _masked_columns(coordinates: Tensor, masked: Tensor) -> tuple[set[int], set[int]]:
    """Columns with a hidden voxel, and columns with a visible one."""
    column = column_index(coordinates, _GRID)
    return set(column[masked].tolist()), set(column[~masked].tolist())


def test_column_index_counts_maps_rows_and_columns_of_cells() -> None:
    coordinates = torch.tensor([[0, 0, 0, 0], [0, 2, 1, 1], [0, 0, 2, 5], [3, 1, 15, 31]])
    expected = [0, 0, 1 * 16 + 2, 3 * 128 + 7 * 16 + 15]
    assert column_index(coordinates, _GRID).tolist() == expected


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("count", [2, 3, 7, 10, 20, 50, 100])
def test_exact_share_of_whole_columns(ratio: float, count: int) -> None:
    coordinates = _columns(0, count)
    hidden, visible = _masked_columns(
        coordinates, mask_columns(coordinates, _GRID, ratio, _seeded())
    )
    expected = count - math.floor(round((1 - ratio) * count, 9))
    assert not hidden & visible
    assert len(hidden) + len(visible) == count
    assert len(hidden) == min(max(expected, 1), count - 1)


def test_every_map_has_its_own_share() -> None:
    sizes = [40, 1, 13, 0, 100]
    coordinates = torch.cat([_columns(i, n, seed=i) for i, n in enumerate(sizes)])
    masked = mask_columns(coordinates, _GRID, 0.7, _seeded(), map_count=5)
    for index, size in enumerate(sizes):
        here = coordinates[:, 0] == index
        hidden, _ = _masked_columns(coordinates[here], masked[here])
        assert len(hidden) == size - math.floor(0.3 * size + 1e-9)


def test_ratio_zero_hides_nothing_and_ratio_one_keeps_one_column() -> None:
    coordinates = _columns(0, 20)
    assert not mask_columns(coordinates, _GRID, 0.0, _seeded()).any()
    hidden, visible = _masked_columns(coordinates, mask_columns(coordinates, _GRID, 1.0, _seeded()))
    assert (len(hidden), len(visible)) == (19, 1)


@pytest.mark.parametrize("ratio", [1e-9, 0.001, 0.3, 0.7, 0.999, 1.0])
def test_two_columns_are_always_one_hidden_one_kept(ratio: float) -> None:
    coordinates = _columns(0, 2)
    hidden, visible = _masked_columns(
        coordinates, mask_columns(coordinates, _GRID, ratio, _seeded())
    )
    assert (len(hidden), len(visible)) == (1, 1)


def test_seeds_repeat_and_differ() -> None:
    coordinates = _columns(0, 60)
    first = mask_columns(coordinates, _GRID, 0.7, _seeded(1))
    assert torch.equal(first, mask_columns(coordinates, _GRID, 0.7, _seeded(1)))
    assert not torch.equal(first, mask_columns(coordinates, _GRID, 0.7, _seeded(2)))


def test_successive_draws_of_one_generator_differ() -> None:
    coordinates, generator = _columns(0, 60), _seeded()
    first = mask_columns(coordinates, _GRID, 0.7, generator)
    assert not torch.equal(first, mask_columns(coordinates, _GRID, 0.7, generator))


def test_the_same_cells_in_two_maps_are_drawn_independently() -> None:
    one = _columns(0, 60)
    two = one.clone()
    two[:, 0] = 1
    masked = mask_columns(torch.cat([one, two]), _GRID, 0.7, _seeded(), map_count=2)
    assert not torch.equal(masked[: len(one)], masked[len(one) :])


@pytest.mark.parametrize("other", [0, 1, 5, 90])
def test_what_other_maps_hold_changes_nothing(other: int) -> None:
    mine = _columns(1, 60, seed=5)
    reference = mask_columns(
        torch.cat([_columns(0, 30), mine, _columns(2, 30)]), _GRID, 0.7, _seeded(), map_count=3
    )
    start = len(_columns(0, 30))
    before, after = _columns(0, other, seed=9), _columns(2, other, seed=8)
    masked = mask_columns(torch.cat([before, mine, after]), _GRID, 0.7, _seeded(), map_count=3)
    own = masked[len(before) : len(before) + len(mine)]
    assert torch.equal(own, reference[start : start + len(mine)])


def test_order_of_voxels_changes_nothing() -> None:
    coordinates = torch.cat([_columns(0, 40), _columns(1, 40, seed=1)])
    order = torch.randperm(len(coordinates), generator=_seeded(3))
    masked = mask_columns(coordinates, _GRID, 0.7, _seeded())
    assert torch.equal(mask_columns(coordinates[order], _GRID, 0.7, _seeded()), masked[order])


@pytest.mark.parametrize("ratio", [0.0, 0.7])
def test_content_does_not_change_what_is_drawn_next(ratio: float) -> None:
    nexts = []
    for coordinates in (_columns(0, 60), _columns(0, 3), torch.zeros(0, 4, dtype=torch.int32)):
        generator = _seeded()
        mask_columns(coordinates, _GRID, ratio, generator, map_count=2)
        nexts.append(torch.rand(1, generator=generator).item())
    assert nexts[0] == nexts[1] == nexts[2]


def test_every_column_is_hidden_equally_often() -> None:
    coordinates = _columns(0, 20)
    generator = _seeded()
    counts = torch.zeros(len(coordinates))
    for _ in range(2000):
        counts += mask_columns(coordinates, _GRID, 0.7, generator)
    # 2000 draws: standard deviation 0.01; five of them.
    assert (counts / 2000 - 0.7).abs().max() < 0.05


def test_no_voxels_give_an_empty_mask() -> None:
    empty = torch.zeros(0, 4, dtype=torch.int32)
    assert mask_columns(empty, _GRID, 0.7, _seeded()).shape == (0,)
    assert mask_columns(empty, _GRID, 0.7, _seeded(), map_count=3).dtype == torch.bool


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"`ratio` must lie in \[0, 1\]"):
        mask_columns(_columns(0, 5), _GRID, ratio, _seeded())


# ------------------------------------------------------------------------------------------- region


def test_region_by_hand() -> None:
    batch = make_batch(grid=small_grid(4), record_len=[2, 1], hist_frames=2, seed=0)
    # (map, z, y, x); agents 0, 1 of sample 0 and agent 2 of sample 1, two frames each.
    rows = [
        ([1, 0, 0, 0], True),  # agent 0 now, cell (0, 0): hidden from agent 0 ...
        ([3, 0, 1, 1], False),  # ... but seen by agent 1 in the same cell
        ([1, 0, 2, 0], True),  # cell (1, 0): hidden from both
        ([3, 0, 3, 1], True),
        ([1, 0, 4, 4], True),  # cell (2, 2): only agent 0 has it, hidden
        ([1, 0, 6, 6], False),  # cell (3, 3): only agent 0 has it, seen
        ([0, 0, 0, 6], True),  # cell (0, 3): the past, not to be rebuilt
        ([5, 0, 0, 2], True),  # sample 1, cell (0, 1)
        ([4, 0, 0, 3], False),  # sample 1, the past of that cell, seen
    ]
    batch.voxels.coordinates = torch.tensor([row for row, _ in rows], dtype=torch.int32)
    masked = torch.tensor([hidden for _, hidden in rows])
    any_region = masked_region(batch, masked, small_grid(4), "any")
    all_region = masked_region(batch, masked, small_grid(4), "all")
    assert any_region.shape == (2, 1, 4, 4)
    assert any_region.squeeze(1).nonzero().tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 2], [1, 0, 1]]
    assert all_region.squeeze(1).nonzero().tolist() == [[0, 1, 0], [0, 2, 2], [1, 0, 1]]


def test_nothing_masked_opens_no_region() -> None:
    batch = make_batch(grid=small_grid(), record_len=[2, 1], hist_frames=3, seed=0)
    masked = torch.zeros(len(batch.voxels.coordinates), dtype=torch.bool)
    assert not masked_region(batch, masked, small_grid(), "any").any()
    assert not masked_region(batch, masked, small_grid(), "all").any()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_region_leaves_the_batch_alone(dtype: torch.dtype) -> None:
    batch = make_batch(grid=small_grid(), record_len=[2, 1], hist_frames=3, seed=0)
    batch.voxels.coordinates = batch.voxels.coordinates.to(dtype)
    before = batch.voxels.coordinates.clone()
    masked_region(batch, torch.ones(len(before), dtype=torch.bool), small_grid(), "any")
    assert torch.equal(batch.voxels.coordinates, before)


# ------------------------------------------------------------------------------------------ scopes

_SCOPES = ("independent", "tube", "shared")


def test_orders_by_hand() -> None:
    record_len = torch.tensor([2, 1])
    expected = {
        "independent": [0, 1, 2, 3, 4, 5],
        "tube": [0, 0, 1, 1, 2, 2],
        "shared": [0, 0, 0, 0, 1, 1],
    }
    assert {s: shared_orders(record_len, 2, s).tolist() for s in _SCOPES} == expected


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"independent, tube or shared\. Found 'frame'"):
        shared_orders(torch.tensor([1]), 2, "frame")


@pytest.mark.parametrize("scope", _SCOPES)
@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.9, 1.0])
def test_every_agent_and_frame_hides_its_exact_share_in_any_scope(scope: str, ratio: float) -> None:
    """Two samples of two and one agents over three frames, no two maps alike."""
    sizes = [40, 41, 7, 1, 0, 100, 2, 3, 60]
    coordinates = torch.cat([_columns(i, n, seed=i) for i, n in enumerate(sizes)])
    orders = shared_orders(torch.tensor([2, 1]), 3, scope)
    masked = mask_columns(coordinates, _GRID, ratio, _seeded(), map_count=9, order_of_map=orders)
    for index, size in enumerate(sizes):
        here = coordinates[:, 0] == index
        hidden, visible = _masked_columns(coordinates[here], masked[here])
        wanted = size - math.floor(round((1 - ratio) * size, 9))
        assert not hidden & visible
        assert len(hidden) == (wanted if size < 2 else min(max(wanted, 1), size - 1))


@pytest.mark.parametrize("scope", _SCOPES)
def test_which_maps_of_equal_columns_hide_alike(scope: str) -> None:
    """Maps 0..3: agents 0 and 1 of a sample, two frames each; 4 and 5: another sample's agent."""
    one = _columns(0, 60)
    maps = []
    for index in range(6):
        copy = one.clone()
        copy[:, 0] = index
        maps.append(copy)
    orders = shared_orders(torch.tensor([2, 1]), 2, scope)
    masked = mask_columns(torch.cat(maps), _GRID, 0.7, _seeded(), map_count=6, order_of_map=orders)
    parts = masked.view(6, -1)
    alike = {(a, b) for a in range(6) for b in range(a + 1, 6) if torch.equal(parts[a], parts[b])}
    expected = {
        "independent": set(),
        "tube": {(0, 1), (2, 3), (4, 5)},
        "shared": {(a, b) for a in range(4) for b in range(a + 1, 4)} | {(4, 5)},
    }
    assert alike == expected[scope]


@pytest.mark.parametrize("scope", ["tube", "shared"])
def test_what_other_maps_of_the_scope_hold_changes_nothing(scope: str) -> None:
    mine = _columns(1, 60, seed=5)
    orders = shared_orders(torch.tensor([1]), 2, scope)
    own = []
    for other in (0, 5, 90):
        before = _columns(0, other, seed=9)
        masked = mask_columns(
            torch.cat([before, mine]), _GRID, 0.7, _seeded(), map_count=2, order_of_map=orders
        )
        own.append(masked[len(before) :])
    assert torch.equal(own[0], own[1])
    assert torch.equal(own[0], own[2])


def test_maps_that_share_an_order_differ_only_between_their_last_hidden_columns() -> None:
    """Mostly the same columns: hidden sets are nested but for the exact counts."""
    cells = torch.randperm(128, generator=_seeded(1))
    rows = []
    for index, chosen in enumerate((cells[:100], cells[10:110])):
        y, x = chosen // _GRID.width * 2, chosen % _GRID.width * 2
        rows.append(torch.stack([torch.full_like(x, index), torch.zeros_like(x), y, x], dim=1))
    coordinates = torch.cat(rows)
    orders = torch.tensor([0, 0])
    masked = mask_columns(coordinates, _GRID, 0.7, _seeded(), map_count=2, order_of_map=orders)
    column = column_index(coordinates, _GRID) % 128
    hidden = [set(column[:100][masked[:100]].tolist()), set(column[100:][masked[100:]].tolist())]
    held = [set(column[:100].tolist()), set(column[100:].tolist())]
    both = held[0] & held[1]
    only_first = (hidden[0] - hidden[1]) & both
    only_second = (hidden[1] - hidden[0]) & both
    assert len(hidden[0]) == len(hidden[1]) == 70
    # The shorter of the two prefixes lies inside the longer one.
    assert not only_first or not only_second
    assert len(only_first | only_second) <= 10


def test_an_order_for_every_map_is_demanded() -> None:
    with pytest.raises(ValueError, match=r"one entry for each of 2 maps\. Found 1"):
        mask_columns(
            _columns(0, 5), _GRID, 0.7, _seeded(), map_count=2, order_of_map=torch.tensor([0])
        )


@pytest.mark.parametrize("scope", _SCOPES)
def test_a_saved_generator_goes_on_with_the_same_masks(scope: str) -> None:
    coordinates = torch.cat([_columns(i, 40, seed=i) for i in range(4)])
    orders = shared_orders(torch.tensor([2]), 2, scope)

    def draws(generator: torch.Generator, count: int) -> list[Tensor]:
        return [
            mask_columns(coordinates, _GRID, 0.7, generator, map_count=4, order_of_map=orders)
            for _ in range(count)
        ]

    generator = _seeded(4)
    draws(generator, 2)
    state = generator.get_state()
    expected = draws(generator, 2)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert all(map(torch.equal, draws(resumed, 2), expected))


def test_masks_of_agents_and_frames_are_uncorrelated_when_independent() -> None:
    """Joint frequency of two maps' fates at the same cell against the product of each."""
    one = _columns(0, 40)
    two = one.clone()
    two[:, 0] = 1
    coordinates, generator = torch.cat([one, two]), _seeded()
    both = torch.zeros(len(one))
    for _ in range(2000):
        masked = mask_columns(coordinates, _GRID, 0.7, generator, map_count=2)
        both += masked[: len(one)] & masked[len(one) :]
    # 2000 draws: standard deviation 0.011; five of them.
    assert (both / 2000 - 0.49).abs().max() < 0.056
