"""Masked pretraining seen from above: input, mask, target, and what the model builds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from numpy.typing import NDArray

from turbotrain_plugin.reporting.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    aspect_of,
    new_figure,
    save,
    set_ground,
)

_STATES: Final = {"seen": GREY, "hidden from some agents": ORANGE, "hidden from all": VERMILION}
"""What can become of a column with points, from state 1 on, and its colour."""


@dataclass(slots=True, kw_only=True)
class ReconstructionDrawing:
    """Points in the ego LiDAR frame of the current time.

    Attributes:
        scene: Scene name.
        frame: Number of the frame in its scene.
        range_m: x, y, z min, then x, y, z max.
        visible: (P, 3+) points left after masking.
        mask: (H, W) int, H along y: 0 no points, 1 seen by all agents with points there, 2 hidden
            from some of them, 3 hidden from all; None to leave the panel out.
        target: (Q, 3+) points to rebuild.
        rebuilt: (R, 3+) points the model gives, or None without that head.
        occupied: (H, W) bool, cells with points; None to leave the panel out.
        occupancy: (H, W) probabilities that anything is in a cell, H along y, or None without
            that head.
    """

    scene: str
    frame: int
    range_m: Sequence[float]
    visible: NDArray[Any]
    target: NDArray[Any]
    mask: NDArray[Any] | None = None
    rebuilt: NDArray[Any] | None = None
    occupied: NDArray[Any] | None = None
    occupancy: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse occupancy that is no map of probabilities, and masks that are no map of states."""
        if self.mask is not None and (
            self.mask.ndim != 2 or not np.isin(self.mask, range(len(_STATES) + 1)).all()
        ):
            raise ValueError(
                f"`mask` must hold 0 to {len(_STATES)} with shape (H, W). "
                f"Found shape {self.mask.shape}."
            )
        if self.occupancy is None:
            return
        if self.occupancy.ndim != 2 or not ((self.occupancy >= 0) & (self.occupancy <= 1)).all():
            raise ValueError(
                "`occupancy` must hold probabilities with shape (H, W). "
                f"Found shape {self.occupancy.shape}."
            )


def draw_reconstruction(drawing: ReconstructionDrawing, path: Path) -> Path:
    """Draw input, mask, target and what was rebuilt as panels of one PNG.

    Returns:
        ``path``.
    """
    panels = [_visible]
    panels += [_mask] if drawing.mask is not None else []
    panels += [_target]
    panels += [_rebuilt] if drawing.rebuilt is not None else []
    panels += [_occupied] if drawing.occupied is not None else []
    panels += [_occupancy] if drawing.occupancy is not None else []
    rows = math.ceil(len(panels) / 2)
    panel_in = 7.0
    height_in = min(max(panel_in * aspect_of(drawing.range_m), 1.8), 7.0) + 0.7
    figure = new_figure(2 * panel_in, rows * height_in + 0.4, layout="compressed")
    for number, draw in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 2, number)
        set_ground(axes, drawing.range_m)
        draw(axes, drawing)
    figure.suptitle(f"{drawing.scene}, frame {drawing.frame}: masked reconstruction", fontsize=11)
    return save(figure, path)


def _visible(axes: Axes, drawing: ReconstructionDrawing) -> None:
    _points(axes, drawing.visible, BLACK, "input, left after masking")


def _mask(axes: Axes, drawing: ReconstructionDrawing) -> None:
    if drawing.mask is None:
        return
    low_x, low_y, _, high_x, high_y, _ = drawing.range_m
    axes.imshow(
        drawing.mask,
        origin="lower",
        extent=(low_x, high_x, low_y, high_y),
        cmap=ListedColormap(["#FFFFFF", *_STATES.values()]),
        vmin=0,
        vmax=len(_STATES),
        interpolation="nearest",
    )
    axes.grid(visible=False)
    counts = [int((drawing.mask == state).sum()) for state in range(1, len(_STATES) + 1)]
    handles = [
        Patch(color=colour, label=f"{name}: {count:,}")
        for (name, colour), count in zip(_STATES.items(), counts, strict=True)
    ]
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=4.2,  # below the label of the axis, whatever the panel's height
        ncol=3,
        fontsize=8,
    )
    axes.set_title(f"mask: {sum(counts):,} columns with points", fontsize=10)


def _target(axes: Axes, drawing: ReconstructionDrawing) -> None:
    _points(axes, drawing.target, BLUE, "target")


def _rebuilt(axes: Axes, drawing: ReconstructionDrawing) -> None:
    if drawing.rebuilt is not None:
        _points(axes, drawing.rebuilt, VERMILION, "rebuilt")


def _occupied(axes: Axes, drawing: ReconstructionDrawing) -> None:
    if drawing.occupied is None:
        return
    _shares(axes, drawing.occupied.astype(float), drawing.range_m)
    axes.set_title(f"cells with points: {int(drawing.occupied.sum()):,}", fontsize=10)


def _occupancy(axes: Axes, drawing: ReconstructionDrawing) -> None:
    if drawing.occupancy is None:
        return
    image = _shares(axes, drawing.occupancy, drawing.range_m)
    # In the axes' own space, so that the panels stay of equal size.
    bar = axes.inset_axes((1.01, 0.0, 0.015, 1.0))
    axes.figure.colorbar(image, cax=bar).ax.tick_params(labelsize=8)
    axes.set_title("probability of occupancy", fontsize=10)


def _shares(axes: Axes, values: NDArray[Any], range_m: Sequence[float]) -> AxesImage:
    """Draw (H, W) shares of one."""
    low_x, low_y, _, high_x, high_y, _ = range_m
    axes.grid(visible=False)
    return axes.imshow(
        values,
        origin="lower",
        extent=(low_x, high_x, low_y, high_y),
        cmap="cividis",
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
    )


def _points(axes: Axes, points: NDArray[Any], colour: str, title: str) -> None:
    axes.plot(
        points[:, 0],
        points[:, 1],
        linestyle="none",
        marker=".",
        markersize=2.2,
        markeredgewidth=0,
        color=colour,
    )
    axes.set_title(f"{title}: {len(points):,} points", fontsize=10)
