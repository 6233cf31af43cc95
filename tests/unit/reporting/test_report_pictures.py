"""Pictures of scenes and reconstructions: what the figures hold, and what their pixels show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy.typing import NDArray

from tests.helpers.caught_figures import catch_figures
from turbotrain_plugin.reporting import (
    ReconstructionDrawing,
    SceneDrawing,
    bev,
    draw_reconstruction,
    draw_scene,
    reconstruction,
    style,
)
from turbotrain_plugin.reporting.style import BLACK, BLUE, GREEN, PURPLE, SKY, VERMILION

RANGE = (-40.0, -20.0, -3.0, 40.0, 20.0, 1.0)
CAR = [0.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0]


def _at(x: float, y: float, yaw: float = 0.0) -> list[float]:
    return [x, y, *CAR[2:6], yaw]


def _agents(count: int, types: list[int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    poses = np.stack([np.eye(4)] * count)
    poses[:, 0, 3] = 12.0 * np.arange(count)
    return {
        "points": [rng.uniform(-18, 18, (2000, 4)).astype(np.float32) for _ in range(count)],
        "agent_ids": tuple(range(1, count + 1)),
        "agent_types": np.array(types),
        "ego_SE3_agent": poses,
    }


def _full() -> SceneDrawing:
    boxes = np.array([_at(-10, 5), _at(20, -5, 1.0)])
    steps = np.arange(1, 7)[None, :, None] * [1.0, 0.3]
    return SceneDrawing(
        scene="scene_7",
        frame=45,
        range_m=RANGE,
        **_agents(3, [0, 0, 1]),
        lanes=[np.array([[-40.0, 0, 0], [40, 1, 0]]), np.zeros((1, 3))],
        boxes=boxes,
        past=boxes[:, None, :2] - steps[:, ::-1],
        past_valid=np.array([[True] * 6, [False] * 6]),
        futures=boxes[:, None, :2] + steps,
        future_valid=np.array([[True] * 6, [True, False] * 3]),
        detections=np.array([_at(-10.2, 5.1), _at(-30, -10), _at(30, 15, 2.0)]),
        scores=np.array([0.9, 0.3, 0.6]),
        trajectories=np.array([_at(-10.2, 5.1), _at(-30, -10), _at(30, 15)])[:, None, :2] + steps,
    )


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", 60)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return the figures that were drawn, instead of writing them."""
    return catch_figures(monkeypatch, bev, reconstruction)


def _colours(path: Path) -> set[tuple[int, ...]]:
    pixels = (imread(path)[..., :3] * 255).round().astype(int)
    codes, counts = np.unique(pixels @ [1 << 16, 1 << 8, 1], return_counts=True)
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes[counts > 5].tolist()}


def _rgb(name: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(name))


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_full_scene_is_written(tmp_path: Path) -> None:
    path = tmp_path / "vis" / "scene.png"
    assert draw_scene(_full(), path) == path
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays
    drawn = _colours(path)
    for colour in (BLACK, BLUE, VERMILION, SKY, GREEN, PURPLE):
        assert _rgb(colour) in drawn


def test_colours_tell_what_is_missing(tmp_path: Path) -> None:
    scene = SceneDrawing(scene="s", frame=0, range_m=RANGE, boxes=np.array([CAR]))
    drawn = _colours(draw_scene(scene, tmp_path / "a.png"))
    assert not {_rgb(colour) for colour in (VERMILION, SKY, GREEN, PURPLE, BLUE)} & drawn


