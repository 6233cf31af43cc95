"""`evaluate --sweep`: every value of a disturbance with the weights loaded once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import RunConfig, WildSetting
from turbotrain_plugin.engine import sweep as sweep_module
from turbotrain_plugin.engine.evaluate import evaluate_run
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.sweep import AXES, Sweep, sweep_run
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.errors import UserError

CPU = torch.device("cpu")
ALL = ["postprocess.target_args.score_threshold=0.0", "turbotrain.evaluation.pictures=0"]
"""A network that has hardly learnt anything finds something, too."""


def trained(folder: Path, fusion: str) -> Path:
    keys = [
        "turbotrain.strategy=one_time",
        "train_params.epoches=1",
        "train_params.eval_freq=0",
        "turbotrain.data.sample_stride=4",
        f"model.args.fusion.core_method={fusion}",
    ]
    config = tiny_config(folder, keys)
    run = make_run_folder(config)
    Trainer(config, run, CPU).run(resume=False)
    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("attfuse"), "attfuse")


# ------------------------------------------------------------------------------------------ parsing


def test_sweeps_are_read() -> None:
    assert Sweep.parse("latency=0,100,2e2") == Sweep("latency", (0.0, 100.0, 200.0))
    assert Sweep.parse("drop_out=0.5,0.5,0").values == (0.5, 0.0)


@pytest.mark.parametrize(
    "text", ["lag=0,1", "latency", "latency=", "latency=1,,2", "xyz_std=a", "xyz_std=nan", "=1"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--sweep"):
        Sweep.parse(text)


def test_impossible_values_are_refused_before_anything_is_computed(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "evaluate_network", pytest.fail)
    for wrong in ("drop_out=0,2", "latency=-100", "xyz_std=0,-1"):
        with pytest.raises(UserError, match=r"drop_out|async_overhead|xyz_std"):
            sweep_run(run_folder, ["latency=0", wrong], device=CPU, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------- axes


def test_an_axis_changes_nothing_but_itself() -> None:
    off = RunConfig(wild_setting=WildSetting(xyz_std=0.2, ryp_std=0.2, seed=9))
    assert AXES["xyz_std"].disturb(off, 0.4).wild_setting == WildSetting(
        loc_err=True, xyz_std=0.4, ryp_std=0.0, seed=9
    )
    assert AXES["ryp_std"].disturb(off, 0.4).wild_setting == WildSetting(
        loc_err=True, xyz_std=0.0, ryp_std=0.4, seed=9
    )
    on = RunConfig(wild_setting=WildSetting(loc_err=True, xyz_std=0.2, ryp_std=0.3))
    assert AXES["xyz_std"].disturb(on, 0.4).wild_setting.ryp_std == 0.3
    late = AXES["latency"].disturb(on, 300.0)
    assert late.wild_setting == WildSetting(
        async_=True, async_overhead=300.0, loc_err=True, xyz_std=0.2, ryp_std=0.3
    )
    lossy = AXES["drop_out"].disturb(on, 0.5)
    assert (lossy.wild_setting, lossy.turbotrain.data.drop_out) == (on.wild_setting, 0.5)


# ---------------------------------------------------------------------------------------- the sweep


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("detection", "prediction", "end_to_end")}


def test_every_value_is_measured_and_written(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["latency=0,100,400", "xyz_std=0,3", "ryp_std=20", "drop_out=0,1"]
    document = sweep_run(run_folder, asked, device=CPU, out=out, overrides=ALL)
    assert json.loads((out / "sweep.json").read_text()) == document
    found = {s["axis"]: [row["value"] for row in s["rows"]] for s in document["sweeps"]}
    assert found == {
        "latency": [0, 100, 400], "xyz_std": [0, 3], "ryp_std": [20], "drop_out": [0, 1],
    }  # fmt: skip
    rows = [row for s in document["sweeps"] for row in s["rows"]]
    # Objects are the same whatever is done to the messages, and so are the samples.
    assert len({row["detection"]["n_gt"] for row in rows}) == 1
    assert rows[0]["detection"]["n_gt"] > 0
    assert len({row["protocol"]["split_sha256"] for row in rows}) == 1
    by = {s["axis"]: s["rows"] for s in document["sweeps"]}
    plain = evaluate_run(run_folder, device=CPU, out=tmp_path / "plain", overrides=ALL)
    for axis in ("latency", "xyz_std", "drop_out"):
        assert metrics(by[axis][0]) == metrics(plain), axis
        assert metrics(by[axis][-1]) != metrics(plain), axis
    assert by["latency"][0]["protocol"] == plain["protocol"]
    assert by["latency"][2]["protocol"]["disturbances"].startswith("latency 400 ms")
    assert "disturbances" not in document["protocol"]
    assert document["protocol"]["dataset_mode"] == "vc"
    with (out / "sweep.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["axis"], float(line["value"])) for line in lines] == [
        (s["axis"], row["value"]) for s in document["sweeps"] for row in s["rows"]
    ]
    assert (out / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    told = capsys.readouterr().out
    for label in ("latency [ms]", "position noise [m]", "yaw noise [deg]", "messages lost [share]"):
        assert label in told
    assert not (out / "results.json").exists()


def test_who_hears_nobody_is_not_disturbed(tmp_path: Path) -> None:
    """The ego is untouched from files to metrics."""
    run = trained(tmp_path, "no_fusion")
    asked = ["latency=0,300", "xyz_std=5", "ryp_std=40", "drop_out=1"]
    document = sweep_run(run, asked, device=CPU, overrides=ALL)
    first, *others = (metrics(row) for s in document["sweeps"] for row in s["rows"])
    assert all(other == first for other in others)
    assert first["detection"]["n_det"] > 0


def test_the_command_sweeps(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["evaluate", "--model_dir", str(run_folder), "--device", "cpu", "--out", str(tmp_path)]
    assert (
        main([*where, "--split", "validate", "--sweep", "latency=0", "--sweep", "drop_out=1"]) == 0
    )
    document = json.loads((tmp_path / "sweep.json").read_text())
    assert [s["axis"] for s in document["sweeps"]] == ["latency", "drop_out"]
    assert document["split"] == "validate"
    capsys.readouterr()
    assert main([*where, "--sweep", "speed=1"]) == 2
    assert "--sweep must read AXIS=VALUE" in capsys.readouterr().err
