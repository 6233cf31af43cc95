"""The data commands on a hand-written root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.made_scenes import junction_scene, write_root
from turbotrain_plugin.engine import data_tools
from turbotrain_plugin.engine.data_tools import stats, synthesise, verify
from turbotrain_plugin.engine.records import Steps
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import PRESETS

SCENE = "2023-03-17-15-53-02_1_0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "data", {"train": [junction_scene(SCENE, frames=4)]})


def test_a_damaged_cloud_is_found_and_changes_the_exit_code(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify([root], None)
    clean = capsys.readouterr().out
    cloud = root / "train" / SCENE / "1" / "000002.bin"
    cloud.write_bytes(cloud.read_bytes()[:-5])
    assert verify([root], tmp_path / "report.json") == 1
    assert "000002.bin" not in clean
    written = json.loads((tmp_path / "report.json").read_text())
    errors = [finding for finding in written["findings"] if finding["severity"] == "error"]
    assert any(f["agent"] == 1 and f["frame"] == 2 for f in errors), written["findings"]
    assert SCENE in capsys.readouterr().out


def test_statistics(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats([root], tmp_path / "stats.json") == 0
    assert "Car" in capsys.readouterr().out
    assert json.loads((tmp_path / "stats.json").read_text())


def test_a_report_into_a_missing_folder_is_one_sentence(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none/stats\.json: cannot be written"):
        stats([root], tmp_path / "none" / "stats.json")


def test_a_missing_root() -> None:
    with pytest.raises(UserError):
        verify([Path("surely-not-there")], None)


def test_an_unknown_preset_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--preset must be one of tiny.* Found 'nope'"):
        synthesise("nope", tmp_path / "out", seed=0, workers=1, tracks=None, resume=False)
    assert not (tmp_path / "out").exists()


def test_scenes_are_made_where_and_how_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, object] = {}

    def generate(preset: str, out: Path, **keys: object) -> Path:
        asked.update(preset=preset, out=out, **keys)
        progress = keys["progress"]
        assert isinstance(progress, Steps)
        progress(1, 2, "scene a")
        progress(2, 2, "scene b")
        return out

    monkeypatch.setattr(data_tools, "generate", generate)
    tracks = tmp_path / "tracks.csv"
    assert synthesise("tiny", tmp_path, seed=4, workers=3, tracks=tracks, resume=True) == 0
    del asked["progress"]
    assert asked == {
        "preset": PRESETS["tiny"],
        "out": tmp_path,
        "seed": 4,
        "workers": 3,
        "tracks": tracks,
        "resume": True,
    }
    assert f"opencood data stats {tmp_path}" in capsys.readouterr().out
