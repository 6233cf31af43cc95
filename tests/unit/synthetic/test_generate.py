"""Whole data sets: same bytes for a seed, foreign folders refused, interrupted runs finished."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import (
    PRESETS,
    SPEC_VERSION,
    Preset,
    SensorModel,
    ensure_dataset,
    generate,
    is_complete,
)

QUICK = Preset(
    name="quick",
    scenes=(1, 1, 0),
    frames=6,
    vehicle=SensorModel((-8.0, -4.0, -1.0), 120, 60.0),
    roadside=SensorModel((-15.0, -8.0, -4.0), 90, 60.0),
    cloud_stride=5,
    label_stride=5,
)


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def calls() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int, str]]) -> Path:
    return generate(
        QUICK,
        tmp_path_factory.mktemp("quick") / "root",
        seed=1,
        workers=1,
        progress=lambda *call: calls.append(call),
    )


def test_progress(quick: Path, calls: list[tuple[int, int, str]]) -> None:
    train, val = (next((quick / split).iterdir()).name for split in ("train", "val"))
    assert calls == [(1, 2, f"train/{train}"), (2, 2, f"val/{val}")]


def test_same_seed_same_bytes_for_any_number_of_workers(quick: Path, tmp_path: Path) -> None:
    again = generate(QUICK, tmp_path / "again", seed=1, workers=2)
    assert digest(again) == digest(quick)
    assert len(digest(quick)) > 15


def test_another_seed_gives_other_scenes_and_ground(quick: Path, tmp_path: Path) -> None:
    other = digest(generate(replace(QUICK, scenes=(1, 0, 0)), tmp_path / "o", seed=2, workers=1))
    first = digest(quick)
    map_name = "map/v2x_intersection_vector_map.pkl"
    assert other[map_name] != first[map_name]
    clouds = [name for name in other if name.endswith(".bin") and name in first]
    assert clouds
    assert all(other[name] != first[name] for name in clouds)


def test_scenes_differ_from_one_another(quick: Path) -> None:
    content = digest(quick)
    clouds = [value for name, value in content.items() if name.endswith(".bin")]
    assert len(set(clouds)) == len(clouds)


def test_a_scene_does_not_depend_on_the_number_of_scenes(quick: Path, tmp_path: Path) -> None:
    one = digest(generate(replace(QUICK, scenes=(1, 0, 0)), tmp_path / "one", seed=1, workers=1))
    first = digest(quick)
    shared = [name for name in one if name.startswith("train/")]
    assert shared
    assert all(one[name] == first[name] for name in shared)


def test_resume_keeps_complete_scenes(quick: Path, tmp_path: Path) -> None:
    root = generate(QUICK, tmp_path / "r", seed=1, workers=1)
    (kept,), (lost,) = ((root / split).iterdir() for split in ("train", "val"))
    stamp = kept.stat().st_mtime_ns
    (lost / "synthetic_meta.json").unlink()  # as if the scene had never been moved into place
    (root / ".partial" / "val-left-over").mkdir(parents=True)
    marker = json.loads((root / "synthetic.json").read_text())
    (root / "synthetic.json").write_text(json.dumps({**marker, "complete": False}))
    assert not is_complete(root)
    names: list[str] = []
    generate(
        QUICK,
        root,
        seed=1,
        workers=1,
        resume=True,
        progress=lambda *call: names.append(call[2]),
    )
    assert names == [f"val/{lost.name}"]
    assert kept.stat().st_mtime_ns == stamp
    assert digest(root) == digest(quick)
    assert is_complete(root)


def test_an_interrupted_scene_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(plan: object, preset: object, seed: object, folder: Path, head: object) -> None:
        del plan, preset, seed, head
        (folder / "1").mkdir(parents=True)
        raise KeyboardInterrupt

    module = importlib.import_module("turbotrain_plugin.synthetic.generate")
    monkeypatch.setattr(module, "render_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(QUICK, tmp_path / "i", seed=1, workers=1)
    assert not list((tmp_path / "i").glob("train/*"))
    assert not is_complete(tmp_path / "i")
    monkeypatch.undo()
    assert is_complete(generate(QUICK, tmp_path / "i", seed=1, workers=1, resume=True))
    assert not (tmp_path / "i" / ".partial").exists()


def test_without_resume_all_is_built_anew(quick: Path, tmp_path: Path) -> None:
    root = generate(QUICK, tmp_path / "n", seed=1, workers=1)
    victim = next((root / "train").rglob("*.bin"))
    victim.write_bytes(b"")
    generate(QUICK, root, seed=1, workers=1)
    assert digest(root) == digest(quick)


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="is not empty and was not made by the generator"):
        generate(QUICK, tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="is a file"):
        generate(QUICK, tmp_path / "precious.txt", seed=1)


@pytest.mark.parametrize("resume", [False, True])
def test_other_synthetic_data_are_refused(quick: Path, resume: bool) -> None:
    before = digest(quick)
    with pytest.raises(UserError, match="holds synthetic data with another seed"):
        generate(QUICK, quick, seed=5, resume=resume)
    with pytest.raises(UserError, match="another preset_digest"):
        generate(replace(QUICK, frames=7), quick, seed=1, resume=resume)
    assert digest(quick) == before


def test_unknown_preset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no preset 'huge'; choose one of tiny, small, bench"):
        generate("huge", tmp_path / "x", seed=0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cloud_stride": 3, "label_stride": 2}, "multiple of `label_stride`"),
        ({"cloud_stride": 0}, "multiple of `label_stride`"),
        ({"frames": 0}, "Found 0"),
        ({"scenes": (1, -1, 0)}, "should be positive"),
    ],
)
def test_impossible_presets(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["small"], **change)  # type: ignore[arg-type]


def test_presets_have_whole_windows() -> None:
    """Five frames of history and six of future fit in, on the 2 Hz grid."""
    for name in ("tiny", "small", "bench"):
        preset = PRESETS[name]
        assert preset.name == name
        assert preset.frames > 50
        assert preset.frames % 5 == 1
        assert 5 % preset.label_stride == 0
        assert min(preset.scenes) >= 1
        for sensor in (preset.vehicle, preset.roadside):
            assert sensor.elevations_deg == tuple(sorted(sensor.elevations_deg))


def test_layouts_of_presets() -> None:
    """The demo stays at the junction; the larger ones have both, with both in training."""
    assert PRESETS["tiny"].layouts == ("junction",)
    for name in ("small", "bench"):
        preset = PRESETS[name]
        train = [preset.layout_of(number) for number in range(preset.scenes[0])]
        assert set(train) == {"junction", "corridor"}
        assert train.count("corridor") == len(train) // 4


def test_cache_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "quick", replace(QUICK, scenes=(1, 0, 0)))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    root = ensure_dataset("quick", 3, tmp_path)
    assert root.parent == tmp_path
    assert root.name.startswith(f"quick-3-v{SPEC_VERSION}-")
    assert is_complete(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert ensure_dataset("quick", 3, tmp_path) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOTRAIN_CACHE", str(tmp_path / "mine"))
    monkeypatch.setitem(PRESETS, "quick", replace(QUICK, scenes=(1, 0, 0)))
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    root = ensure_dataset("quick")
    assert root.parent == tmp_path / "mine" / "synthetic"


def test_cache_does_not_outlive_its_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preset that has changed under its old name makes its own data, and says so."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setitem(PRESETS, "quick", replace(QUICK, scenes=(1, 0, 0)))
    old = ensure_dataset("quick", 3, tmp_path)
    monkeypatch.setitem(PRESETS, "quick", replace(QUICK, scenes=(2, 0, 0)))
    seen: list[tuple[int, int]] = []
    new = ensure_dataset("quick", 3, tmp_path, progress=lambda i, n, _: seen.append((i, n)))
    assert (len(list((old / "train").iterdir())), len(list((new / "train").iterdir()))) == (1, 2)
    assert seen == [(1, 2), (2, 2)]


TWO_AT_ONCE = """
import os, sys
from dataclasses import replace
from pathlib import Path
from turbotrain_plugin.synthetic import PRESETS, Preset, SensorModel, ensure_dataset
model = SensorModel((-8.0, -4.0, -1.0), 120, 60.0)
PRESETS["quick"] = Preset("quick", (1, 0, 0), 6, model, model, 5, 5)
os.cpu_count = lambda: 1
ensure_dataset("quick", 1, Path(sys.argv[1]))
"""


def test_two_processes_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO_AT_ONCE]
    both = [subprocess.Popen([*command, str(tmp_path / "shared")]) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    model = SensorModel((-8.0, -4.0, -1.0), 120, 60.0)
    preset = Preset("quick", (1, 0, 0), 6, model, model, 5, 5)
    alone = generate(preset, tmp_path / "alone", seed=1, workers=1)
    (made,) = (path for path in (tmp_path / "shared").iterdir() if path.is_dir())
    assert digest(made) == digest(alone)
