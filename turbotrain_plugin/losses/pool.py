"""Over whom a loss is averaged that divides a sum by a count: one process, or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _own(count: Tensor) -> Tensor:
    return count


@dataclass(frozen=True, slots=True)
class Pool:
    """The processes whose samples make up one batch.

    Their gradients are averaged, so a sum divided by the mean of their counts gives what one
    process would get that divides the sum over all samples by the count over all samples. Divided
    by its own count, a process with one object would weigh as much as one with twenty.

    Attributes:
        parts: Number of processes.
        total: Sums a count over them; a detached scalar in, one out.
    """

    parts: int = 1
    total: Callable[[Tensor], Tensor] = _own
