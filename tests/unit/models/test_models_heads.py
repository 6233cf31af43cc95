"""Task heads: layout, prior, size."""

import pytest
import torch

from turbotrain_plugin.config import PredictionHeadConfig
from turbotrain_plugin.models.heads import DetectionHead, PredictionHead
from turbotrain_plugin.structures import UserError


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_at_full_width() -> None:
    detection = DetectionHead(256, 2)
    assert count(detection.classes) == 514
    assert count(detection.boxes) == 3_598
    assert count(PredictionHead(PredictionHeadConfig(), 256, 2, 6)) == 596_504


def test_every_anchor_starts_at_the_prior() -> None:
    head = DetectionHead(8, 2)
    logits, _ = head(torch.zeros(1, 8, 3, 4))
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, 3, 4, 2), 0.01))


def test_box_channels_are_read_anchor_by_anchor() -> None:
    head = DetectionHead(8, 2)
    assert head.boxes.bias is not None
    head.boxes.bias.data = torch.arange(14.0)
    _, codes = head(torch.zeros(2, 8, 3, 4))
    assert codes.shape == (2, 3, 4, 2, 7)
    assert codes[1, 2, 3].tolist() == [list(range(7)), list(range(7, 14))]


def test_trajectory_channels_are_read_anchor_step_coordinate() -> None:
    head = PredictionHead(PredictionHeadConfig(metres_per_step=1), 8, 2, 3)
    assert head.offsets.bias is not None
    head.offsets.bias.data = torch.arange(12.0)
    torch.nn.init.zeros_(head.offsets.weight)
    offsets = head(torch.randn(1, 8, 4, 5))
    assert offsets.shape == (1, 4, 5, 2, 3, 2)
    raw = torch.arange(12.0).view(2, 3, 2)
    assert offsets[0, 1, 1].tolist() == (raw * torch.tensor([[1.0], [2.0], [3.0]])).tolist()


def test_steady_motion_is_the_same_raw_value_at_every_step() -> None:
    head = PredictionHead(PredictionHeadConfig(metres_per_step=5.0), 8, 1, 4)
    assert head.offsets.bias is not None
    torch.nn.init.zeros_(head.offsets.weight)
    torch.nn.init.ones_(head.offsets.bias)
    offsets = head(torch.randn(1, 8, 2, 2))
    assert offsets[0, 0, 0, 0, :, 0].tolist() == [5.0, 10.0, 15.0, 20.0]
    assert "scale" not in head.state_dict()


def test_width_and_depth_of_the_trajectory_head() -> None:
    head = PredictionHead(PredictionHeadConfig(hidden=12, layers=2), 8, 2, 3)
    convolutions = [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(8, 12), (12, 12), (12, 12)]
    assert head(torch.randn(1, 8, 4, 5)).shape == (1, 4, 5, 2, 3, 2)


@pytest.mark.parametrize(
    ("key", "value"), [("layers", 0), ("hidden", -1), ("metres_per_step", 0.0)]
)
def test_a_trajectory_head_without_sense_is_refused(key: str, value: float) -> None:
    args = PredictionHeadConfig(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"model\.args\.prediction_head\.{key} must .* {value}"):
        PredictionHead(args, 8, 2, 3)


def test_rows_and_columns_keep_their_place() -> None:
    head = DetectionHead(1, 1)
    torch.nn.init.ones_(head.classes.weight)
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 2, 1] = 5.0
    logits, _ = head(maps)
    assert logits.argmax() == 2 * 4 + 1