def test_axes_are_metres_with_equal_aspect(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    (axes,) = figures[0].axes
    assert axes.get_aspect() == 1.0
    assert axes.get_xlim() == (-40, 40)
    assert axes.get_ylim() == (-20, 20)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [m]", "y [m]")
    window = axes.get_window_extent()
    assert window.width / window.height == pytest.approx(2.0, rel=0.01)


def test_title_names_scene_frame_and_counts(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    title = figures[0].axes[0].get_title()
    assert title == "scene_7, frame 45: 3 agents, 6,000 points, 2 objects, 3 detections"
    draw_scene(
        SceneDrawing(scene="s", frame=0, range_m=RANGE, boxes=np.array([CAR])), Path("unused")
    )
    assert (
        figures[1].axes[0].get_title() == "s, frame 0: 0 agents, 0 points, 1 object, 0 detections"
    )


def test_legend_holds_what_is_drawn_and_only_that(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    assert _legend(figures[0]) == [
        "ego and its points",
        "other vehicle and its points",
        "roadside unit and its points",
        "lanes",
        "object",
        "its past",
        "its future",
        "detection with score",
        "predicted future",
    ]
    scene = SceneDrawing(scene="s", frame=0, range_m=RANGE, **_agents(1, [1]))
    draw_scene(scene, Path("unused"))
    assert _legend(figures[1]) == ["ego and its points"]
    draw_scene(SceneDrawing(scene="s", frame=0, range_m=RANGE), Path("unused"))
    assert _legend(figures[2]) == []


def test_nothing_of_the_legend_lies_over_the_scene(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    legend = figures[0].legends[0].get_window_extent()
    axes = figures[0].axes[0].get_tightbbox()
    assert axes is not None
    assert legend.y1 <= axes.y0


def test_invalid_steps_are_not_drawn(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    lines = [
        segment
        for collection in figures[0].axes[0].collections
        if hasattr(collection, "get_segments")
        for segment in collection.get_segments()
    ]
    by_length = sorted(len(line) for line in lines if len(line) > 2)
    # Past of the first object 6; futures with the centre in front 7 and 4; predictions 7 each.
    assert by_length == [4, 6, 7, 7, 7, 7]


def test_scores_are_written_where_there_is_room(figures: list[Figure]) -> None:
    detections = np.array([_at(0, 10), _at(0.5, 10), _at(20, 10), _at(12, 0.2)])
    scene = SceneDrawing(
        scene="s",
        frame=0,
        range_m=RANGE,
        **_agents(2, [0, 0]),
        detections=detections,
        scores=np.array([0.5, 0.8, 0.3, 0.9]),
    )
    draw_scene(scene, Path("unused"))
    # 0.5 is too near to the better 0.8, and 0.9 lies under the label of agent 2.
    assert sorted(_texts(figures[0].axes[0])) == ["0.30", "0.80", "1", "2"]


def test_weak_detections_are_paler(figures: list[Figure]) -> None:
    draw_scene(_full(), Path("unused"))
    edges = next(
        collection.get_edgecolor()
        for collection in figures[0].axes[0].collections
        if np.asarray(collection.get_edgecolor()).shape == (3, 4)
    )
    alphas = np.asarray(edges)[:, 3]
    assert alphas[0] > alphas[2] > alphas[1] > 0.3


@pytest.mark.parametrize("steps", [0, 6])
def test_empty_frames(tmp_path: Path, steps: int) -> None:
    none = np.zeros((0, steps, 2))
    scene = SceneDrawing(
        scene="empty",
        frame=0,
        range_m=RANGE,
        points=[np.zeros((0, 3))],
        agent_ids=(1,),
        agent_types=np.zeros(1),
        ego_SE3_agent=np.eye(4)[None],
        past=none,
        futures=none,
        trajectories=none,
    )
    assert draw_scene(scene, tmp_path / "empty.png").stat().st_size > 1000


def test_predictions_of_no_steps(tmp_path: Path) -> None:
    scene = SceneDrawing(
        scene="s",
        frame=0,
        range_m=RANGE,
        detections=np.array([CAR]),
        scores=np.ones(1),
        trajectories=np.zeros((1, 0, 2)),
    )
    draw_scene(scene, tmp_path / "a.png")


@pytest.mark.parametrize("range_m", [(-5, -100, -3, 5, 100, 1), (-200, -5, -3, 200, 5, 1)])
def test_long_thin_ranges_stay_pictures(tmp_path: Path, range_m: tuple[float, ...]) -> None:
    scene = SceneDrawing(scene="s", frame=0, range_m=range_m, boxes=np.array([CAR]))
    height, width = imread(draw_scene(scene, tmp_path / "a.png")).shape[:2]
    assert 50 < height < 1000
    assert 50 < width < 1000


def _refused(**changes: Any) -> None:  # noqa: ANN401
    SceneDrawing(scene="s", frame=0, range_m=RANGE, **changes)


def test_refuses_arrays_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"must have one entry per agent. Found 1, 0, 0 and 0"):
        _refused(points=[np.zeros((2, 3))])
    with pytest.raises(ValueError, match=r"`scores` must have one entry per detection"):
        _refused(detections=np.array([CAR]))
    with pytest.raises(ValueError, match=r"`futures` must have shape \(1, steps, 2\)"):
        _refused(boxes=np.array([CAR]), futures=np.zeros((2, 6, 2)))
    with pytest.raises(ValueError, match=r"`past` must have shape \(1, steps, 2\)"):
        _refused(boxes=np.array([CAR]), past=np.zeros((1, 2)))


def _made_reconstruction(**changes: Any) -> ReconstructionDrawing:  # noqa: ANN401
    rng = np.random.default_rng(1)
    points: NDArray[np.float64] = rng.uniform(-20, 20, (900, 3))
    parts = {
        "visible": points[:300],
        "target": points,
        "rebuilt": points[::2] + 0.1,
        "mask": rng.integers(0, 4, size=(20, 40)),
        "occupied": rng.uniform(size=(20, 40)) < 0.25,
        "occupancy": rng.uniform(size=(20, 40)),
    }
    return ReconstructionDrawing(scene="s", frame=3, range_m=RANGE, **(parts | changes))


def _made_mask() -> NDArray[np.int64]:
    mask: NDArray[np.int64] | None = _made_reconstruction().mask
    assert mask is not None
    return mask


def _made_occupied() -> NDArray[np.bool_]:
    occupied: NDArray[np.bool_] | None = _made_reconstruction().occupied
    assert occupied is not None
    return occupied


def _panels(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_reconstruction_panels(figures: list[Figure]) -> None:
    draw_reconstruction(_made_reconstruction(), Path("unused"))
    assert _panels(figures[0]) == [
        "input, left after masking: 300 points",
        f"mask: {int((_made_mask() > 0).sum())} columns with points",
        "target: 900 points",
        "rebuilt: 450 points",
        f"cells with points: {int(_made_occupied().sum())}",
        "probability of occupancy",
    ]
    grounds = [axes for axes in figures[0].axes if axes.get_title()]
    assert all(axes.get_aspect() == 1.0 for axes in grounds)
    sizes = {tuple(np.round(axes.get_window_extent().size)) for axes in grounds}
    assert len(sizes) == 1


def test_occupancy_rows_run_upwards(figures: list[Figure]) -> None:
    occupancy = np.zeros((20, 40))
    occupancy[0] = 0.5  # the row of the smallest y
    draw_reconstruction(_made_reconstruction(occupancy=occupancy), Path("unused"))
    image = [axes.images[0] for axes in figures[0].axes if axes.images][-1]
    assert image.origin == "lower"
    assert list(image.get_extent()) == [-40, 40, -20, 20]
    assert image.get_clim() == (0, 1)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"rebuilt": None}, 5),
        ({"occupancy": None, "occupied": None}, 4),
        ({"rebuilt": None, "occupancy": None, "occupied": None}, 3),
        ({"mask": None}, 5),
    ],
)
def test_heads_that_are_off_have_no_panel(
    figures: list[Figure], changes: dict[str, Any], count: int
) -> None:
    draw_reconstruction(_made_reconstruction(**changes), Path("unused"))
    assert len(_panels(figures[0])) == count


def test_mask_rows_run_upwards_and_states_are_counted(figures: list[Figure]) -> None:
    mask = np.zeros((20, 40), int)
    mask[0, :3] = 1, 2, 3
    mask[1, 0] = 3
    draw_reconstruction(_made_reconstruction(mask=mask), Path("unused"))
    axes = next(axes for axes in figures[0].axes if axes.get_title().startswith("mask"))
    image = axes.images[0]
    assert image.origin == "lower"
    assert image.get_clim() == (0, 3)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "seen: 1", "hidden from some agents: 1", "hidden from all: 2"
    ]  # fmt: skip


