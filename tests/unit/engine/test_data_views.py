"""Commands that show data: pictures, films, plots and the tree, called as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.made_scenes import MadeScene, junction_scene, world_SE3_lidar, write_root
from turbotrain_plugin.cli import main
from turbotrain_plugin.data.formats import find_reader
from turbotrain_plugin.engine import data_views
from turbotrain_plugin.engine.data_views import browse
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting import SceneDrawing

SCENES = ("2023-01-01-00-00-00_1_0", "2023-01-01-00-01-00_2_0")


def made(name: str) -> MadeScene:
    return junction_scene(name, frames=5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "data", {"train": [made(name) for name in SCENES]})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[SceneDrawing]:
    """Drawings that would have become a picture."""
    asked: list[SceneDrawing] = []
    monkeypatch.setattr(data_views, "draw_scene", lambda drawing, _out: asked.append(drawing))
    return asked


def look(root: Path, **keys: object) -> int:
    wanted = {"scene": None, "frame": None, "out": None, "around_m": 50.0, "step": 1, **keys}
    return browse([root], **wanted)  # type: ignore[arg-type]


def test_a_picture_of_a_frame(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "scene.png"
    assert (
        main(["data", "browse", str(root), "--scene", "1", "--frame", "3", "--out", str(out)]) == 0
    )
    with Image.open(out) as picture:
        assert picture.width > 800
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 50
    assert f"train/{SCENES[1]}, 1 of 5 frames" in capsys.readouterr().out
    assert not (root / ".turbotrain_cache").exists()  # looks only


def test_what_the_picture_shows(root: Path, drawn: list[SceneDrawing]) -> None:
    assert look(root, frame=3) == 0
    (drawing,) = drawn
    scene = made(SCENES[0])
    assert (drawing.scene, drawing.frame, drawing.by_agent) == (SCENES[0], 3, True)
    assert list(drawing.agent_ids) == [1, 2, -1, -2]
    assert drawing.agent_types.tolist() == [0, 0, 1, 1]
    assert len(drawing.boxes) == 4  # the union: one object is labelled by -1 alone
    assert len(drawing.lanes) == 9
    # One shift for everything: agents, points, boxes and lanes keep their places to each other.
    world = np.stack([world_SE3_lidar(agent, 3) for agent in scene.agents])
    shift = world[:, :3, 3] - drawing.ego_SE3_agent[:, :3, 3]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-9)
    ground = drawing.points[0][-121:, :3] + shift[0]
    np.testing.assert_allclose(ground[:, 2], 0.0, atol=1e-4)
    assert any(np.allclose(box[:3] + shift[0], (15.0, -8.0 + 1.8, 0.8)) for box in drawing.boxes)
    np.testing.assert_allclose(drawing.lanes[0][:, 1] + shift[0, 1], 0.0, atol=1e-9)


def test_the_middle_frame_and_the_first_scene_by_default(
    root: Path, drawn: list[SceneDrawing], capsys: pytest.CaptureFixture[str]
) -> None:
    look(root)
    assert (drawn[0].scene, drawn[0].frame) == (SCENES[0], 2)
    assert f"{SCENES[0]}_000002.png" in capsys.readouterr().out


def test_the_view_reaches_around_the_agents(root: Path, drawn: list[SceneDrawing]) -> None:
    for around_m in (20.0, 60.0):
        look(root, around_m=around_m)
    near, far = (np.array(drawing.range_m) for drawing in drawn)
    np.testing.assert_allclose(far[3:5] - near[3:5], 40.0)
    for drawing in drawn:
        places = drawing.ego_SE3_agent[:, :2, 3]
        assert (np.abs(places) <= np.array(drawing.range_m[3:5]) - 19.0).all()


def test_a_film_of_a_scene(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "scene.gif"
    line = ["data", "browse", str(root), "--scene", SCENES[0], "--step", "2", "--around", "20"]
    assert main([*line, "--out", str(out)]) == 0
    with Image.open(out) as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.info["duration"] == 200
        assert film.info["loop"] == 0
        first = np.asarray(film.convert("RGB")).copy()
        film.seek(2)
        assert (np.asarray(film.convert("RGB")) != first).any()
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["scene.gif"]


def test_a_film_from_a_frame_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []

    def film(drawings: object, out: Path, *, frame_s: float) -> Path:
        frames.extend(one.frame for one in drawings)  # type: ignore[attr-defined]
        assert frame_s == pytest.approx(0.1)
        return out

    monkeypatch.setattr(data_views, "draw_film", film)
    look(root, frame=2, out=Path("x.gif"))
    assert frames == [2, 3, 4]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"scene": "2023-01-01-00-01-00"}, f"Did you mean {SCENES[1]}?"),
        ({"scene": "2"}, "among the 2 scenes"),
        ({"frame": 77}, "has no frame 77. It has 5 frames from 0 to 4"),
        ({"out": Path("x.jpg")}, "pictures are .png or .gif files. Found .jpg"),
        ({"out": Path("x")}, "Found neither"),
        ({"step": 0}, "--step must be at least 1"),
        ({"around_m": 0.0}, "--around must be"),
    ],
)
def test_what_cannot_be_drawn(root: Path, keys: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as error:
        look(root, **keys)
    assert words in str(error.value)


def test_a_damaged_cloud_is_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train" / SCENES[0] / "1" / "000002.bin").write_bytes(b"123")
    out = tmp_path / "x.png"
    assert main(["data", "browse", str(root), "--out", str(out)]) == 2
    assert "000002.bin: truncated" in capsys.readouterr().err
    assert not out.exists()


def test_missing_roots_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("verify", "stats", "browse", "tree"):
        assert main(["data", action, "surely-not-there"]) == 2
        said = capsys.readouterr().err
        assert "surely-not-there: no such folder" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("action", ["verify", "stats", "browse", "tree"])
def test_the_parent_of_a_root_names_it(
    root: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", action, str(root.parent)]) == 2
    assert f"this looks like the parent of a root. Give {root}" in capsys.readouterr().err


def test_agents_without_the_frame_are_left_out(root: Path, drawn: list[SceneDrawing]) -> None:
    (root / "train" / SCENES[0] / "2" / "000002.bin").unlink()
    look(root)
    assert list(drawn[0].agent_ids) == [1, -1, -2]


def test_a_root_without_map_has_no_lanes(tmp_path: Path, drawn: list[SceneDrawing]) -> None:
    look(write_root(tmp_path, {"train": [made(SCENES[0])]}, with_map=False))
    assert drawn[0].lanes == []
    assert find_reader([tmp_path]).has_maps


def test_the_tree(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "tree.json"
    assert main(["data", "tree", str(root), "--json", str(report), "--scenes", "1"]) == 0
    said = capsys.readouterr().out
    assert "train/  2 scenes, 40 agent frames" in said
    assert "... and 1 more scenes" in said
    assert json.loads(report.read_text())["missing"] == ["validate/", "test/"]


def test_plots_of_statistics(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats.png"
    assert main(["data", "stats", str(root), "--plots", str(out), "--stride", "2"]) == 0
    with Image.open(out) as picture:
        assert picture.width > 1500
    assert f"plots: {out}" in capsys.readouterr().out
    assert main(["data", "stats", str(root), "--plots", "x.pdf"]) == 2
    assert "must name a .png file" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["verify", "stats"])
def test_a_stride_below_one(root: Path, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", action, str(root), "--stride", "0"]) == 2
    assert "--stride must be at least 1" in capsys.readouterr().err


def test_how_many_clouds_are_read(root: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    for options, clouds in ((["--stride", "3"], 2), (["--all"], 5), ([], 1)):
        main(["data", "verify", str(root), "--json", str(report), *options])
        assert json.loads(report.read_text())["clouds_read"] == clouds * 4 * 2


def test_exit_codes_of_verify(tmp_path: Path) -> None:
    """0: nothing or notes; 0 with warnings, 1 with --strict; 1 with errors."""
    root = write_root(tmp_path, {"train": [made(SCENES[0])]}, with_map=False)
    line = ["data", "verify", str(root)]
    assert main(line) == main([*line, "--strict"]) == 0  # a note: there is no map
    (root / "train" / SCENES[0] / "1" / "000002.bin").unlink()
    assert main(line) == 0
    assert main([*line, "--strict"]) == 1
    (root / "train" / SCENES[0] / "2" / "000002.yaml").write_text("")
    assert main(line) == 1
