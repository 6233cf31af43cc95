"""What balanced steps report: one record a step, running figures over a balance window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["BalanceRecord", "BalanceWindow", "Decision", "ModuleRecord", "pair_name"]


def pair_name(first: str, second: str) -> str:
    """Return the key of a pair of tasks, ``first/second`` in the order of the losses."""
    return f"{first}/{second}"


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """The task gradients over the shared parameters of one module.

    Attributes:
        cosine: Pair -> cosine; pairs with a zero gradient there are missing.
        norms: Task -> norm.
    """

    cosine: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BalanceRecord:
    """What one optimiser step did; plain numbers, ready for a log.

    Pairs are named by :func:`pair_name`. A free step has empty mappings, unless it was probed: then
    only its weights are missing. A task without a gradient has norm 0, weight 1 and no pair. In
    place of the shared parameters of a balanced step stand those above the cut with gradient source
    ``cut``, and the feature itself, which belongs to no module, with ``feature``.

    Attributes:
        step: Optimiser step, from 0.
        balanced: Whether task gradients were compared (False: plain sum of the losses).
        cosine: Pair -> cosine of the two gradients over the shared parameters.
        conflict: Pair -> whether the cosine is negative.
        norms: Task -> gradient norm over the shared parameters, without the loss scale.
        weights: Task -> weight of its gradient over the shared parameters.
        modules: Module -> the same cosines and norms over its part of the shared parameters.
        skipped: Why the step was not taken; empty when it was.
    """

    step: int
    balanced: bool
    cosine: dict[str, float] = field(default_factory=dict)
    conflict: dict[str, bool] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    modules: dict[str, ModuleRecord] = field(default_factory=dict)
    skipped: str = ""

    @property
    def measured(self) -> bool:
        """Whether the task gradients are known: on balanced steps, and on probed free ones."""
        return bool(self.norms)


@dataclass(frozen=True, slots=True)
class Decision:
    """Gramian and weights of one step, before it is known whether the step is taken.

    Attributes:
        tasks: K task names.
        gramian: (K, K) float64 on the CPU, without the loss scale.
        weights: Task -> weight; empty for a probed free step.
        modules: Module -> its part of the Gramian, (K, K).
    """

    tasks: tuple[str, ...]
    gramian: Tensor
    weights: dict[str, float]
    modules: dict[str, Tensor] = field(default_factory=dict)

    def products(self) -> dict[tuple[str, str], tuple[float, float, float]]:
        """Return pair -> (|g_i|^2, |g_j|^2, <g_i, g_j>), pairs with a zero gradient left out."""
        return _products(self.tasks, self.gramian)

    def record(self, step: int, *, balanced: bool = True, skipped: str = "") -> BalanceRecord:
        """Return the record of optimiser step ``step``."""
        whole = _figures(self.tasks, self.gramian)
        return BalanceRecord(
            step=step,
            balanced=balanced,
            cosine=whole.cosine,
            conflict={pair_name(*pair): v[2] < 0.0 for pair, v in self.products().items()},
            norms=whole.norms,
            weights=dict(self.weights),
            modules={name: _figures(self.tasks, part) for name, part in self.modules.items()},
            skipped=skipped,
        )


def _products(
    tasks: Sequence[str], gramian: Tensor
) -> dict[tuple[str, str], tuple[float, float, float]]:
    rows: list[list[float]] = gramian.tolist()
    return {
        (tasks[i], tasks[j]): (rows[i][i], rows[j][j], rows[i][j])
        for i, j in itertools.combinations(range(len(tasks)), 2)
        if rows[i][i] > 0.0 and rows[j][j] > 0.0
    }


def _figures(tasks: Sequence[str], gramian: Tensor) -> ModuleRecord:
    """Return the cosines and norms that a (K, K) Gramian holds."""
    squares: list[float] = gramian.diagonal().tolist()
    return ModuleRecord(
        cosine={pair_name(*p): _cosine(*v) for p, v in _products(tasks, gramian).items()},
        norms={task: math.sqrt(square) for task, square in zip(tasks, squares, strict=True)},
    )


def _cosine(first_square: float, second_square: float, product: float) -> float:
    """Return the cosine; the roots are taken apart so that tiny squares do not underflow."""
    value = product / math.sqrt(first_square) / math.sqrt(second_square)
    return min(1.0, max(-1.0, value))


@dataclass(slots=True)
class BalanceWindow:
    """Running figures over the balanced (or the probed) steps of the current cycle.

    The sign of a single batch is mostly noise; these are what to look at.

    Attributes:
        cycle: Cycle of the schedule the figures belong to.
        steps: Steps counted so far.
        sums: Pair -> [steps, conflicts, sum |g_i|^2, sum |g_j|^2, sum <g_i, g_j>].
    """

    cycle: int = 0
    steps: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, cycle: int, decision: Decision) -> None:
        """Count one step; a new cycle of the schedule starts from nothing."""
        if cycle != self.cycle:
            self.cycle, self.steps, self.sums = cycle, 0, {}
        self.steps += 1
        for pair, (first, second, product) in decision.products().items():
            sums = self.sums.setdefault(pair_name(*pair), [0.0] * 5)
            added: Sequence[float] = (1.0, float(product < 0.0), first, second, product)
            sums[:] = [old + new for old, new in zip(sums, added, strict=True)]

    @property
    def conflict_rate(self) -> dict[str, float]:
        """Pair -> share of its steps with a negative cosine."""
        return {pair: sums[1] / sums[0] for pair, sums in self.sums.items()}

    @property
    def pooled_cosine(self) -> dict[str, float]:
        """Pair -> summed products over the root of the summed squared norms.

        A norm-weighted mean of the steps' cosines, which needs no stored gradient; it is not the
        cosine of the summed gradients.
        """
        return {pair: _cosine(*sums[2:5]) for pair, sums in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, loadable with ``weights_only=True``."""
        sums = {pair: list(values) for pair, values in self.sums.items()}
        return {"cycle": self.cycle, "steps": self.steps, "sums": sums}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> BalanceWindow:
        """Return the window saved by :meth:`state_dict`."""
        sums = {str(pair): [float(v) for v in values] for pair, values in state["sums"].items()}
        return cls(cycle=int(state["cycle"]), steps=int(state["steps"]), sums=sums)
