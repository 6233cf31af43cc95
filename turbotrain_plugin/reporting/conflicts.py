"""What the task gradients of a run did to each other, from ``metrics.jsonl``: figures and a table.

Balanced steps are always measured, free ones where ``turbotrain.balance.probe_every`` says so. The
sign of a single cosine is mostly noise; rates and means over a window are what to look at.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting.metrics_file import read_metrics
from turbotrain_plugin.reporting.tables import MISSING, aligned

__all__ = ["FREE", "ConflictLog", "conflict_table", "read_conflicts"]

Record = dict[str, Any]

FREE: Final = "free, probed"
"""What measured free steps are called."""
BALANCED: Final = "balanced"
"""What balanced steps are called."""


@dataclass(frozen=True, slots=True)
class ConflictLog:
    """The steps of one run.

    Attributes:
        name: Name of the run folder.
        steps: All training steps.
        measured: Those with task gradients.
        pairs: Pairs of tasks, in the order in which they came.
        tasks: Tasks, likewise.
        modules: Modules of the figures, likewise.
    """

    name: str
    steps: list[Record]
    measured: list[Record]
    pairs: tuple[str, ...]
    tasks: tuple[str, ...]
    modules: tuple[str, ...]

    def phases(self) -> dict[str, list[Record]]:
        """Return the measured steps by kind, kinds without any left out."""
        found = {
            FREE: [record for record in self.measured if not record.get("balanced")],
            BALANCED: [record for record in self.measured if record.get("balanced")],
        }
        return {name: records for name, records in found.items() if records}


def read_conflicts(run: Path) -> ConflictLog:
    """Read a run folder, or its ``metrics.jsonl``.

    Raises:
        UserError: When the file is missing or damaged, or when no step was measured.
    """
    path = run / "metrics.jsonl" if run.is_dir() else run
    steps = [record for record in read_metrics(path) if "event" not in record]
    measured = [record for record in steps if record.get("cosines") and record.get("taken", True)]
    if not measured:
        raise UserError(
            f"{path}: holds no step whose task gradients were compared; train with balanced steps, "
            "or set turbotrain.balance.probe_every to look at free ones."
        )
    return ConflictLog(
        name=path.absolute().parent.name,
        steps=steps,
        measured=measured,
        pairs=_names(measured, "cosines"),
        tasks=_names(measured, "task_norms"),
        modules=_names(measured, "modules"),
    )


def _names(records: Sequence[Record], part: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in records for name in record.get(part, {})))


# -------------------------------------------------------------------------------------------- table


def conflict_table(log: ConflictLog) -> str:
    """Return console text: cosines and conflict rates by phase and by module, norms and weights."""
    measured = ", ".join(f"{len(found)} {name}" for name, found in log.phases().items())
    head = f"{log.name}: {len(log.steps)} training steps, measured: {measured}"
    blocks = [_pairs(log), _modules(log), _tasks(log)]
    return "\n\n".join([head, *(aligned(block) for block in blocks if len(block) > 1)])


def _pairs(log: ConflictLog) -> list[list[str]]:
    rows = [["cosine of the task gradients", "steps", "mean", "10 %", "90 %", "pooled", "conflict"]]
    for (phase, records), pair in itertools.product(log.phases().items(), log.pairs):
        cosines = [record["cosines"][pair] for record in records if pair in record["cosines"]]
        low, high = _tails(cosines)
        rows.append(
            [
                f"{pair}, {phase}",
                str(len(cosines)),
                _signed(_mean(cosines)),
                _signed(low),
                _signed(high),
                _signed(_pooled(records, pair)),
                _percent(_rate(cosines)),
            ]
        )
    return rows


def _modules(log: ConflictLog) -> list[list[str]]:
    """Every module: its cosines, and how much of each task's squared norm lies there."""
    cosine_columns = log.pairs if len(log.pairs) > 1 else ("mean cosine",)
    shares_of = [f"|g|^2 of {task}" for task in log.tasks]
    rows = [["module", *cosine_columns, "conflict", *shares_of]]
    for module in log.modules:
        parts = [record["modules"].get(module, {}) for record in log.measured if _has(record)]
        cosines = [
            [p["cosines"][pair] for p in parts if pair in p["cosines"]] for pair in log.pairs
        ]
        shares = [_share(log.measured, module, task) for task in log.tasks]
        rows.append(
            [
                module,
                *(_signed(_mean(values)) for values in cosines),
                _percent(_rate(list(itertools.chain(*cosines)))),
                *(_percent(share) for share in shares),
            ]
        )
    return rows


def _tasks(log: ConflictLog) -> list[list[str]]:
    rows = [["task", "median norm", "median weight", "10 %", "90 %", "largest weight"]]
    for task in log.tasks:
        norms = [
            record["task_norms"][task] for record in log.measured if task in record["task_norms"]
        ]
        weights = [
            record["task_weights"][task]
            for record in log.measured
            if task in record.get("task_weights", {})
        ]
        low, high = _tails(weights)
        rows.append(
            [
                task,
                _number(statistics.median(norms) if norms else None),
                *(
                    _number(value)
                    for value in (
                        statistics.median(weights) if weights else None,
                        low,
                        high,
                        max(weights, default=None),
                    )
                ),
            ]
        )
    return rows


def _has(record: Record) -> bool:
    return bool(record.get("modules"))


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _rate(cosines: Sequence[float]) -> float | None:
    """Return the share of negative cosines."""
    return _mean([float(cosine < 0.0) for cosine in cosines])


def _tails(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 10 % and 90 % quantiles."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (None, None)
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def _pooled(records: Sequence[Record], pair: str) -> float | None:
    """Return the mean cosine weighed by the norms; see ``BalanceWindow.pooled_cosine``."""
    a, b = pair.split("/")
    usable = [r for r in records if pair in r["cosines"]]
    first = math.fsum(r["task_norms"][a] ** 2 for r in usable)
    second = math.fsum(r["task_norms"][b] ** 2 for r in usable)
    product = math.fsum(
        r["cosines"][pair] * r["task_norms"][a] * r["task_norms"][b] for r in usable
    )
    return product / math.sqrt(first) / math.sqrt(second) if first and second else None


def _share(records: Sequence[Record], module: str, task: str) -> float | None:
    """Return the mean share of a task's squared gradient norm that lies in a module."""

    def square(part: Record) -> float:
        return float(part["task_norms"].get(task, 0.0) ** 2)

    shares = []
    for record in filter(_has, records):
        whole = math.fsum(square(part) for part in record["modules"].values())
        if whole > 0.0:
            part = record["modules"].get(module)
            shares.append(square(part) / whole if part else 0.0)
    return _mean(shares)


def _formatted(pattern: str) -> Callable[[float | None], str]:
    return lambda value: MISSING if value is None else pattern.format(value)


_signed: Final = _formatted("{:+.3f}")
_percent: Final = _formatted("{:.0%}")
_number: Final = _formatted("{:.3g}")
