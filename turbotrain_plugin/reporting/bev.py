"""One scene from above: points by agent, map, objects with past and future, detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from turbotrain_plugin.geometry.boxes import bev_corners
from turbotrain_plugin.reporting.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    aspect_of,
    new_figure,
    save,
    set_ground,
)

_INFRASTRUCTURE: Final = 1
_AGENTS: Final = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW)
"""Colours of agents that are told apart; neighbours in the list differ most."""
_LABEL_SPACING: Final = 0.03
"""Share of the width below which of two scores only the higher is written."""


def _none(*shape: int) -> NDArray[Any]:
    return np.zeros(shape, dtype=np.float32)


@dataclass(slots=True, kw_only=True)
class SceneDrawing:
    """What a picture shows; everything in the ego LiDAR frame of the current time.

    Attributes:
        scene: Scene name.
        frame: Number of the frame in its scene.
        range_m: x, y, z min, then x, y, z max.
        points: A arrays (P, 3+), the ego's first.
        agent_ids: A folder numbers.
        agent_types: (A,) 0 vehicle, 1 roadside unit.
        ego_SE3_agent: (A, 4, 4) current LiDAR frames of the agents.
        lanes: Polylines (N, 2+).
        boxes: (M, 7) objects.
        past: (M, T, 2) centres, or None.
        past_valid: (M, T) bool, or None when all are valid.
        futures: (M, F, 2) centres, or None.
        future_valid: (M, F) bool, or None when all are valid.
        detections: (N, 7).
        scores: (N,) in [0, 1].
        trajectories: (N, F, 2) absolute x, y, or None.
        by_agent: Give every agent a colour of its own (a look at data, in any frame) instead of
            one per role (a look at a sample, in the ego's).
    """

    scene: str
    frame: int
    range_m: Sequence[float]
    points: Sequence[NDArray[Any]] = ()
    agent_ids: Sequence[int] = ()
    agent_types: NDArray[Any] = field(default_factory=lambda: _none(0))
    ego_SE3_agent: NDArray[Any] = field(default_factory=lambda: _none(0, 4, 4))
    lanes: Sequence[NDArray[Any]] = ()
    boxes: NDArray[Any] = field(default_factory=lambda: _none(0, 7))
    past: NDArray[Any] | None = None
    past_valid: NDArray[np.bool_] | None = None
    futures: NDArray[Any] | None = None
    future_valid: NDArray[np.bool_] | None = None
    detections: NDArray[Any] = field(default_factory=lambda: _none(0, 7))
    scores: NDArray[Any] = field(default_factory=lambda: _none(0))
    trajectories: NDArray[Any] | None = None
    by_agent: bool = False

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        agents = {len(self.points), len(self.agent_ids), len(self.agent_types)}
        if len(agents | {len(self.ego_SE3_agent)}) > 1:
            raise ValueError(
                "`points`, `agent_ids`, `agent_types` and `ego_SE3_agent` must have one entry per "
                f"agent. Found {len(self.points)}, {len(self.agent_ids)}, {len(self.agent_types)} "
                f"and {len(self.ego_SE3_agent)}."
            )
        if len(self.detections) != len(self.scores):
            raise ValueError(
                "`scores` must have one entry per detection. "
                f"Found {len(self.scores)} and {len(self.detections)}."
            )
        for name, paths, owner in (
            ("past", self.past, self.boxes),
            ("futures", self.futures, self.boxes),
            ("trajectories", self.trajectories, self.detections),
        ):
            if paths is not None and (len(paths) != len(owner) or paths.ndim != 3):
                raise ValueError(
                    f"`{name}` must have shape ({len(owner)}, steps, 2). Found {paths.shape}."
                )


def draw_scene(drawing: SceneDrawing, path: Path) -> Path:
    """Draw a scene from above into a PNG; empty parts are left out.

    Returns:
        ``path``.
    """
    return save(scene_figure(drawing), path)


def scene_figure(drawing: SceneDrawing) -> Figure:
    """Return the picture that ``draw_scene`` saves."""
    aspect = aspect_of(drawing.range_m)
    width_in = 14.0 if aspect < 0.6 else 10.0
    figure = new_figure(width_in, min(max(width_in * aspect, 2.5), 12.0) + 1.1)
    axes = figure.add_subplot()
    set_ground(axes, drawing.range_m)
    _draw_lanes(axes, drawing.lanes)
    _draw_points(axes, drawing)
    _draw_objects(axes, drawing)
    _draw_detections(axes, drawing)
    _draw_agents(axes, drawing)
    axes.set_title(_title(drawing), fontsize=11)
    entries = _legend(drawing)
    if entries:
        figure.legend(
            handles=entries,
            loc="outside lower center",
            ncols=min(len(entries), 5),
            fontsize=9,
            frameon=False,
        )
    return figure


def _title(drawing: SceneDrawing) -> str:
    counts = {
        "agent": len(drawing.agent_ids),
        "point": sum(len(points) for points in drawing.points),
        "object": len(drawing.boxes),
    }
    if not drawing.by_agent:
        counts["detection"] = len(drawing.detections)
    counted = ", ".join(f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    return f"{drawing.scene}, frame {drawing.frame}: {counted}"


def _width_m(drawing: SceneDrawing) -> float:
    return drawing.range_m[3] - drawing.range_m[0]


def _closer(drawing: SceneDrawing, size: float, *, most: float) -> float:
    """Return a size that fits a view of 200 m, made larger for views from closer by."""
    return float(np.clip(size * (200.0 / _width_m(drawing)) ** 0.75, size, most))


def _kind(drawing: SceneDrawing, agent: int) -> tuple[str, str]:
    """Return the colour of an agent and what the legend calls it."""
    if drawing.by_agent:
        kind = "roadside unit" if drawing.agent_types[agent] == _INFRASTRUCTURE else "vehicle"
        return _AGENTS[agent % len(_AGENTS)], f"{kind} {drawing.agent_ids[agent]}"
    if agent == 0:
        return SKY, "ego"
    if drawing.agent_types[agent] == _INFRASTRUCTURE:
        return PURPLE, "roadside unit"
    return GREEN, "other vehicle"


def _draw_lanes(axes: Axes, lanes: Sequence[NDArray[Any]]) -> None:
    lines = [np.asarray(lane, dtype=np.float64)[:, :2] for lane in lanes if len(lane) > 1]
    axes.add_collection(LineCollection(lines, colors="#BDBDBD", linewidths=0.9, zorder=1))


def _draw_points(axes: Axes, drawing: SceneDrawing) -> None:
    size = _closer(drawing, 1.5 if drawing.by_agent else 0.9, most=3.0)
    # The ego last: its points lie on top of the others'.
    for agent in reversed(range(len(drawing.points))):
        points = drawing.points[agent]
        axes.plot(
            points[:, 0],
            points[:, 1],
            linestyle="none",
            marker=".",
            markersize=size,
            markeredgewidth=0,
            color=_kind(drawing, agent)[0],
            zorder=2,
        )


def _draw_agents(axes: Axes, drawing: SceneDrawing) -> None:
    for agent, pose in enumerate(drawing.ego_SE3_agent):
        colour, _ = _kind(drawing, agent)
        roadside = drawing.agent_types[agent] == _INFRASTRUCTURE
        axes.plot(
            *pose[:2, 3],
            marker="^" if roadside else "o",
            markersize=8,
            color=colour,
            markeredgecolor=BLACK,
            markeredgewidth=0.9,
            zorder=8,
        )
        axes.annotate(
            str(drawing.agent_ids[agent]),
            pose[:2, 3],
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.85},
            annotation_clip=True,
            clip_on=True,
            zorder=9,
        )


def _draw_objects(axes: Axes, drawing: SceneDrawing) -> None:
    boxes = drawing.boxes
    axes.add_collection(
        PolyCollection(
            list(bev_corners(boxes)),
            facecolors=(0, 0, 0, 0.13),
            edgecolors=BLACK,
            linewidths=0.9,
            zorder=4,
        )
    )
    axes.add_collection(_headings(boxes, BLACK, 0.9, zorder=4))
    past = _paths(drawing.past, drawing.past_valid)
    axes.add_collection(LineCollection(past, colors=BLUE, linewidths=1.3, zorder=3))
    futures = _paths(drawing.futures, drawing.future_valid, starts=boxes[:, :2])
    axes.add_collection(
        LineCollection(futures, colors=BLACK, linewidths=1.1, linestyles=(0, (3, 1.5)), zorder=5)
    )


def _draw_detections(axes: Axes, drawing: SceneDrawing) -> None:
    boxes, scores = drawing.detections, np.asarray(drawing.scores, dtype=np.float64)
    opacity = 0.35 + 0.65 * np.clip(scores, 0.0, 1.0)
    axes.add_collection(
        PolyCollection(
            list(bev_corners(boxes)),
            facecolors="none",
            edgecolors=[(VERMILION, alpha) for alpha in opacity],
            linewidths=1.3,
            zorder=6,
        )
    )
    axes.add_collection(_headings(boxes, VERMILION, 1.3, zorder=6))
    paths = _paths(drawing.trajectories, None, starts=boxes[:, :2])
    axes.add_collection(LineCollection(paths, colors=VERMILION, linewidths=1.1, zorder=6))
    if drawing.trajectories is not None and len(boxes):
        ends = drawing.trajectories[:, -1:].reshape(-1, 2)
        axes.plot(*ends.T, linestyle="none", marker=".", markersize=4, color=VERMILION, zorder=6)
    for index in _labelled(drawing):
        top = bev_corners(boxes[index : index + 1])[0, :, 1].max()
        axes.annotate(
            f"{scores[index]:.2f}",
            (boxes[index, 0], top),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=_closer(drawing, 6.5, most=9.0),
            color=VERMILION,
            path_effects=[withStroke(linewidth=1.8, foreground="white")],
            annotation_clip=True,
            clip_on=True,
            zorder=7,
        )


def _headings(boxes: NDArray[Any], colour: str, width: float, *, zorder: float) -> LineCollection:
    """Return lines from the centre to the middle of the front."""
    corners = bev_corners(boxes)
    front = corners[:, [0, 3]].mean(axis=1)
    return LineCollection(
        list(np.stack([boxes[:, :2], front], axis=1)),
        colors=colour,
        linewidths=width,
        zorder=zorder,
    )


def _paths(
    paths: NDArray[Any] | None,
    valid: NDArray[np.bool_] | None,
    starts: NDArray[Any] | None = None,
) -> list[NDArray[Any]]:
    """Return the valid positions of each path, in front of them its start."""
    if paths is None:
        return []
    lines = []
    for index, path in enumerate(paths):
        line = path if valid is None else path[valid[index]]
        if starts is not None:
            line = np.concatenate([starts[index : index + 1], line])
        if len(line) > 1:
            lines.append(line)
    return lines


def _labelled(drawing: SceneDrawing) -> list[int]:
    """Return detections whose scores are written: by falling score, as long as there is room.

    A label needs some distance from those before it and from the agents, which have labels too.
    """
    spacing_m = _LABEL_SPACING * _width_m(drawing)
    taken = [pose[:2, 3] for pose in drawing.ego_SE3_agent]
    chosen: list[int] = []
    for index in np.argsort(-np.asarray(drawing.scores), kind="stable").tolist():
        place = drawing.detections[index, :2]
        if all(np.hypot(*(place - other)) >= spacing_m for other in taken):
            chosen.append(index)
            taken.append(place)
    return chosen


def _legend(drawing: SceneDrawing) -> list[Artist]:
    kinds = dict.fromkeys(_kind(drawing, agent) for agent in range(len(drawing.agent_ids)))
    entries: list[Artist] = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="^" if name.startswith("roadside unit") else "o",
            color=colour,
            markeredgecolor=BLACK,
            label=f"{name} and its points",
        )
        for colour, name in kinds
    ]
    if drawing.lanes:
        entries.append(Line2D([], [], color="#BDBDBD", label="lanes"))
    if len(drawing.boxes):
        entries.append(Patch(facecolor=(0, 0, 0, 0.13), edgecolor=BLACK, label="object"))
    if drawing.past is not None and len(drawing.boxes):
        entries.append(Line2D([], [], color=BLUE, label="its past"))
    if drawing.futures is not None and len(drawing.boxes):
        entries.append(Line2D([], [], color=BLACK, linestyle=(0, (3, 1.5)), label="its future"))
    if len(drawing.detections):
        entries.append(Patch(facecolor="none", edgecolor=VERMILION, label="detection with score"))
    if drawing.trajectories is not None and len(drawing.detections):
        entries.append(Line2D([], [], color=VERMILION, marker=".", label="predicted future"))
    return entries
