"""Run folders, the log of steps, progress lines."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import pytest

from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.engine import records
from turbotrain_plugin.engine.records import MetricsLog, Progress, make_run_folder
from turbotrain_plugin.errors import UserError


def config_in(folder: Path) -> RunConfig:
    return load_hypes(
        "turbotrain_v2xpnp.yaml", [f"turbotrain.logging.log_dir={folder}", "name=some"]
    )


def test_run_folders_are_never_reused(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    folders = [make_run_folder(config) for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.name.startswith("some_20") for folder in folders)
    assert load_hypes(folders[0] / "config.yaml") == config
    environment = json.loads((folders[0] / "env.json").read_text())
    assert environment["packages"]["torch"]


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write({"step": 1})
    kept = log.position()
    log.write({"step": 2})
    log.close()
    log = MetricsLog(tmp_path, kept)
    log.write({"step": 3})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def test_a_full_disk_is_one_sentence_and_closing_hides_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is a device of Linux")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = MetricsLog(tmp_path)
    log.write({"step": 1})
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left"):
        log.position()
    log.close()


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made .*turbotrain\.logging\.log_dir"):
        make_run_folder(config_in(tmp_path / "file"))


def test_the_log_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"loss": math.nan})
    log.close()


def test_progress_says_rate_and_losses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, *(10.0 * step for step in range(1, 20))])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with (
        caplog.at_level(logging.INFO, logger="turbotrain_plugin"),
        Progress("stage", total=3) as progress,
    ):
        progress.advance("loss 1.0")
    assert "stage  1/3" in caplog.text
    assert "loss 1.0" in caplog.text
    assert "ETA 0:40" in caplog.text


def test_unknown_packages_have_no_version() -> None:
    assert records.version_of("surely-not-installed") is None
