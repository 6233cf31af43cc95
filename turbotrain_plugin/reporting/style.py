"""What all pictures share: colours that colour-blind readers tell apart, axes in metres, files.

Figures are made and saved without pyplot, so that nothing is shared between pictures and no
display is needed. The colours are those of Okabe and Ito (2008).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLACK: Final = "#000000"
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
YELLOW: Final = "#F0E442"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
GREY: Final = "#9A9A9A"

SHADE: Final = "#FBE7CF"
"""Behind balanced phases."""

CYCLE: Final = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)

DPI: Final = 150


def new_figure(
    width_in: float,
    height_in: float,
    layout: Literal["constrained", "compressed"] = "constrained",
) -> Figure:
    """Return an empty white figure that lays itself out."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def set_ground(axes: Axes, range_m: Sequence[float]) -> None:
    """Make axes a view from above: metres, equal aspect, the x, y range and nothing more."""
    axes.set_xlim(range_m[0], range_m[3])
    axes.set_ylim(range_m[1], range_m[4])
    axes.set_aspect("equal")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    axes.tick_params(labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(visible=True, color="#EEEEEE", linewidth=0.6)


def aspect_of(range_m: Sequence[float]) -> float:
    """Return height over width of a range x, y, z min, then max."""
    return (range_m[4] - range_m[1]) / (range_m[3] - range_m[0])


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG under a temporary name and rename it; make its folder.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.12)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
