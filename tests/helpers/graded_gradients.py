"""Task gradients that are hard to balance: lengths from tiny to huge, dependent, opposed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from turbotrain_plugin.balancing import TaskStep

NAMES = ("detection", "prediction", "occupancy", "flow", "map", "risk")


def graded(
    tasks: int, seed: int, *, size: int = 8, decades: float = 4.0, opposed: bool = False
) -> Tensor:
    """Return (tasks, size) float64; lengths spread over ``decades`` powers of ten.

    ``size`` below ``tasks`` makes them linearly dependent, ``opposed`` makes the second one point
    mostly against the first.
    """
    generator = torch.Generator().manual_seed(1000 * tasks + seed)
    rows = torch.randn(tasks, size, dtype=torch.float64, generator=generator)
    if opposed:
        rows[1] = 0.1 * rows[1] - rows[0]
    powers = torch.rand(tasks, 1, dtype=torch.float64, generator=generator) - 0.5
    return rows * 10.0 ** (decades * powers)


def many(tasks: int, seeds: range, *, dependent: bool = True) -> Iterator[Tensor]:
    """Yield gradients of one length, graded, opposed and (where wanted) linearly dependent."""
    for seed in seeds:
        yield graded(tasks, seed, decades=0.0)
        yield graded(tasks, seed, decades=8.0)
        yield graded(tasks, seed, opposed=True)
        yield graded(tasks, seed) * 1e-9
        if dependent:
            yield graded(tasks, seed, size=max(1, tasks - 1), decades=2.0)


def gramian_of(rows: Tensor) -> Tensor:
    return rows @ rows.T


def step_of(
    rows: Tensor, losses: Sequence[float] | None = None, tasks: Sequence[str] | None = None
) -> TaskStep:
    """Return the balanced step with these gradients; the first two columns are a parameter "a"."""
    names = tuple(tasks or NAMES[: len(rows)])
    numbers = torch.tensor(losses or [1.0] * len(rows), dtype=torch.float64)
    named = tuple({"a": row[:2].clone(), "b": row[2:].clone()} for row in rows)
    return TaskStep(names, gramian_of(rows), numbers, named)


def permuted(step: TaskStep, order: Sequence[int]) -> TaskStep:
    """Return the step with its tasks in another order."""
    index = torch.tensor(order)
    return TaskStep(
        tuple(step.tasks[i] for i in order),
        step.gramian[index][:, index],
        step.losses[index],
        tuple(step.rows[i] for i in order),
    )


def relative_gap(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two updates over the length of the second."""
    return float((found - expected).norm() / expected.norm())
