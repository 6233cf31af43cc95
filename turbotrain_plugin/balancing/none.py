"""No balancing: the plain sum of the task losses, as an ordinary multi-task training takes it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import Balancer, check_gramian

__all__ = ["PlainSum"]


class PlainSum(Balancer):
    """Weights of one, whatever the gradients; no step pays for separate task gradients."""

    needs_gradients: ClassVar[bool] = False

    def weigh(self, gramian: Tensor) -> Tensor:
        """Return (K,) ones; see :meth:`Balancer.weigh`."""
        check_gramian(gramian)
        return torch.ones(len(gramian), dtype=torch.float64)
