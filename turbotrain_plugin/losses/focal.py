"""Focal loss from logits, finite for every finite logit, in the three readings that are in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor
from torch.nn.functional import logsigmoid

from turbotrain_plugin.config import OccupancyHeadConfig
from turbotrain_plugin.losses.precision import full_precision
from turbotrain_plugin.structures import UserError


@dataclass(frozen=True, slots=True)
class FocalShape:
    """Constants of a focal loss.

    Attributes:
        alpha: Factor of the loss, or of the positives when balanced.
        gamma: Exponent on the probability of the wrong state; 0 is cross-entropy.
        alpha_balanced: ``alpha`` weighs positives and ``1 - alpha`` negatives.
    """

    alpha: float
    gamma: float
    alpha_balanced: bool = False

    def __post_init__(self) -> None:
        """Refuse constants that turn the loss negative or infinite."""
        if self.alpha_balanced and not 0 < self.alpha < 1:
            raise ValueError(
                "`alpha` must lie strictly between 0 and 1 when `alpha_balanced`, because "
                f"negatives weigh 1 - alpha. Found {self.alpha}."
            )
        if self.alpha <= 0 or self.gamma < 0:
            raise ValueError(
                "`alpha` must be positive and `gamma` not negative. "
                f"Found {self.alpha} and {self.gamma}."
            )


PRINTED: Final = FocalShape(alpha=2.0, gamma=0.25)
"""As printed in the supplement, equation S1; the two constants look swapped against the usual."""
STANDARD: Final = FocalShape(alpha=0.25, gamma=2.0)
"""The usual constants of Lin et al. 2017, read as equation S1 (alpha is a plain factor)."""


def occupancy_focal(config: OccupancyHeadConfig) -> FocalShape:
    """Return the constants that ``turbotrain.pretrain.occ`` asks for.

    Raises:
        UserError: When the constants give negative weights.
    """
    custom = config.focal == "custom"
    preset = STANDARD if config.focal == "standard" else PRINTED
    alpha = config.alpha if custom else preset.alpha
    gamma = config.gamma if custom else preset.gamma
    try:
        return FocalShape(alpha=alpha, gamma=gamma, alpha_balanced=config.alpha_balanced)
    except ValueError as error:
        raise UserError(
            f"turbotrain.pretrain.occ with focal: {config.focal} is impossible: {error} Set "
            "alpha_balanced: false, or focal: custom with an alpha between 0 and 1."
        ) from error


def focal_from_logits(logits: Tensor, positive: Tensor, shape: FocalShape) -> Tensor:
    """Return -w (1 - Pr)^gamma log Pr for every element.

    Pr is the probability given to the true state: sigma(logit) where positive, 1 - sigma(logit)
    elsewhere (supplement B.2, equation S1, and Lin et al. 2017). Everything is computed from
    log-probabilities: for gamma < 1 the direct form has an infinite derivative as Pr approaches 1
    and returns NaN gradients for logits of 20 already.

    Args:
        logits: (...) scores before the sigmoid.
        positive: (...) bool, the true state.
        shape: Constants; w is alpha, or alpha and 1 - alpha when balanced.

    Returns:
        (...) losses in float32 (float64 for float64 logits), not reduced.

    Raises:
        ValueError: When the shapes differ.
    """
    if logits.shape != positive.shape:
        raise ValueError(
            "`logits` and `positive` must have the same shape. "
            f"Found {tuple(logits.shape)} and {tuple(positive.shape)}."
        )
    logits = full_precision(logits)
    towards_truth = logits.where(positive, -logits)
    loss = -(shape.gamma * logsigmoid(-towards_truth)).exp() * logsigmoid(towards_truth)
    if not shape.alpha_balanced:
        return shape.alpha * loss
    return loss * positive.to(loss.dtype).mul(2 * shape.alpha - 1).add(1 - shape.alpha)
