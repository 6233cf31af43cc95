"""Messages: bytes and compression."""

import pytest
import torch

from turbotrain_plugin.models.message import Compressor, map_bytes


def test_bytes_of_the_papers_map_are_25_mebibytes() -> None:
    assert map_bytes(torch.empty(3, 256, 100, 256, device="meta")) == 25 * 2**20


def test_compressor_keeps_the_shape_and_narrows_in_between() -> None:
    compressor = Compressor(32, 8)
    features = torch.randn(2, 32, 5, 6)
    assert compressor.encoder(features).shape == (2, 4, 5, 6)
    assert compressor(features).shape == features.shape


@pytest.mark.parametrize("ratio", [0, 3, -1])
def test_ratio_must_divide_the_channels(ratio: int) -> None:
    with pytest.raises(ValueError, match=r"`ratio` must divide the channels 32. Found"):
        Compressor(32, ratio)
