"""The number format losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """Return half-precision values as float32; float32 and float64 stay.

    Network outputs are half precision under autocast. Sums over a hundred thousand anchors and
    logarithms of small probabilities are not meant for that; float64 is kept for gradient checks.
    """
    return values if values.dtype == torch.float64 else values.float()
