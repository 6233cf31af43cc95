"""The picture of ``opencood report conflicts``: cosines, norms, conflicts, modules over time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from turbotrain_plugin.reporting.conflicts import ConflictLog, Record
from turbotrain_plugin.reporting.style import BLACK, CYCLE, SHADE, new_figure, save

__all__ = ["WINDOW", "draw_conflicts"]

WINDOW: Final = 50
"""Measured steps that a rate or a running mean looks back over."""
_COLUMNS: Final = 48
"""Columns of a heat map, at most."""
_LIMIT: Final = 0.2
"""Cosine at which the colour of a heat map is full, at least."""

Line = tuple[str, str, Sequence[Record]]
"""Label, colour, measured steps."""


def draw_conflicts(logs: Sequence[ConflictLog], out: Path, window: int = WINDOW) -> Path:
    """Draw one run, balanced phases shaded, or several over one another.

    Args:
        logs: Runs with tasks of the same names.
        out: PNG to write.
        window: Measured steps of the running means.

    Returns:
        ``out``.
    """
    maps = [(log, pair) for log in logs for pair in log.pairs if log.modules]
    heights = [2.2, 2.2, 2.2] + [0.9 + 0.3 * len(log.modules) for log, _ in maps]
    figure = new_figure(11.0, 0.7 + sum(heights))
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _cosines(panels[0], logs, window)
    _norms(panels[1], logs, window)
    _rates(panels[2], logs, window)
    for axes in panels[:3]:
        _finish(axes, logs, legend=axes is panels[0])
    limit = _colour_limit(maps)
    for axes, (log, pair) in zip(panels[3:], maps, strict=True):
        _heat_map(figure, axes, log, pair, limit=limit, named=len(logs) > 1)
    panels[-1].set_xlabel("step")
    first, last = _extent(logs)
    margin = max(1.0, 0.01 * (last - first))
    panels[-1].set_xlim(first - margin, last + margin)
    figure.suptitle(", ".join(log.name for log in logs), fontsize=11)
    return save(figure, out)


# ------------------------------------------------------------------------------------------- panels


def _cosines(axes: Axes, logs: Sequence[ConflictLog], window: int) -> None:
    """Every step as a dot, the running mean as a line."""
    for label, colour, log, pair in _pair_lines(logs):
        x, y = _series(log.measured, "cosines", pair)
        axes.plot(x, y, ".", color=colour, markersize=2.5, alpha=0.4)
        _trail(axes, x, y, window, color=colour, label=label)
    axes.axhline(0.0, color=BLACK, linewidth=0.7)
    axes.set_ylabel("cosine")


def _norms(axes: Axes, logs: Sequence[ConflictLog], window: int) -> None:
    colours = itertools.cycle(CYCLE)
    for log in logs:
        for task in log.tasks:
            x, y = _series(log.measured, "task_norms", task)
            x, y, colour = x[y > 0], y[y > 0], next(colours)
            axes.plot(x, y, ".", color=colour, markersize=2.5, alpha=0.4)
            label = _label(logs, log, task)
            _trail(axes, x, y, window, color=colour, label=label, geometric=True)
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("gradient norm")


def _rates(axes: Axes, logs: Sequence[ConflictLog], window: int) -> None:
    for label, colour, log, pair in _pair_lines(logs):
        x, y = _series(log.measured, "cosines", pair)
        _trail(axes, x, (y < 0).astype(np.float64), window, color=colour, label=label)
    axes.axhline(0.5, color=BLACK, linewidth=0.7, linestyle=":")
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(f"conflicting share\nof {window} steps")


def _heat_map(
    figure: Figure, axes: Axes, log: ConflictLog, pair: str, *, limit: float, named: bool
) -> None:
    """Modules from top to bottom in the order of the network, time from left to right."""
    edges, means = module_means(log, pair)
    rows = np.arange(len(log.modules) + 1) - 0.5
    mesh = axes.pcolormesh(edges, rows, means, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_facecolor("#EDEDED")
    axes.set_yticks(range(len(log.modules)), log.modules)
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    title = "mean cosine by module" + (f", {pair}" if len(log.pairs) > 1 else "")
    axes.set_title(f"{title}, {log.name}" if named else title, fontsize=9, loc="left")
    beside = axes.inset_axes((1.015, 0.0, 0.012, 1.0))
    figure.colorbar(mesh, cax=beside, extend="both").ax.tick_params(labelsize=8)


def module_means(log: ConflictLog, pair: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of the columns, (N + 1,) in steps, and the mean cosines, (modules, N).

    A column without a measured step is NaN; columns are as wide as two measured steps lie apart,
    or wider.
    """
    measured = [record for record in log.measured if record.get("modules")]
    steps = np.array([record["step"] for record in measured], dtype=np.float64)
    first, last = _extent([log])
    apart = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    columns = int(np.clip((last - first + 1) // max(apart, 1.0), 1, _COLUMNS))
    edges = np.linspace(first - 0.5, last + 0.5, columns + 1)
    column = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, columns - 1)
    means = np.full((len(log.modules), columns), np.nan)
    for row, module in enumerate(log.modules):
        values = np.array(
            [
                record["modules"].get(module, {}).get("cosines", {}).get(pair, np.nan)
                for record in measured
            ],
            dtype=np.float64,
        )
        for index in range(columns):
            inside = values[(column == index) & np.isfinite(values)]
            if len(inside):
                means[row, index] = inside.mean()
    return edges, means


def _colour_limit(maps: Sequence[tuple[ConflictLog, str]]) -> float:
    """Return a common limit that few cells exceed."""
    cells = [np.abs(module_means(log, pair)[1]).ravel() for log, pair in maps]
    found = np.concatenate(cells) if cells else np.empty(0)
    found = found[np.isfinite(found)]
    return max(_LIMIT, float(np.quantile(found, 0.95))) if len(found) else _LIMIT


# -------------------------------------------------------------------------------------------- parts


def _pair_lines(logs: Sequence[ConflictLog]) -> Iterator[tuple[str, str, ConflictLog, str]]:
    colours = itertools.cycle(CYCLE)
    for log in logs:
        for pair in log.pairs:
            yield _label(logs, log, pair), next(colours), log, pair


def _label(logs: Sequence[ConflictLog], log: ConflictLog, name: str) -> str:
    return f"{log.name}\n{name}" if len(logs) > 1 else name


def _series(
    records: Sequence[Record], part: str, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(record["step"], record[part][name]) for record in records if name in record[part]]
    array = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _trail(
    axes: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    window: int,
    *,
    color: str,
    label: str,
    geometric: bool = False,
) -> None:
    """Draw the mean of the last ``window`` values, from the first quarter of a window on.

    It is broken where nothing was measured for much longer than usual, so that no line bridges a
    free phase that was not probed.
    """
    if not len(x):
        return
    mean = np.exp(running_mean(np.log(y), window)) if geometric else running_mean(y, window)
    usual = float(np.quantile(np.diff(x), 0.9)) if len(x) > 1 else 1.0
    cuts = np.flatnonzero(np.diff(x) > 4.0 * usual) + 1
    for part_x, part_y in zip(np.split(x, cuts), np.split(mean, cuts), strict=True):
        marker = "o" if len(part_x) == 1 else ""
        axes.plot(
            part_x, part_y, color=color, label=label, linewidth=1.6, marker=marker, markersize=3
        )
        label = "_"


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the last ``window`` values, NaN until a quarter of them are there."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: NDArray[np.float64] = (sums[ends] - sums[starts]) / (ends - starts)
    means[: min(-(-window // 4) - 1, len(values) - 1)] = np.nan
    return means


def _extent(logs: Sequence[ConflictLog]) -> tuple[float, float]:
    """Return the first and last step of the stages in which something was measured."""
    found: list[float] = []
    for log in logs:
        stages = {record.get("stage") for record in log.measured}
        found += [record["step"] for record in log.steps if record.get("stage") in stages]
    return min(found), max(found)


def _finish(axes: Axes, logs: Sequence[ConflictLog], *, legend: bool) -> None:
    axes.grid(visible=True, color="#E8E8E8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    handles = axes.get_legend_handles_labels()[0]
    if len(logs) == 1:
        for balanced, run in itertools.groupby(logs[0].steps, lambda r: bool(r.get("balanced"))):
            if balanced:
                steps = [record["step"] for record in run]
                axes.axvspan(steps[0] - 0.5, steps[-1] + 0.5, color=SHADE, lw=0, zorder=0)
        if legend:
            handles.append(Patch(facecolor=SHADE, label="balanced phase"))
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False
    )
