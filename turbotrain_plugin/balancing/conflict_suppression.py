"""Conflict suppression: our reading of TurboTrain's gradient-alignment balancer.

TurboTrain (ICCV 2025) says that a balanced step "removes the conflict components between multiple
tasks"; its formula is not available to us. We read it as the mutual projection of PCGrad (Yu et
al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1): wherever two task
gradients point against each other, each loses its component along the other.
"""

from __future__ import annotations

from torch import Tensor

from turbotrain_plugin.balancing.base import Balancer, check_gramian

__all__ = ["ConflictSuppression"]


class ConflictSuppression(Balancer):
    r"""Remove from each task gradient what points against another task.

    With :math:`c_{ij} = \langle g_i, g_j \rangle`, task i contributes
    :math:`g_i - \sum_{j: c_{ij} < 0} (c_{ij} / |g_j|^2) g_j`, so that the weight of task j is
    :math:`w_j = 1 + \sum_{i: c_{ij} < 0} |c_{ij}| / |g_j|^2`. For two tasks this is PCGrad in
    closed form, :math:`d = (1 - c/|g_1|^2) g_1 + (1 - c/|g_2|^2) g_2`, which opposes neither task.

    Without a conflict the weights are exactly one. They do not change when all gradients are
    scaled alike, and a permutation of the tasks permutes them.

    Note:
        PCGrad projects on the other tasks one after the other in a random order; for more than two
        tasks the result depends on that order. We project on all of them at once, each time from
        the original gradients: symmetric, without a random number and hence the same on every
        process. For two tasks there is only one order and no difference.
    """

    def weigh(self, gramian: Tensor) -> Tensor:
        """Return (K,) float64 weights, each >= 1; see :meth:`Balancer.weigh`."""
        check_gramian(gramian)
        against = gramian.clamp(max=0.0)
        return 1.0 - against.sum(dim=0) / gramian.diagonal()
