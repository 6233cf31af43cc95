"""Task heads: anchors' classes and boxes, and one trajectory per anchor."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import PredictionHeadConfig
from turbotrain_plugin.models.layers import ConvNormReLU, split_last
from turbotrain_plugin.structures import UserError

__all__ = ["DetectionHead", "PredictionHead"]

BOX_CODE_SIZE: Final = 7
PRIOR_PROBABILITY: Final = 0.01
"""Score of every anchor at the start (RetinaNet, arXiv:1708.02002), so that the many negatives do
not swamp the first steps. Our choice here."""
_STAY_STD: Final = 0.003


class DetectionHead(nn.Module):
    """(B, C, H, W) -> class logits and box codes by two 1x1 convolutions.

    Args:
        channels: C.
        anchors: Anchors per cell.
    """

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.classes = nn.Conv2d(channels, anchors, 1)
        self.boxes = nn.Conv2d(channels, anchors * BOX_CODE_SIZE, 1)
        if self.classes.bias is not None:
            prior_logit = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
            nn.init.constant_(self.classes.bias, prior_logit)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 logits (B, H, W, anchors) and codes (B, H, W, anchors, 7)."""
        logits = self.classes(features).permute(0, 2, 3, 1)
        codes = split_last(self.boxes(features).permute(0, 2, 3, 1), self.anchors)
        return logits.float(), codes.float()


class PredictionHead(nn.Module):
    """(B, C, H, W) -> one trajectory per anchor: offsets in metres from the centre at t = 0.

    3x3 convolutions with ReLU, then 1x1; the raw value of step k is multiplied by k times
    ``metres_per_step``, so that a fast object is an output of the order of 1 at every step, as a
    slow one is, and is learnt as soon. One mode and this layout are our choice.

    Args:
        args: ``model.args.prediction_head``.
        channels: C.
        anchors: Anchors per cell.
        future_steps: F.

    Raises:
        UserError: When ``layers`` is below 1, or ``hidden`` or ``metres_per_step`` makes no sense.
    """

    scale: Tensor

    def __init__(
        self, args: PredictionHeadConfig, channels: int, anchors: int, future_steps: int
    ) -> None:
        super().__init__()
        _check(args)
        steps = torch.arange(1, future_steps + 1).view(-1, 1)
        self.register_buffer("scale", steps * args.metres_per_step, persistent=False)
        self._layout = (anchors, future_steps)
        hidden = args.hidden or channels
        widths = [channels] + [hidden] * args.layers
        self.hidden = nn.Sequential(*(ConvNormReLU(a, b) for a, b in pairwise(widths)))
        self.offsets = nn.Conv2d(hidden, anchors * future_steps * 2, 1)
        # Everything is predicted to stay at first: were parked objects sent about at random, they,
        # the majority, would drive the hidden features to zero before any motion is learnt.
        nn.init.normal_(self.offsets.weight, std=_STAY_STD)
        if self.offsets.bias is not None:
            nn.init.zeros_(self.offsets.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return float32 (B, H, W, anchors, F, 2)."""
        offsets = self.offsets(self.hidden(features)).permute(0, 2, 3, 1)
        return split_last(offsets, *self._layout).float() * self.scale


def _check(args: PredictionHeadConfig) -> None:
    for name, value, least in (("layers", args.layers, 1), ("hidden", args.hidden, 0)):
        if value < least:
            raise UserError(
                f"model.args.prediction_head.{name} must be at least {least}. Found {value}."
            )
    if not args.metres_per_step > 0:
        raise UserError(
            "model.args.prediction_head.metres_per_step must be positive. "
            f"Found {args.metres_per_step}."
        )
