"""Window attention: padding, locality, size."""

import pytest
import torch

from turbotrain_plugin.models.fusion.windows import MultiScaleWindows, WindowAttention


def attention_for(window: int, *, channels: int = 8, heads: int = 2) -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(channels, window, heads, dropout=0.0)
    attention.bias.data.normal_()
    return attention


def test_parameter_count_at_full_width() -> None:
    windows = MultiScaleWindows(256, (4, 8, 16), (16, 8, 4), 0.1)
    per_scale = 3 * 256 * 256 + 256 * 256 + 256
    biases = 7**2 + 15**2 + 31**2
    split = 256 * 256 + 512 + 3 * 256 * 256
    assert sum(p.numel() for p in windows.parameters()) == 3 * per_scale + biases + split + 512


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (1, 1), (3, 9)])
@pytest.mark.parametrize("window", [4, 16])
def test_any_size_of_map_works(size: tuple[int, int], window: int) -> None:
    cells = torch.randn(2, *size, 8, requires_grad=True)
    attended = attention_for(window)(cells)
    assert attended.shape == cells.shape
    attended.sum().backward()
    assert cells.grad is not None
    assert torch.isfinite(cells.grad).all()


def test_padding_changes_nothing() -> None:
    """A 3 x 3 corner window must come out as a whole window of its own size would."""
    wide, exact = attention_for(4), attention_for(3)
    exact.load_state_dict({**wide.state_dict(), "bias": _crop_bias(wide.bias.data, 4, 3)})
    cells = torch.randn(1, 7, 7, 8)
    corner = wide(cells)[:, 4:, 4:]
    torch.testing.assert_close(corner, exact(cells[:, 4:, 4:].contiguous()))


def _crop_bias(bias: torch.Tensor, wide: int, narrow: int) -> torch.Tensor:
    table = bias.view(2 * wide - 1, 2 * wide - 1)
    margin = wide - narrow
    return table[margin:-margin, margin:-margin].flatten()


def test_large_scores_do_not_wake_padded_cells() -> None:
    attention = attention_for(4)
    attention.query_key_value.weight.data *= 30
    cells = torch.randn(1, 5, 5, 8)
    lonely = attention(cells)[:, 4, 4]
    value = cells[:, 4, 4] @ attention.query_key_value.weight[16:].T
    torch.testing.assert_close(lonely, attention.output(value))


def test_cells_only_see_their_window() -> None:
    attention = attention_for(4)
    cells = torch.randn(2, 8, 8, 8)
    other = cells.clone()
    other[0, 1, 6] += 1.0
    changed = (attention(other) - attention(cells)).abs().amax(-1) > 1e-4
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[0, :4, 4:] = True
    assert torch.equal(changed, expected)


def test_the_bias_tells_directions_apart() -> None:
    attention = attention_for(4)
    cells = torch.randn(1, 4, 4, 8)
    turned = attention(cells.flip(1)).flip(1)
    assert not torch.allclose(turned, attention(cells), atol=1e-4)
    attention.bias.data.zero_()
    torch.testing.assert_close(attention(cells.flip(1)).flip(1), attention(cells))


def test_scales_are_weighted_by_a_softmax() -> None:
    """Scales that all say the same must come out as that, however they are weighted."""
    torch.manual_seed(0)
    windows = MultiScaleWindows(8, (2, 4), (2, 2), 0.0)
    for scale in windows.scales:
        assert isinstance(scale, WindowAttention)
        torch.nn.init.zeros_(scale.output.weight)
        scale.output.bias.data = torch.arange(8.0)
    mixed = windows(torch.randn(1, 4, 4, 8))
    torch.testing.assert_close(mixed, torch.arange(8.0).expand(1, 4, 4, 8))


def test_bfloat16_autocast_stays_close() -> None:
    attention = attention_for(4)
    cells = torch.randn(1, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rough = attention(cells)
    torch.testing.assert_close(rough.float(), attention(cells), atol=0.05, rtol=0.05)
