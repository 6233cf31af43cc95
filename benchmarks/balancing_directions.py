"""How far the sources ``cut`` and ``feature`` stray from the exact gradients in a training run.

Every step takes the gradients of both tasks once; the weights of each source follow from the part
that it sees. The first step checks that this is what the balancer does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import ConflictSuppression

__all__ = ["Directions", "TaskGradients", "task_gradients"]

EXACT: Final = "exact"
PLAIN: Final = "plain sum"


@dataclass(frozen=True)
class TaskGradients:
    """Gradients of two tasks.

    Attributes:
        shared: Name of a shared parameter -> (2, ...).
        own: Other parameters -> gradient.
        feature: (2, ...) at the fused feature.
    """

    shared: dict[str, Tensor]
    own: dict[nn.Parameter, Tensor]
    feature: Tensor

    def gramian(self, source: str, below: str) -> Tensor:
        """Return (2, 2) float64 over what ``source`` sees; ``cut`` leaves out what is below it."""
        if source == "feature":
            seen = [self.feature]
        else:
            names = [n for n in self.shared if source == EXACT or not n.startswith(f"{below}.")]
            seen = [self.shared[name] for name in names]
        total = torch.zeros(2, 2, dtype=torch.float64)
        for pair in seen:
            rows = pair.flatten(1).double()
            total += rows @ rows.T
        return (total + total.T) / 2

    def update(self, weights: Tensor) -> Tensor:
        """Return the weighted sum over all shared parameters, flat."""
        w = weights.float()
        return torch.cat([(w[0] * p[0] + w[1] * p[1]).flatten() for p in self.shared.values()])


def task_gradients(
    losses: Mapping[str, Tensor], feature: Tensor, named: Mapping[str, nn.Parameter]
) -> TaskGradients:
    """Differentiate two losses by all parameters and by the fused feature; frees the graph."""
    found = [
        torch.autograd.grad(
            loss, [feature, *named.values()], retain_graph=index == 0, allow_unused=True
        )
        for index, loss in enumerate(losses.values())
    ]
    shared: dict[str, Tensor] = {}
    own: dict[nn.Parameter, Tensor] = {}
    for (name, parameter), first, second in zip(
        named.items(), *(f[1:] for f in found), strict=True
    ):
        if first is not None and second is not None:
            shared[name] = torch.stack([first, second])
        elif first is not None or second is not None:
            own[parameter] = second if first is None else first
    at_feature = [torch.zeros_like(feature) if f[0] is None else f[0] for f in found]
    return TaskGradients(shared, own, torch.stack(at_feature))


class Directions:
    """Compares the updates of several sources with the exact one, step by step.

    Args:
        sources: ``cut``, ``feature``.
        below: Module below the cut.
    """

    def __init__(self, sources: Sequence[str], below: str) -> None:
        self.sources = tuple(sources)
        self._below = below
        self._rows: list[dict[str, Any]] = []

    def add(self, found: TaskGradients) -> Tensor | None:
        """Note one step; return the weights of the exact source, None where one task is idle."""
        exact = found.gramian(EXACT, self._below)
        if not bool((exact.diagonal() > 0).all()):
            return None
        right = ConflictSuppression().weigh(exact)
        update = found.update(right)
        row: dict[str, Any] = {"conflict": bool(exact[0, 1] < 0)}
        for source in (*self.sources, PLAIN):
            gramian = found.gramian(source, self._below) if source != PLAIN else None
            weights = torch.ones(2) if gramian is None else ConflictSuppression().weigh(gramian)
            other = found.update(weights)
            row[source] = {
                "cosine": float(torch.cosine_similarity(other.double(), update.double(), dim=0)),
                "error": float((other - update).norm() / update.norm()),
                "conflict": gramian is not None and bool(gramian[0, 1] < 0),
            }
        self._rows.append(row)
        return right

    def weights(self, found: TaskGradients, source: str) -> list[float]:
        """Return the weights that ``source`` leads to."""
        weights: list[float] = (
            ConflictSuppression().weigh(found.gramian(source, self._below)).tolist()
        )
        return weights

    def summary(self) -> dict[str, Any]:
        """Return medians, tails and shares, over all steps and over those with a conflict."""
        conflicts = [row for row in self._rows if row["conflict"]]
        rate = len(conflicts) / len(self._rows)
        return {
            "steps": len(self._rows),
            "conflict_rate": rate,
            **{
                source: {
                    "same_decision": statistics.fmean(
                        row[source]["conflict"] == row["conflict"] for row in self._rows
                    ),
                    "direction_cosine": _spread([row[source]["cosine"] for row in self._rows]),
                    "on_conflicts": {
                        "direction_cosine": _spread([row[source]["cosine"] for row in conflicts]),
                        "relative_error": _spread([row[source]["error"] for row in conflicts]),
                    },
                }
                for source in (*self.sources, PLAIN)
            },
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"median": values[0]} if values else {}
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {
        "least": min(values),
        "p10": tenths[0],
        "median": statistics.median(values),
        "p90": tenths[-1],
    }
