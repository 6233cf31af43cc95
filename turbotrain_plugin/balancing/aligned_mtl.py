"""Aligned-MTL: make the task gradients orthogonal and of one length, then add them.

Senushkin et al., "Independent Component Alignment for Multi-Task Learning", CVPR 2023. With the
Gramian M = V diag(lambda) V^T, the balance matrix is B = sigma V diag(lambda^-1/2) V^T and the
update d = G B 1, where sigma^2 is the smallest eigenvalue that is not zero (``min``), their median
or their mean (``rmse``, as in the authors' code). The columns of G B are orthogonal and of length
sigma. Defaults: ``scale_mode="min"``, ``scale="sum"``.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from turbotrain_plugin.balancing.base import Balancer, check_gramian
from turbotrain_plugin.balancing.guards import check_argument

__all__ = ["AlignedMTL"]

SCALE_MODES: Final = ("min", "median", "rmse")
SCALES: Final = ("sum", "mean")


class AlignedMTL(Balancer):
    """Weigh by the rows of the balance matrix; two tasks by the closed form of a 2 x 2 root.

    The weights do not change when all gradients are scaled alike, and a permutation of the tasks
    permutes them. Orthogonal gradients of one length get weights of exactly one (up to rounding);
    others do not, conflict or none: with ``min`` one vanishing task shrinks the whole step.

    Args:
        scale_mode: ``min``, ``median`` or ``rmse``: which length the gradients get.
        scale: ``sum`` of the aligned gradients or, as in TorchJD, their ``mean`` (our choice: the
            sum, because free steps take the sum).

    Note:
        Eigenvalues below K eps times the largest count as zero, as in the authors' code.
    """

    def __init__(self, scale_mode: str = "min", scale: str = "sum") -> None:
        wanted = "to be one of " + ", ".join(SCALE_MODES)
        check_argument(scale_mode in SCALE_MODES, "aligned_mtl", "scale_mode", wanted, scale_mode)
        check_argument(scale in SCALES, "aligned_mtl", "scale", "to be sum or mean", scale)
        self.scale_mode = scale_mode
        self.scale = scale

    def weigh(self, gramian: Tensor) -> Tensor:
        """Return (K,) float64 weights; see :meth:`Balancer.weigh`."""
        check_gramian(gramian)
        normed = gramian / gramian.diagonal().max()  # no product over- or underflows
        roots = _roots_of_two(normed) if len(normed) == 2 else None
        eigenvalues, inverse_root = roots or _roots(normed)
        weights = self._length(eigenvalues) * inverse_root.sum(dim=1)
        return weights / len(gramian) if self.scale == "mean" else weights

    def _length(self, eigenvalues: Tensor) -> float:
        """Return sigma.

        Args:
            eigenvalues: (rank,), those that are not zero.
        """
        if self.scale_mode == "min":
            return float(eigenvalues.min().sqrt())
        if self.scale_mode == "median":
            return float(eigenvalues.median().sqrt())
        return float(eigenvalues.mean().sqrt())


def _roots(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (rank,) that are not zero and (K, K) pseudo-inverse square root."""
    eigenvalues, vectors = torch.linalg.eigh(gramian)
    kept = eigenvalues > _zero(eigenvalues.max(), len(gramian))
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    return eigenvalues, (vectors / eigenvalues.sqrt()) @ vectors.T


def _roots_of_two(gramian: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what :func:`_roots` does for a 2 x 2 matrix of full rank, None for one of rank one.

    With s = sqrt(det M) and t = sqrt(tr M + 2 s): M^1/2 = (M + s 1) / t, hence M^-1/2 is the
    adjugate of (M + s 1) over s t.
    """
    (a, c), (_, b) = gramian.tolist()
    largest = (a + b + ((a - b) ** 2 + 4.0 * c * c) ** 0.5) / 2.0
    determinant = max(0.0, a * b - c * c)
    if determinant / largest <= float(_zero(torch.tensor(largest, dtype=torch.float64), 2)):
        return None
    s = determinant**0.5
    t = (a + b + 2.0 * s) ** 0.5
    adjugate = torch.tensor([[b + s, -c], [-c, a + s]], dtype=torch.float64)
    eigenvalues = torch.tensor([determinant / largest, largest], dtype=torch.float64)
    return eigenvalues, adjugate / (s * t)


def _zero(largest: Tensor, tasks: int) -> Tensor:
    """Return below what an eigenvalue counts as zero."""
    return largest * tasks * torch.finfo(torch.float64).eps
