"""One page about a dataset: classes, speeds, sizes, distances, points per box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from turbotrain_plugin.reporting.style import BLUE, CYCLE, GREY, VERMILION, new_figure, save

_CLASSES: Final = 6
"""Classes with a colour of their own; the rest would not be told apart."""
_BAND_M: Final = 5.0
_BOXES: Final = 5
"""Boxes of a band below which no quantile is drawn."""
_KINDS: Final[Mapping[str, str]] = {"vehicle": BLUE, "roadside unit": VERMILION}
_COMMUNICATION_M: Final = 50.0

Values = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewDrawing:
    """What the page shows.

    Attributes:
        title: Name of the dataset and its counts.
        classes: Names by falling number of boxes.
        objects: Objects of each class.
        boxes: Boxes of each class.
        speed_mps: Class to speeds of moving objects.
        size_m: Class to (N, 2) length and width of objects.
        range_m: ``vehicle`` and ``roadside unit`` to distances of labelled boxes.
        points: The same to (N, 2) distance and points of a box.
        agent_distance_m: Distances of two agents.
    """

    title: str
    classes: Sequence[str]
    objects: Sequence[int]
    boxes: Sequence[int]
    speed_mps: Mapping[str, Values]
    size_m: Mapping[str, Values]
    range_m: Mapping[str, Values]
    points: Mapping[str, Values]
    agent_distance_m: Values


def draw_overview(drawing: OverviewDrawing, path: Path) -> Path:
    """Draw the page into a PNG; panels without data say so.

    Returns:
        ``path``.
    """
    figure = new_figure(14.0, 8.0)
    axes = figure.subplots(2, 3)
    colours = dict(zip(drawing.classes[:_CLASSES], CYCLE, strict=False))
    _draw_classes(axes[0, 0], drawing, colours)
    _draw_speeds(axes[0, 1], drawing, colours)
    _draw_sizes(axes[0, 2], drawing, colours)
    _draw_ranges(axes[1, 0], drawing)
    _draw_points(axes[1, 1], drawing)
    _draw_agents(axes[1, 2], drawing)
    for one in axes.flat:
        one.tick_params(labelsize=8)
        one.spines[["top", "right"]].set_visible(False)
    figure.suptitle(drawing.title, fontsize=12)
    return save(figure, path)


def _draw_classes(axes: Axes, drawing: OverviewDrawing, colours: Mapping[str, str]) -> None:
    axes.set_title("boxes by class (objects beside the bars)", fontsize=10)
    if not drawing.classes:
        _say_nothing(axes)
        return
    rows = range(len(drawing.classes))
    axes.barh(rows, drawing.boxes, color=[colours.get(name, GREY) for name in drawing.classes])
    for row, (boxes, objects) in enumerate(zip(drawing.boxes, drawing.objects, strict=True)):
        axes.annotate(f" {objects:,}", (boxes, row), va="center", fontsize=8, annotation_clip=False)
    axes.set_yticks(rows, drawing.classes)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(max(min(drawing.boxes) / 3, 0.5), max(drawing.boxes) * 3)
    axes.set_xlabel("boxes in all label files")


def _draw_speeds(axes: Axes, drawing: OverviewDrawing, colours: Mapping[str, str]) -> None:
    axes.set_title("speed of moving objects over 0.5 s", fontsize=10)
    shown = {name: drawing.speed_mps[name] for name in colours if len(drawing.speed_mps[name])}
    if not shown:
        _say_nothing(axes)
        return
    top = max(1.0, float(np.quantile(np.concatenate(list(shown.values())), 0.999)))
    bins = np.linspace(0.0, top, 41)
    for name, speeds in shown.items():
        axes.hist(
            np.minimum(speeds, top),
            bins=bins.tolist(),
            weights=np.full(len(speeds), 1.0 / len(speeds)),
            histtype="step",
            linewidth=1.5,
            color=colours[name],
            label=name,
        )
    axes.set_xlim(0.0, top)
    axes.set_xlabel("m/s")
    axes.set_ylabel("share of the class")
    axes.legend(fontsize=8, frameon=False)


def _draw_sizes(axes: Axes, drawing: OverviewDrawing, colours: Mapping[str, str]) -> None:
    axes.set_title("size of objects", fontsize=10)
    if not drawing.classes:
        _say_nothing(axes)
        return
    # The rarest on top, or the cars would hide them.
    for name in drawing.classes:
        size = drawing.size_m[name]
        axes.plot(
            size[:, 0],
            size[:, 1],
            linestyle="none",
            marker="o",
            markersize=3.5,
            markeredgewidth=0,
            alpha=0.6,
            color=colours.get(name, GREY),
            label=name if name in colours else None,
        )
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("length [m]")
    axes.set_ylabel("width [m]")
    if len(drawing.classes) > len(colours):
        axes.plot([], [], "o", markersize=3.5, color=GREY, label="other classes")
    axes.legend(fontsize=8, frameon=False, loc="lower right", markerscale=1.5)


def _draw_ranges(axes: Axes, drawing: OverviewDrawing) -> None:
    axes.set_title("distance of boxes from the sensor that labels them", fontsize=10)
    kinds = [kind for kind in _KINDS if len(drawing.range_m.get(kind, ()))]
    if not kinds:
        _say_nothing(axes)
        return
    values = [drawing.range_m[kind] for kind in kinds]
    top = float(np.quantile(np.concatenate(values), 0.999))
    axes.hist(
        values,
        bins=np.arange(0.0, top + _BAND_M, _BAND_M).tolist(),
        stacked=True,
        color=[_KINDS[kind] for kind in kinds],
        label=[f"by a {kind}" for kind in kinds],
    )
    axes.set_xlabel("m")
    axes.set_ylabel("boxes")
    axes.legend(fontsize=8, frameon=False)


def _draw_points(axes: Axes, drawing: OverviewDrawing) -> None:
    axes.set_title("points per box by distance (median, 10 to 90 %)", fontsize=10)
    drawn = [
        _draw_band(axes, drawing.points[kind], colour, kind)
        for kind, colour in _KINDS.items()
        if len(drawing.points.get(kind, ()))
    ]
    if not any(drawn):
        _say_nothing(axes)
        return
    axes.set_yscale("symlog", linthresh=1.0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("m")
    axes.set_ylabel("points of that agent")
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)


def _draw_band(axes: Axes, pairs: Values, colour: str, kind: str) -> bool:
    """Draw quantiles by distance; return whether any distance had enough boxes."""
    band = np.floor(pairs[:, 0] / _BAND_M).astype(np.int64)
    centres, rows = [], []
    for one in np.unique(band).tolist():
        points = pairs[band == one, 1]
        if len(points) >= _BOXES:
            centres.append((one + 0.5) * _BAND_M)
            rows.append(np.quantile(points, (0.1, 0.5, 0.9)))
    if rows:
        low, middle, high = np.stack(rows, axis=1)
        axes.fill_between(centres, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(centres, middle, color=colour, marker="o", markersize=3, label=f"of a {kind}")
    return bool(rows)


def _draw_agents(axes: Axes, drawing: OverviewDrawing) -> None:
    axes.set_title("distance of two agents, per frame", fontsize=10)
    distance = drawing.agent_distance_m
    if not len(distance):
        _say_nothing(axes)
        return
    axes.hist(distance, bins=40, color=GREY)
    near = float((distance <= _COMMUNICATION_M).mean())
    axes.axvline(_COMMUNICATION_M, color="black", linewidth=1.0, linestyle="--")
    axes.annotate(
        f"{near:.0%} within {_COMMUNICATION_M:g} m",
        (_COMMUNICATION_M, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -10),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    axes.set_xlim(0.0, max(1.05 * float(distance.max()), 1.2 * _COMMUNICATION_M))
    axes.margins(y=0.15)
    axes.set_xlabel("m")
    axes.set_ylabel("pairs of agents")


def _say_nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes, color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
