"""Pages about data sets, and films: panels with and without data, one picture per scene."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from turbotrain_plugin.reporting import (
    OverviewDrawing,
    SceneDrawing,
    data_overview,
    draw_film,
    draw_overview,
    film,
)
from turbotrain_plugin.reporting.bev import scene_figure

RANGE_M = (-20.0, -10.0, -3.0, 20.0, 10.0, 3.0)


def overview(empty: bool = False) -> OverviewDrawing:
    rng = np.random.default_rng(0)
    names = () if empty else ("Car", "Pedestrian", "Van")
    count = 0 if empty else 200
    kinds = () if empty else ("vehicle", "roadside unit")
    distance = rng.uniform(0, 90, count)
    return OverviewDrawing(
        title="made",
        classes=names,
        objects=[20, 10, 1][: len(names)],
        boxes=[400, 100, 3][: len(names)],
        speed_mps={"Car": rng.normal(8, 2, count), "Pedestrian": rng.normal(1.4, 0.2, count),
                   "Van": np.zeros(0)},
        size_m={name: rng.uniform(0.5, 5, (10, 2)) for name in names},
        range_m=dict.fromkeys(kinds, distance),
        points={kind: np.stack([distance, 900 / (1 + distance)], axis=1) for kind in kinds},
        agent_distance_m=rng.uniform(5, 80, count),
    )  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    kept: list[Figure] = []
    monkeypatch.setattr(data_overview, "save", lambda figure, _path: kept.append(figure))
    return kept


def legend_of(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_the_page_has_six_panels_with_data(figures: list[Figure]) -> None:
    draw_overview(overview(), Path("x.png"))
    (figure,) = figures
    assert len(figure.axes) == 6
    classes, speeds, sizes, ranges, points, agents = figure.axes
    assert [label.get_text() for label in classes.get_yticklabels()] == ["Car", "Pedestrian", "Van"]
    widths = [bar.get_width() for bar in classes.patches if isinstance(bar, Rectangle)]
    assert widths == [400, 100, 3]
    assert {text.get_text().strip() for text in classes.texts} == {"20", "10", "1"}
    assert legend_of(speeds) == ["Car", "Pedestrian"]
    assert len(sizes.lines) == 3
    assert legend_of(ranges) == ["by a vehicle", "by a roadside unit"]
    assert len(points.lines) == 2
    medians = points.lines[0].get_ydata()
    assert (np.diff(np.asarray(medians)) < 0).all()  # made to fall with distance
    assert "within 50 m" in agents.texts[0].get_text()


def test_nothing_to_show_says_so(figures: list[Figure]) -> None:
    draw_overview(overview(empty=True), Path("x.png"))
    for axes in figures[0].axes:
        assert [text.get_text() for text in axes.texts] == ["no data"]


def test_the_page_is_a_picture(tmp_path: Path) -> None:
    with Image.open(draw_overview(overview(), tmp_path / "deep" / "page.png")) as picture:
        assert picture.width > picture.height > 1000


def drawing(frame: int) -> SceneDrawing:
    poses = np.stack([np.eye(4), np.eye(4)])
    poses[1, 0, 3] = frame
    return SceneDrawing(
        scene="s",
        frame=frame,
        range_m=RANGE_M,
        points=[np.zeros((1, 3)), np.ones((1, 3))],
        agent_ids=[7, -1],
        agent_types=np.array([0, 1]),
        ego_SE3_agent=poses,
        by_agent=True,
    )


def test_agents_have_their_own_colours_and_names() -> None:
    figure = scene_figure(drawing(3))
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["vehicle 7 and its points", "roadside unit -1 and its points"]
    colours = {line.get_color() for line in figure.axes[0].lines if line.get_markersize() == 8}
    assert len(colours) == 2
    assert "detection" not in figure.axes[0].get_title()


def test_a_film_draws_one_scene_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings are asked for when the picture before is done: a long scene is never in memory."""
    log: list[str] = []
    picture = film._picture

    def drawn(one: SceneDrawing) -> Image.Image:
        log.append(f"draw {one.frame}")
        return picture(one)

    def drawings() -> Iterator[SceneDrawing]:
        for frame in range(3):
            log.append(f"read {frame}")
            yield drawing(frame)

    monkeypatch.setattr(film, "_picture", drawn)
    out = draw_film(drawings(), tmp_path / "new" / "x.gif", frame_s=0.2)
    assert log == [f"{what} {frame}" for frame in range(3) for what in ("read", "draw")]
    with Image.open(out) as gif:
        assert gif.n_frames == 3  # type: ignore[attr-defined]
    assert [path.name for path in out.parent.iterdir()] == ["x.gif"]


def test_a_film_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw_film([], tmp_path / "x.gif", frame_s=0.1)
    assert not list(tmp_path.iterdir())
