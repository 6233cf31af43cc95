"""The map encoder: what lanes do to cells, and what must do nothing."""

from dataclasses import replace

import pytest
import torch

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.config import MapConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.map_encoder import MapFusion, SegmentEncoder
from turbotrain_plugin.structures import MapTokens


def fusion_for(grid: BevGrid, stride: int = 2) -> MapFusion:
    torch.manual_seed(0)
    return MapFusion(MapConfig(heads=4, ffn=16, dropout=0.0, stride=stride), 8, grid)


def tokens_for(grid: BevGrid, *, samples: int = 1, stride: int = 2, segments: int = 9) -> MapTokens:
    made = make_batch(
        grid=grid,
        record_len=[1] * samples,
        hist_frames=1,
        seed=1,
        shape=MadeShape(map_stride=stride, map_segments=segments),
    )
    assert made.map is not None
    return made.map


def test_parameter_counts_at_full_width() -> None:
    fusion = MapFusion(MapConfig(), 256, small_grid())
    segments = sum(p.numel() for p in fusion.segments.parameters())
    position = sum(p.numel() for p in fusion.position.parameters())
    total = sum(p.numel() for p in fusion.parameters())
    assert segments == 42_240
    assert position == 768
    assert total - segments - position == 527_104


@pytest.mark.parametrize("cells", [8, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_stride_keeps_the_size(cells: int, stride: int) -> None:
    grid = small_grid(cells)
    features = torch.randn(2, 8, cells, cells, requires_grad=True)
    out = fusion_for(grid, stride)(features, tokens_for(grid, samples=2, stride=stride))
    assert out.shape == features.shape
    out.square().sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_every_parameter_learns() -> None:
    grid = small_grid(8)
    fusion = fusion_for(grid)
    fusion(torch.randn(1, 8, 8, 8), tokens_for(grid)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


def test_cells_without_segments_stay_as_they_are() -> None:
    grid = small_grid(8)
    tokens = tokens_for(grid, samples=2)
    tokens.nearest[1] = -1
    features = torch.randn(2, 8, 8, 8)
    out = fusion_for(grid)(features, tokens)
    assert torch.equal(out[1], features[1])
    assert not torch.equal(out[0], features[0])


def test_a_batch_without_any_segment_stays_as_it_is() -> None:
    grid = small_grid(8)
    tokens = tokens_for(grid)
    none = MapTokens(tokens.points[:0], tokens.valid[:0], torch.full_like(tokens.nearest, -1))
    features = torch.randn(1, 8, 8, 8)
    assert torch.equal(fusion_for(grid)(features, none), features)


def test_padding_entries_change_nothing() -> None:
    grid = small_grid(8)
    tokens = tokens_for(grid, segments=3)
    assert (tokens.nearest[..., 3:] == -1).all()
    features = torch.randn(1, 8, 8, 8)
    fusion = fusion_for(grid)
    cut = replace(tokens, nearest=tokens.nearest[..., :3])
    torch.testing.assert_close(fusion(features, tokens), fusion(features, cut))


def test_the_order_of_segments_does_not_matter() -> None:
    grid = small_grid(8)
    tokens = tokens_for(grid)
    features = torch.randn(1, 8, 8, 8)
    fusion = fusion_for(grid)
    turned = replace(tokens, nearest=tokens.nearest.flip(-1))
    torch.testing.assert_close(fusion(features, turned), fusion(features, tokens))


def test_what_lies_in_padded_points_is_ignored() -> None:
    torch.manual_seed(0)
    encoder = SegmentEncoder(8)
    tokens = tokens_for(small_grid(8))
    dirty = tokens.points.clone()
    assert not tokens.valid.all()
    dirty[~tokens.valid] = 50.0
    torch.testing.assert_close(encoder(dirty, tokens.valid), encoder(tokens.points, tokens.valid))


def test_a_segment_is_encoded_around_its_own_centre() -> None:
    torch.manual_seed(0)
    encoder = SegmentEncoder(8)
    tokens = tokens_for(small_grid(8))
    moved = tokens.points.clone()
    shift = torch.tensor([30.0, -7.0])
    moved[..., :2] += shift
    moved[..., 5:7] += shift
    before, centre = encoder(tokens.points, tokens.valid)
    after, moved_centre = encoder(moved, tokens.valid)
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved_centre, centre + shift)


def test_moving_map_and_grid_together_changes_nothing_but_moving_the_map_does() -> None:
    here = small_grid(8)
    there = BevGrid((16.8, -3.2, -5.0, 23.2, 3.2, 3.0), here.voxel_m, here.stride)
    tokens = tokens_for(here)
    points = tokens.points.clone()
    points[..., [0, 5]] += 20.0
    moved = replace(tokens, points=points)
    features = torch.randn(1, 8, 8, 8)
    fusion, other = fusion_for(here), fusion_for(there)
    other.load_state_dict(fusion.state_dict())
    expected = fusion(features, tokens)
    torch.testing.assert_close(other(features, moved), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(fusion(features, moved), expected, atol=1e-3)


def test_rows_of_the_map_lie_along_y() -> None:
    """The offset of a segment must be seen from the right cell: rows are y, columns x."""
    grid = BevGrid((0.0, 10.0, -5.0, 6.4, 13.2, 3.0), (0.4, 0.4, 8.0), 2)
    fusion = fusion_for(grid)
    centres = fusion._cell_centres(torch.zeros(1, 2, 4, 5, dtype=torch.int64))
    assert centres.shape == (2, 4, 2)
    torch.testing.assert_close(centres[1, 3], torch.tensor([5.6, 12.4]))


def test_tokens_of_another_grid_are_refused() -> None:
    grid = small_grid(8)
    with pytest.raises(ValueError, match=r"`tokens.nearest` must be \(1, 4, 4\) for the map str"):
        fusion_for(grid)(torch.randn(1, 8, 8, 8), tokens_for(grid, stride=1))
