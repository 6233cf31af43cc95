"""The `train` command before and after training: which folder, which settings, what may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from turbotrain_plugin.config import RunConfig, load_hypes, to_yaml
from turbotrain_plugin.engine import run
from turbotrain_plugin.engine.run import TrainRequest, train
from turbotrain_plugin.errors import UserError

HYPES = "turbotrain_v2xpnp_tiny.yaml"


def request(**keys: Any) -> TrainRequest:  # noqa: ANN401
    settings: dict[str, Any] = {
        "hypes": None,
        "model_dir": None,
        "resume": False,
        "overrides": [],
        "device": "cpu",
        "seed": None,
        "half": False,
        "dry_run": False,
    }
    return TrainRequest(**(settings | keys))


def run_folder(folder: Path, *, started: bool, overrides: list[str] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_hypes(HYPES, overrides or [])))
    if started:
        (folder / "last.ckpt").touch()
    return folder


class Recorded:
    """Stands in for trainer and evaluation; remembers what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[tuple[RunConfig, Path, bool]] = []
        self.evaluated: list[dict[str, Any]] = []
        outer = self

        class FakeTrainer:
            def __init__(self, config: RunConfig, folder: Path, _device: torch.device) -> None:
                self.made = (config, folder)

            def run(self, *, resume: bool) -> None:
                outer.trained.append((*self.made, resume))

        monkeypatch.setattr(run, "Trainer", FakeTrainer)
        monkeypatch.setattr(
            run,
            "evaluate_run",
            lambda folder, **keys: self.evaluated.append({"at": folder, **keys}),
        )


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorded:
    monkeypatch.chdir(tmp_path)
    return Recorded(monkeypatch)


@pytest.mark.parametrize(
    "override",
    [
        "turbotrain.data.num_workers=0",
        "turbotrain.logging.keep=9",
        "turbotrain.evaluation.pictures=0",
        "turbotrain.threads=1",
        "turbotrain.data.persistent_workers=false",
    ],
)
def test_some_keys_may_change_and_reach_training_and_evaluation(
    override: str, recorded: Recorded, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run", started=True)
    assert train(request(model_dir=folder, resume=True, overrides=[override])) == 0
    config, where, resume = recorded.trained[0]
    assert (where, resume) == (folder, True)
    assert config == load_hypes(HYPES, [override])
    assert recorded.evaluated[0]["overrides"] == [override]


@pytest.mark.parametrize(
    ("keys", "drift"),
    [
        ({"overrides": ["optimizer.lr=1"]}, r"optimizer\.lr [\d.]+ -> 1\.0"),
        ({"seed": 5}, "seed 0 -> 5"),
        ({"half": True}, "turbotrain.amp 'off' -> 'bf16'"),
        ({"overrides": ["turbotrain.evaluation.match=iou_0.5"]}, "evaluation.match"),
    ],
)
def test_a_started_run_keeps_its_settings(
    keys: dict[str, Any], drift: str, recorded: Recorded, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run", started=True)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=f"must keep its settings; changed: .*{drift}"):
        train(request(model_dir=folder, **keys))
    assert not recorded.trained
    assert (folder / "config.yaml").read_bytes() == before


def test_settings_that_a_run_was_started_with_are_no_drift(
    recorded: Recorded, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run", started=True, overrides=["turbotrain.amp=bf16"])
    assert train(request(model_dir=folder, half=True)) == 0
    assert recorded.trained[0][2]


def test_a_folder_not_yet_started_takes_overrides_and_records_them(
    recorded: Recorded, tmp_path: Path
) -> None:
    """Otherwise the evaluation would build the network of the unchanged file."""
    folder = run_folder(tmp_path / "run", started=False)
    assert train(request(model_dir=folder, overrides=["optimizer.lr=1"])) == 0
    assert recorded.trained[0][2] is False
    assert load_hypes(folder / "config.yaml").optimizer.lr == 1.0


def test_what_there_is_to_resume(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs --hypes FILE"):
        train(request())
    with pytest.raises(UserError, match="no run to resume"):
        train(request(resume=True))
    folder = run_folder(tmp_path / "run", started=False)
    with pytest.raises(UserError, match=r"nothing to resume, there is no last\.ckpt"):
        train(request(resume=True, model_dir=folder))
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=r"not a run folder, there is no config\.yaml"):
        train(request(model_dir=tmp_path / "plain"))
    assert not recorded.trained


def test_the_newest_run_of_that_name_in_that_folder(recorded: Recorded, tmp_path: Path) -> None:
    """The folder that `-o turbotrain.logging.log_dir` names is searched, not the file's."""
    elsewhere = tmp_path / "elsewhere"
    run_folder(elsewhere / "turbotrain_v2xpnp_tiny_1", started=True)
    run_folder(elsewhere / "other_2", started=True)
    keys = [f"turbotrain.logging.log_dir={elsewhere}"]
    assert train(request(hypes=HYPES, resume=True, overrides=keys)) == 0
    assert recorded.trained[0][1] == elsewhere / "turbotrain_v2xpnp_tiny_1"


def test_a_hypes_file_that_does_not_rule_is_named(
    recorded: Recorded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = run_folder(tmp_path / "same", started=True)
    assert train(request(hypes=HYPES, model_dir=same)) == 0
    assert "the latter rules" not in caplog.text
    assert train(request(hypes="turbotrain_fcooper.yaml", model_dir=same)) == 0
    assert "turbotrain_fcooper.yaml differs from" in caplog.text
    assert recorded.trained[1][0].name == "turbotrain_v2xpnp_tiny"


def test_a_new_run_gets_seed_precision_and_a_folder(recorded: Recorded, tmp_path: Path) -> None:
    assert train(request(hypes=HYPES, seed=7, half=True)) == 0
    config, folder, resume = recorded.trained[0]
    assert (config.seed, config.turbotrain.amp, resume) == (7, "bf16", False)
    assert folder.resolve().parent == tmp_path / "logs"
    assert load_hypes(folder / "config.yaml") == config