@pytest.mark.parametrize("mask", [np.full((2, 2), 4), np.zeros(4), np.full((2, 2), -1)])
def test_refuses_masks_of_unknown_states(mask: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="`mask` must hold 0 to 3"):
        _made_reconstruction(mask=mask)


def test_reconstruction_of_nothing(tmp_path: Path) -> None:
    none = np.zeros((0, 3))
    drawing = _made_reconstruction(visible=none, target=none, rebuilt=none)
    assert draw_reconstruction(drawing, tmp_path / "a.png").is_file()


@pytest.mark.parametrize("occupancy", [np.full((2, 2), 1.5), np.zeros(4), np.full((2, 2), np.nan)])
def test_refuses_occupancy_that_is_no_probability(occupancy: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="`occupancy` must hold probabilities"):
        _made_reconstruction(occupancy=occupancy)


def test_drawing_loads_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from turbotrain_plugin.reporting import *; "
        "draw_scene(SceneDrawing(scene='s', frame=0, range_m=(-1, -1, -1, 1, 1, 1)), "
        f"Path({str(tmp_path / 'a.png')!r})); "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {"MPLBACKEND": "tkagg", "PATH": ""}  # a backend that needs a display
    finished = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path.cwd(), check=False
    )
    assert finished.returncode == 0
