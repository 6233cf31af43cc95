"""``opencood data synth``: what its options do to the files."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.recordings import Recording
from turbotrain_plugin.cli import main
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import PRESETS, REAL_NOISE, LabelNoise, Preset, SensorModel

SENSOR = SensorModel((-12.0, -6.0, -2.0), 180, 60.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A preset that is made in a second, under a name that the command knows."""
    preset = Preset("quick", (1, 0, 0), 11, SENSOR, SENSOR, layouts=("corridor",))
    monkeypatch.setitem(PRESETS, "quick", preset)
    return preset


def synth(out: Path, *options: str) -> Recording:
    command = ["data", "synth", "--preset", "quick", "--out", str(out), "--workers", "1", *options]
    assert main(command) == 0
    (folder,) = (out / "train").iterdir()
    return Recording(folder)


def test_clouds_at_every_fifth_frame_labels_at_all(tmp_path: Path) -> None:
    every = synth(tmp_path / "a")
    fifth = synth(tmp_path / "b", "--cloud-stride", "5")
    for agent in (1, 2):
        labels = {path.name for path in (every.folder / str(agent)).glob("*.yaml")}
        assert labels == {path.name for path in (fifth.folder / str(agent)).glob("*.yaml")}
        assert set(fifth.frames(agent)) == {f for f in every.frames(agent) if f % 5 == 0}
        for frame in fifth.frames(agent):
            name = f"{agent}/{frame:06d}.bin"
            assert (fifth.folder / name).read_bytes() == (every.folder / name).read_bytes()


@pytest.mark.parametrize(("preset", "stride"), [("quick", "0"), ("quick", "-5"), ("tiny", "3")])
def test_a_stride_that_does_not_fit_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str, stride: str
) -> None:
    out = ["--preset", preset, "--out", str(tmp_path / "x"), "--cloud-stride", stride]
    assert main(["data", "synth", *out]) != 0
    assert f"Found {stride}" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_noise_changes_labels_and_not_the_scene(tmp_path: Path) -> None:
    clean = synth(tmp_path / "a")
    noisy = synth(tmp_path / "b", "--noise", "jitter_standing_m=0.5,nan_share=0.2")
    assert noisy.meta["objects"] == clean.meta["objects"]
    frame = clean.frames(1)[0]
    before, after = (r.label(1, frame)["vehicles"] for r in (clean, noisy))
    assert set(before) == set(after)
    moved = [
        np.linalg.norm(np.subtract(after[n]["location"], before[n]["location"])) for n in before
    ]
    assert np.mean(moved) > 0.1
    one, other = clean.view(1, frame).points, noisy.view(1, frame).points
    assert np.isfinite(one).all()
    lost = np.isnan(other[:, :3]).all(axis=1)
    assert 0.1 < lost.mean() < 0.3
    np.testing.assert_array_equal(other[~lost], one[~lost])


def test_another_noise_is_another_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synth(tmp_path / "a")
    again = ["data", "synth", "--preset", "quick", "--out", str(tmp_path / "a"), "--resume"]
    assert main([*again, "--noise", "real"]) != 0
    assert "another preset_digest" in capsys.readouterr().err


def test_help_names_every_flaw(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "synth", "--help"])
    text = capsys.readouterr().out
    for option in ("--tracks", "--cloud-stride", "--noise", "--resume", "--workers", "--seed"):
        assert option in text
    for field in fields(LabelNoise):
        assert field.name in text


# -------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("real", REAL_NOISE),
        ("flip_share=0.02", LabelNoise(flip_share=0.02)),
        ("flip_share=0.02, nan_share=1", LabelNoise(flip_share=0.02, nan_share=1.0)),
        ("real,staircase_share=0", replace(REAL_NOISE, staircase_share=0.0)),
    ],
)
def test_noise_as_text(text: str, expected: LabelNoise) -> None:
    assert LabelNoise.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some", "noise 'some' is unknown; write 'real', or KEY=VALUE with one of jitter_standing"),
        ("", "noise '' is unknown"),
        ("flips=0.1", "noise 'flips=0.1' is unknown"),
        ("flip_share=0.1,real", "noise 'real' is unknown"),
        ("flip_share=much", "noise 'flip_share=much' should give a number"),
        ("flip_share=1.5", r"`flip_share` should be a finite number >= 0 and <= 1. Found 1.5"),
        ("jitter_moving_m=-1", r"`jitter_moving_m` should be a finite number >= 0. Found -1"),
        ("jitter_moving_m=nan", "Found nan"),
        ("jitter_moving_m=inf", "Found inf"),
    ],
)
def test_wrong_noise_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelNoise.parse(text)


def test_real_noise_has_every_flaw() -> None:
    assert all(getattr(REAL_NOISE, field.name) > 0 for field in fields(LabelNoise))
    assert all(getattr(LabelNoise(), field.name) == 0 for field in fields(LabelNoise))
