"""spconv on a CPU, for the hosts' models: the same mending as for our own encoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from turbotrain_plugin.hosts.compat.base import Shim, attributes, installed
from turbotrain_plugin.models.spconv_support import load_spconv


@contextmanager
def _mended() -> Iterator[None]:
    """Mend spconv for the rest of the process: it computes wrong numbers otherwise."""
    load_spconv()
    yield


_UNSHUFFLE = F.pixel_unshuffle


def _contiguous_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """Unshuffle any number of leading axes through a plain 4-D copy; (..., C, H, W)."""
    if input.dim() <= 4 or input.is_cuda:
        return _UNSHUFFLE(input, downscale_factor)
    flat = input.flatten(0, -4).clone(memory_format=torch.contiguous_format)
    found: Tensor = _UNSHUFFLE(flat, downscale_factor).unflatten(0, input.shape[:-3])
    return found


@contextmanager
def _unshuffle() -> Iterator[None]:
    with attributes(F, {"pixel_unshuffle": _contiguous_unshuffle}):
        yield


SPCONV_CPU: Final = Shim(
    "spconv.cpu",
    "spconv 2 on a CPU: one thread, no CUDA stream, biases added afterwards.",
    lambda: installed("spconv"),
    _mended,
)
PIXEL_UNSHUFFLE: Final = Shim(
    "torch.pixel_unshuffle",
    "On a CPU it refuses the memory layout of 5-D tensors from spconv, as CooPre has them.",
    lambda: True,
    _unshuffle,
)
