"""CAGrad: the update near the mean gradient that helps the worst-off task most.

Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021: d maximises
min_k <g_k, d> within |d - g_0| <= c |g_0|, where g_0 is the mean of the K gradients. By duality
d = g_0 + c |g_0| g_w / |g_w| with g_w = sum_k w_k g_k, where w minimises
F(w) = <g_w, g_0> + c |g_0| |g_w| over the simplex. Defaults: ``c=0.5``, ``scale="sum"``.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import Balancer, check_gramian
from turbotrain_plugin.balancing.guards import check_argument
from turbotrain_plugin.balancing.simplex import minimise_on_simplex

__all__ = ["CAGrad"]

SCALES: Final = ("sum", "mean")

STATIONARY: Final = 1e-6
"""A g_w this much shorter than the terms it is the sum of is rounding of float32 gradients."""


class CAGrad(Balancer):
    r"""Weigh task k by :math:`1 / K + c |g_0| w_k / |g_w|`, times K where ``scale`` is ``sum``.

    Two tasks have a closed form, :func:`_two_weights`; for more, w is found by the active-set
    iteration of ``simplex.py``, without a random number. The weights do not change when all
    gradients are scaled alike, and a permutation of the tasks permutes them. They are not one
    without a conflict, except for c = 0.

    Args:
        c: Radius of the ball around the mean, relative to its length.
        scale: ``sum``: K times the paper's update; ``mean``: the paper's (our choice: the sum,
            because free steps take the sum and c = 0 is then exactly a free step).

    Note:
        Where g_w vanishes (the tasks cancel out: nothing helps them all), there is no direction to
        add and d is the mean; TorchJD then stops the trunk. We leave out the division by 1 + c^2
        that the authors' code does, and all its absolute epsilons.
    """

    def __init__(self, c: float = 0.5, scale: str = "sum") -> None:
        check_argument(c >= 0, "cagrad", "c", "not to be negative", c)
        check_argument(scale in SCALES, "cagrad", "scale", "to be sum or mean", scale)
        self.c = c
        self.scale = scale

    def weigh(self, gramian: Tensor) -> Tensor:
        """Return (K,) float64 weights, each >= 1 / K; see :meth:`Balancer.weigh`."""
        check_gramian(gramian)
        normed = gramian / gramian.diagonal().max()  # no product over- or underflows
        towards_mean = normed.mean(dim=1)
        radius = self.c * math.sqrt(max(0.0, float(normed.mean())))
        weights = torch.full_like(towards_mean, 1.0 / len(normed))
        if radius > 0.0:
            if len(normed) == 2:
                w = _two_weights(normed, radius)
            else:
                w = minimise_on_simplex(normed, towards_mean, radius)
            length = math.sqrt(max(0.0, float(w @ normed @ w)))
            if length > STATIONARY * float(w @ normed.diagonal().sqrt()):
                weights += radius / length * w
        return weights * len(normed) if self.scale == "sum" else weights


def _two_weights(gramian: Tensor, radius: float) -> Tensor:
    r"""Return (t, 1 - t), the minimiser for two tasks.

    With :math:`(a, b, c)` the entries of the Gramian, :math:`A = a + b - 2c` and
    :math:`m = (a - b) / 2`: F is :math:`m t + r \sqrt{A u^2 + \det / A}` up to a constant, where
    :math:`u = t - (b - c) / A`, so that :math:`u = -m \sqrt{\det} / (A \sqrt{r^2 A - m^2})`, or t
    lies at the end of the shorter gradient where that root does not exist.

    Args:
        gramian: (2, 2).
        radius: r = c |g_0|.
    """
    (a, c), (_, b) = gramian.tolist()
    spread, slope = a + b - 2.0 * c, (a - b) / 2.0
    room = radius * radius * spread - slope * slope
    if spread <= 0.0:  # one gradient twice
        t = 0.5
    elif room <= 0.0:
        t = 0.5 - math.copysign(0.5, slope)
    else:
        determinant = max(0.0, a * b - c * c)
        t = (b - c) / spread - slope * math.sqrt(determinant / room) / spread
    t = min(1.0, max(0.0, t))
    return torch.tensor([t, 1.0 - t], dtype=torch.float64)
