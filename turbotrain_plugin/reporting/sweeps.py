"""Table and curves of a robustness sweep: what a metric does as messages get worse.

A document is what ``sweep.json`` holds: per axis the results of every value, see ``engine.sweep``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes

from turbotrain_plugin.reporting.style import CYCLE, new_figure, save
from turbotrain_plugin.reporting.tables import (
    aligned,
    comparison,
    protocol_line,
    results_csv,
)

__all__ = ["draw_sweeps", "sweep_csv", "sweep_table"]

Sweep = Mapping[str, Any]

_MARKS: Final = ("o", "s", "^", "D", "v")


def sweep_table(document: Mapping[str, Any]) -> str:
    """Return console text: one table per axis, and what all of them share."""
    blocks = []
    for sweep in document["sweeps"]:
        named = [{**row, "name": f"{row['value']:g}"} for row in sweep["rows"]]
        header, *rows = comparison(named)
        blocks.append(aligned([[_label(sweep), *header[1:]], *rows]))
    return "\n\n".join([*blocks, protocol_line(document)])


def sweep_csv(document: Mapping[str, Any]) -> str:
    """Return CSV with one row per axis and value, every metric under its dotted name."""
    rows = [
        {"axis": sweep["axis"], "unit": sweep["unit"], **row}
        for sweep in document["sweeps"]
        for row in sweep["rows"]
    ]
    return results_csv(*rows)


def draw_sweeps(document: Mapping[str, Any], out: Path) -> Path:
    """Draw AP and EPA above, displacement errors below, one column per axis.

    Args:
        document: What ``sweep.json`` holds.
        out: PNG to write.

    Returns:
        ``out``.
    """
    sweeps: Sequence[Sweep] = document["sweeps"]
    figure = new_figure(2.0 + 4.2 * len(sweeps), 6.4)
    grid = figure.subplots(2, len(sweeps), sharex="col", sharey="row", squeeze=False)
    for column, sweep in enumerate(sweeps):
        scores, distances = grid[:, column]
        _lines(scores, sweep, _scores(sweep))
        _lines(distances, sweep, _distances(sweep))
        distances.set_xlabel(_label(sweep))
    grid[0, 0].set_ylim(-0.02, 1.02)
    grid[1, 0].set_ylim(bottom=0.0)  # after all columns: it would keep the top of the first
    grid[0, 0].set_ylabel("AP, EPA")
    grid[1, 0].set_ylabel("error of matched objects [m]")
    for axes in grid[:, -1]:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    figure.suptitle(str(document.get("name", "")), fontsize=11)
    return save(figure, out)


def _label(sweep: Sweep) -> str:
    return f"{sweep['label']} [{sweep['unit']}]"


def _scores(sweep: Sweep) -> dict[str, list[float | None]]:
    rows = sweep["rows"]
    names = sorted({name for row in rows for name in _of(row, "detection", "ap_global") or {}})
    found = {
        f"AP@{n}": [(_of(row, "detection", "ap_global") or {}).get(n) for row in rows]
        for n in names
    }
    return {**found, "EPA": [_of(row, "end_to_end", "epa") for row in rows]}


def _distances(sweep: Sweep) -> dict[str, list[float | None]]:
    rows = sweep["rows"]
    return {
        "ADE": [_of(row, "prediction", "ade_m") for row in rows],
        "FDE": [_of(row, "prediction", "fde_m") for row in rows],
    }


def _of(row: Mapping[str, Any], part: str, key: str) -> Any:  # noqa: ANN401 - JSON-like
    return (row.get(part) or {}).get(key)


def _lines(axes: Axes, sweep: Sweep, series: Mapping[str, Sequence[float | None]]) -> None:
    """Draw every series against the values, in rising order; unmeasured points are left out."""
    values = [row["value"] for row in sweep["rows"]]
    for index, (name, measured) in enumerate(series.items()):
        points = sorted((v, m) for v, m in zip(values, measured, strict=True) if m is not None)
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                color=CYCLE[index % len(CYCLE)],
                marker=_MARKS[index % len(_MARKS)],
                markersize=4.5,
                linewidth=1.6,
                label=name,
                clip_on=False,
            )
    axes.set_xticks(sorted(set(values)))
    axes.grid(visible=True, color="#E8E8E8", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
