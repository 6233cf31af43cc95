"""The minimum of <g_w, g_0> + r |g_w| over convex combinations g_w of K vectors, by their Gramian.

A fully corrective Frank-Wolfe iteration (the plan of Wolfe, "Finding the nearest point in a
polytope", 1976, for a norm plus a linear term): let in the vertex of steepest descent, jump to the
minimum over the affine hull of the vertices that are in, which has a closed form, and where that
leaves the simplex, go there as far as allowed and drop the vertex that stopped us. Every set of
vertices is visited once at most, so it ends; it ends exactly, not up to a step size.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

__all__ = ["minimise_on_simplex"]

TOLERANCE: Final = 1e-13
"""Descent per length of a vertex, relative to the two terms, below which a vertex stays out."""

FLAT: Final = 1e-12
"""Eigenvalue of the scaled differences below which two vertices count as one."""

SWEEPS: Final = 30
"""Bound on the iterations, times K; about K are needed."""


def minimise_on_simplex(gramian: Tensor, linear: Tensor, radius: float) -> Tensor:
    r"""Return the w >= 0, sum w = 1, that minimises :math:`b^T w + r \sqrt{w^T M w}`.

    The root is smoothed by rounding's own size, so that it has a slope where g_w = 0.

    Args:
        gramian: M, (K, K) float64, positive diagonal.
        linear: b, (K,): M times some vector.
        radius: r >= 0.

    Returns:
        (K,) float64.
    """
    count = len(gramian)
    lengths = gramian.diagonal().sqrt()
    smoothing = 4.0 * count * torch.finfo(torch.float64).eps * float(gramian.diagonal().min())
    start = int((linear + radius * lengths).argmin())
    w = torch.zeros(count, dtype=torch.float64)
    w[start] = 1.0
    inside = [start]
    reached = math.inf
    for _ in range(SWEEPS * count):
        length = math.sqrt(max(0.0, float(w @ gramian @ w)) + smoothing)
        value = float(linear @ w) + radius * length
        if value >= reached:  # only rounding is left
            break
        reached = value
        slopes = linear + radius / length * (gramian @ w)
        descent = float(slopes @ w) - slopes
        descent[inside] = -math.inf
        allowed = TOLERANCE * (linear.abs() + radius * lengths)
        entering = int((descent - allowed).argmax())
        if float(descent[entering]) <= float(allowed[entering]):
            break
        inside.append(entering)
        w, inside = _correct(gramian, linear, radius, smoothing, w, inside)
    return w


def _correct(
    gramian: Tensor,
    linear: Tensor,
    radius: float,
    smoothing: float,
    w: Tensor,
    inside: list[int],
) -> tuple[Tensor, list[int]]:
    """Return the minimum over the simplex of the vertices ``inside`` that stay in, and those."""
    while len(inside) > 1:
        index = torch.tensor(inside)
        now = w[index]
        target, bounded = _affine_minimum(
            gramian[index][:, index], linear[index], radius, smoothing, now
        )
        step = target - now
        falling = step < 0
        room = torch.where(falling, now / -step.clamp(max=-1e-300), math.inf)
        reach = float(room.min())
        if bounded and reach >= 1.0:
            now, stopped = target, target <= 0.0
        else:
            now = now + reach * step
            stopped = (room <= reach) | (now <= 0.0)
        now = torch.where(stopped, 0.0, now.clamp(min=0.0))
        w = torch.zeros_like(w)
        w[index] = now / now.sum()
        inside = index[~stopped].tolist()
        if not bool(stopped.any()):
            break
    return w, inside


def _affine_minimum(
    gramian: Tensor, linear: Tensor, radius: float, smoothing: float, now: Tensor
) -> tuple[Tensor, bool]:
    r"""Return the minimum over the affine hull, or a point along the way down to infinity.

    Over the hull, :math:`|g|^2 = |v|^2 + |\tau|^2` with v its shortest vector and :math:`\tau` a
    tangent one. With p the linear term's tangent part, the minimum is at
    :math:`\tau = -p |v| / \sqrt{r^2 - |p|^2}`, or at infinity along -p where r <= |p|.

    Args:
        gramian: (S, S), of the vertices that are in.
        linear: (S,).
        radius: r.
        smoothing: Added to :math:`|v|^2`.
        now: (S,) where we are.

    Returns:
        (S,) coefficients that sum to one, and whether they are the minimum.
    """
    base = int(gramian.diagonal().argmin())
    others = [i for i in range(len(gramian)) if i != base]
    tangents = torch.zeros(len(gramian), len(others), dtype=torch.float64)
    tangents[others, range(len(others))] = 1.0
    tangents[base] = -1.0
    inner = tangents.T @ gramian @ tangents
    unit = inner.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    tangents = tangents / unit
    inverse = torch.linalg.pinv(inner / unit / unit[:, None], rtol=FLAT, hermitian=True)
    pull = tangents.T @ linear
    downhill = -(tangents @ (inverse @ pull))
    steep = float(pull @ inverse @ pull)
    if steep >= radius * radius:
        return now + downhill, False
    shortest = -(tangents @ (inverse @ (tangents.T @ gramian[:, base])))
    shortest[base] += 1.0
    squared = max(0.0, float(shortest @ gramian @ shortest)) + smoothing
    return shortest + math.sqrt(squared / (radius * radius - steep)) * downhill, True
