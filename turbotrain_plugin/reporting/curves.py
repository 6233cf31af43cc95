"""Training curves from ``metrics.jsonl``: losses, gradient conflict, learning rate, validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting.metrics_file import read_metrics
from turbotrain_plugin.reporting.style import BLACK, CYCLE, GREY, SHADE, new_figure, save

_VALIDATION: Final = ("ap_0.30", "ap_0.50", "ap_0.70", "epa")

Record = dict[str, Any]
Panel = Callable[[Axes, list[Record]], None]
Series = tuple[NDArray[np.float64], NDArray[np.float64]]


def draw_curves(metrics_jsonl: Path, out: Path) -> Path:
    """Draw the curves of a run, all stages on one step axis, balanced phases shaded.

    Panels without data are left out. A last line cut short by a killed run is ignored.

    Args:
        metrics_jsonl: One JSON object per line: training steps, and validations where ``event``
            says so.
        out: PNG to write.

    Returns:
        ``out``.

    Raises:
        UserError: When the file is missing, damaged or holds no training step.
    """
    records = read_metrics(metrics_jsonl)
    steps = [record for record in records if "event" not in record]
    if not steps:
        raise UserError(f"{metrics_jsonl}: holds no training step; train the run first.")
    validations = [record for record in records if record.get("event") == "validation"]
    panels = _panels(steps, validations)
    figure = new_figure(11.0, 0.7 + 2.4 * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (draw, data) in zip(grid, panels, strict=True):
        draw(axes, data)
        _mark_stages(axes, steps, named=axes is grid[0])
        _finish(axes, shaded=axes is grid[0] and any(r.get("balanced") for r in steps))
    grid[-1].set_xlabel("step")
    margin = max(1.0, 0.01 * (steps[-1]["step"] - steps[0]["step"]))
    grid[-1].set_xlim(steps[0]["step"] - margin, steps[-1]["step"] + margin)
    figure.suptitle(metrics_jsonl.absolute().parent.name, fontsize=11)
    return save(figure, out)


def _panels(steps: list[Record], validations: list[Record]) -> list[tuple[Panel, list[Record]]]:
    panels: list[tuple[Panel, list[Record]]] = [(_losses, steps)]
    if any("cosine" in record or "conflict_rate" in record for record in steps):
        panels.append((_conflict, steps))
    panels.append((_learning_rate, steps))
    if any(name in record.get("metrics", {}) for record in validations for name in _VALIDATION):
        panels.append((_validation, validations))
    return panels


def _losses(axes: Axes, steps: list[Record]) -> None:
    names = dict.fromkeys(name for record in steps for name in record.get("losses", {}))
    for index, name in enumerate(names):
        colour = CYCLE[index % len(CYCLE)]
        label: str | None = name
        for _, stage in _stages(steps):
            x, y = _series(stage, _entry("losses", name))
            if len(x):
                _plot_smoothed(axes, x, y, colour, label)
                label = None
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("task losses")


def _conflict(axes: Axes, steps: list[Record]) -> None:
    x, y = _series(steps, lambda record: record.get("cosine"))
    if len(x):
        axes.plot(x, y, ".", color=GREY, markersize=2.5, label="cosine of the task gradients")
    x, y = _series(steps, lambda record: record.get("conflict_rate"))
    for index, (part_x, part_y) in enumerate(_runs(x, y)):
        label = "share of conflicting steps" if index == 0 else None
        _line(axes, part_x, part_y, color=CYCLE[1], linewidth=1.6, label=label)
    axes.axhline(0.0, color=BLACK, linewidth=0.7)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("gradient conflict")


def _learning_rate(axes: Axes, steps: list[Record]) -> None:
    rates = _series(steps, lambda record: record.get("lr"))[1]
    for _, stage in _stages(steps):
        x, y = _series(stage, lambda record: record.get("lr"))
        _line(axes, x, y, color=CYCLE[0], linewidth=1.4)
    positive = rates[rates > 0]
    if len(positive) and positive.max() > 10 * positive.min():
        axes.set_yscale("log", nonpositive="mask")
    else:
        axes.set_ylim(0.0, 1.1 * rates.max(initial=1e-9))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
    axes.set_ylabel("learning rate")


def _validation(axes: Axes, validations: list[Record]) -> None:
    for index, name in enumerate(_VALIDATION):
        x, y = _series(validations, _entry("metrics", name))
        if len(x):
            label = "EPA" if name == "epa" else name.replace("ap_", "AP@")
            axes.plot(x, y, marker="o", markersize=4, color=CYCLE[index], label=label)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("validation")


def _plot_smoothed(
    axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str, label: str | None
) -> None:
    """Draw every step faintly and a running mean over 2 % of the stage above it."""
    window = max(1, len(y) // 50)
    if window == 1:
        _line(axes, x, y, color=colour, linewidth=1.5, label=label)
        return
    axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.3)
    mean = np.convolve(y, np.ones(window) / window, mode="valid")
    axes.plot(x[window // 2 :][: len(mean)], mean, color=colour, linewidth=1.6, label=label)


def _entry(part: str, name: str) -> Callable[[Record], float | None]:
    def value(record: Record) -> float | None:
        found: float | None = record.get(part, {}).get(name)
        return found

    return value


def _line(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], **style: Any) -> None:  # noqa: ANN401
    """Plot a line that is seen even when it is a single point."""
    axes.plot(x, y, marker="o" if len(x) == 1 else "", markersize=4, **style)


def _series(records: Sequence[Record], value: Callable[[Record], float | None]) -> Series:
    pairs = [(record["step"], y) for record in records if (y := value(record)) is not None]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _runs(x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[Series]:
    """Yield the stretches of neighbouring steps, so that no line bridges a free phase."""
    cuts = np.flatnonzero(np.diff(x) > 1) + 1
    yield from zip(np.split(x, cuts), np.split(y, cuts), strict=True)


def _stages(steps: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    by_stage = groupby(steps, key=lambda record: str(record.get("stage", "")))
    return [(name, list(group)) for name, group in by_stage]


def _mark_stages(axes: Axes, steps: Sequence[Record], *, named: bool) -> None:
    for index, (name, stage) in enumerate(_stages(steps)):
        first, last = stage[0]["step"], stage[-1]["step"]
        if index:
            axes.axvline(first - 0.5, color=BLACK, linewidth=1.0)
        if named:
            axes.annotate(
                name,
                ((first + last) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                fontweight="bold",
            )
        for balanced, run in groupby(stage, key=lambda record: bool(record.get("balanced"))):
            if balanced:
                members = [record["step"] for record in run]
                axes.axvspan(members[0] - 0.5, members[-1] + 0.5, color=SHADE, lw=0, zorder=0)


def _finish(axes: Axes, *, shaded: bool) -> None:
    axes.grid(visible=True, color="#E8E8E8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    handles = axes.get_legend_handles_labels()[0]
    if shaded:
        handles.append(Patch(facecolor=SHADE, label="balanced phase"))
    if handles:
        axes.legend(
            handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False
        )
