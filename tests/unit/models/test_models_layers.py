"""Building blocks: memory layout, head products, masked softmax."""

import math

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.models.layers import (
    ConvNormReLU,
    cells_of,
    check_heads,
    head_scores,
    map_of,
    masked_softmax,
    weigh_values,
)


def test_cells_of_channels_last_maps_are_a_view() -> None:
    maps = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    cells = cells_of(maps)
    assert cells.shape == (2, 4, 5, 3)
    assert cells.data_ptr() == maps.data_ptr()


def test_map_of_undoes_cells_of() -> None:
    maps = torch.randn(2, 3, 4, 5)
    back = map_of(cells_of(maps))
    assert torch.equal(back, maps)
    assert back.is_contiguous(memory_format=torch.channels_last)


def test_convolution_keeps_channels_last() -> None:
    maps = torch.randn(2, 4, 6, 5).to(memory_format=torch.channels_last)
    assert ConvNormReLU(4, 8)(maps).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("stride", "expected"), [(1, (7, 5)), (2, (4, 3))])
def test_convolution_keeps_or_halves_the_size(stride: int, expected: tuple[int, int]) -> None:
    assert ConvNormReLU(2, 3, stride=stride)(torch.randn(1, 2, 7, 5)).shape[2:] == expected


def test_head_scores_are_scaled_dot_products_per_head() -> None:
    query, key = torch.randn(5, 12), torch.randn(5, 12)
    scores = head_scores(query, key, heads=3)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        expected = (query[:, part] * key[:, part]).sum(-1) / math.sqrt(4)
        torch.testing.assert_close(scores[:, head], expected)


def test_weigh_values_scales_each_head() -> None:
    weighted = weigh_values(torch.tensor([[2.0, 3.0]]), torch.ones(1, 6))
    assert weighted.tolist() == [[2.0, 2.0, 2.0, 3.0, 3.0, 3.0]]


def test_masked_softmax_gives_hidden_entries_exactly_zero() -> None:
    weights = masked_softmax(
        torch.tensor([1.0, 50.0, 1.0]), torch.tensor([True, False, True]), dim=0
    )
    assert weights.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masked_softmax_is_float32_and_sums_to_one(dtype: torch.dtype) -> None:
    scores: Tensor = torch.randn(4, 6).to(dtype)
    visible = torch.rand(4, 6) > 0.5
    visible[0] = True
    weights = masked_softmax(scores, visible, dim=0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(0), torch.ones(6))


@pytest.mark.parametrize("heads", [0, 5])
def test_heads_must_divide_the_channels(heads: int) -> None:
    with pytest.raises(ValueError, match=r"`heads` must divide the channels 16. Found"):
        check_heads(16, heads)
