"""After the first epoch of pretraining a task that has become trivial is warned of, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.engine import stage_loop
from turbotrain_plugin.engine.collapse import warn_of_collapse
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer


def _write(folder: Path, focal: list[float], stage: str = "pretrain") -> None:
    lines = [
        {"stage": stage, "parts": {"focal": value, "prior": 0.1, "sites_iou": 0.9}}
        for value in focal
    ]
    text = "\n".join(json.dumps(line) for line in [*lines, {"event": "validation"}])
    (folder / "metrics.jsonl").write_text(text + "\n")


@pytest.mark.parametrize(
    ("focal", "collapsed"),
    [
        ([0.1] * 60, False),
        ([0.005] * 60, True),
        ([0.1] * 60 + [0.001] * 50, True),  # the last 50 steps count
        ([0.001] * 60 + [0.1] * 50, False),
    ],
)
def test_the_end_of_the_epoch_decides(
    focal: list[float], collapsed: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write(tmp_path, focal)
    assert warn_of_collapse(tmp_path, "pretrain") == collapsed
    assert ("mask.mode=drop" in caplog.text) == collapsed


def test_other_stages_and_missing_files_say_nothing(tmp_path: Path) -> None:
    assert not warn_of_collapse(tmp_path, "pretrain")
    _write(tmp_path, [0.001] * 9, stage="balance")
    assert not warn_of_collapse(tmp_path, "pretrain")


def test_a_run_asks_once_with_its_losses_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def ask(folder: Path, stage: str) -> bool:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        asked.append((stage, sum(json.loads(line).get("stage") == stage for line in lines)))
        return False

    monkeypatch.setattr(stage_loop, "warn_of_collapse", ask)
    keys = [
        "turbotrain.pretrain.epoches=2",
        "train_params={batch_size: 2, epoches: 1, eval_freq: 0}",
        "turbotrain.data.sample_stride=8",
        "turbotrain.logging.save_steps=0",
    ]
    config = tiny_config(tmp_path, keys)
    records = Trainer(config, make_run_folder(config), torch.device("cpu")).run(resume=False)
    assert asked == [("pretrain", records[0]["steps"] // 2)]
