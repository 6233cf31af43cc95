"""Detection loss on anchors: focal classification and smooth-L1 box residuals."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses.focal import FocalShape, focal_from_logits
from turbotrain_plugin.losses.pool import Pool
from turbotrain_plugin.losses.precision import full_precision
from turbotrain_plugin.structures import Predictions, Targets, UserError

_POSITIVE: Final = 1
_BETWEEN: Final = -1
_YAW: Final = 6


class DetectionLoss:
    """Focal classification of all anchors and box regression of the positive ones.

    Both are sums divided by the number of positive anchors of the batch (at least 1), the
    normalisation of RetinaNet (Lin et al. 2017) and SECOND (Yan et al. 2018).

    Args:
        args: Focal constants, the transition point of smooth L1, and whether anchors between the
            assignment thresholds are left out (``ignore_band``) or are negatives.
        pool: The processes whose positive anchors are counted.

    Raises:
        UserError: When the constants are impossible.
    """

    def __init__(self, args: LossArgs, pool: Pool | None = None) -> None:
        if not 0 < args.focal_alpha < 1 or args.focal_gamma < 0:
            raise UserError(
                "loss.args.focal_alpha must lie between 0 and 1 and focal_gamma must not be "
                f"negative. Found {args.focal_alpha} and {args.focal_gamma}."
            )
        if args.smooth_l1_beta < 0:
            raise UserError(
                f"loss.args.smooth_l1_beta must not be negative. Found {args.smooth_l1_beta}."
            )
        self._shape = FocalShape(args.focal_alpha, args.focal_gamma, alpha_balanced=True)
        self._ignore_band = args.ignore_band
        self._beta = args.smooth_l1_beta
        self._pool = pool or Pool()

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Return the scalar losses ``cls`` and ``reg``, unweighted.

        Raises:
            ValueError: When predictions and targets disagree in shape.
        """
        if predictions.class_logits.shape != targets.labels.shape:
            raise ValueError(
                "`predictions.class_logits` and `targets.labels` must both be (B, H, W, anchors). "
                f"Found {tuple(predictions.class_logits.shape)} and "
                f"{tuple(targets.labels.shape)}."
            )
        count = self._positives(targets)
        return {
            "cls": self._classification(predictions.class_logits, targets) / count,
            "reg": self._regression(predictions.box_codes, targets) / count,
        }

    def _positives(self, targets: Targets) -> float:
        """Return the positive anchors of a process, on average over the pool."""
        own = torch.tensor(float(len(targets.positive_index)), dtype=torch.float64)
        return max(float(self._pool.total(own)), 1.0) / self._pool.parts

    def _classification(self, logits: Tensor, targets: Targets) -> Tensor:
        loss = focal_from_logits(logits, targets.labels == _POSITIVE, self._shape)
        if self._ignore_band:
            loss = loss.masked_fill(targets.labels == _BETWEEN, 0.0)
        return loss.sum()

    def _regression(self, box_codes: Tensor, targets: Targets) -> Tensor:
        predicted = full_precision(box_codes[targets.positive_index.unbind(1)])
        error = box_error(predicted, targets.box_codes.to(predicted.dtype))
        return smooth_l1_loss(error, torch.zeros_like(error), reduction="sum", beta=self._beta)


def box_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return (N, 7) residual errors whose last column is the sine of the yaw error.

    The sine makes a box and the same box turned by 180 degrees equally good, as they overlap alike
    (SECOND, Yan et al. 2018).

    Args:
        predicted: (N, 7) codes x, y, z, h, w, l, yaw.
        target: (N, 7) codes of the matched box.
    """
    error = predicted - target
    return torch.cat([error[:, :_YAW], error[:, _YAW:].sin()], dim=1)
