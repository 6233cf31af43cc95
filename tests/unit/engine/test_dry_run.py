"""A dry run says settings, sizes and costs, and leaves nothing behind."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.config import RunConfig, load_hypes, to_yaml
from turbotrain_plugin.engine.dry_run import PROBE, PeakMemory, dry_run, resident_mb
from turbotrain_plugin.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("error::turbotrain_plugin.balancing.ScheduleWarning")
def test_every_stage_is_measured_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, ["turbotrain.amp=bf16"])
    costs = dry_run(config, CPU)
    assert [cost.taken for cost in costs] == [True] * 3  # pretrain, free, balanced
    assert all(0 < cost.seconds < 30 for cost in costs)
    assert all(cost.memory_mb > 10 for cost in costs)
    out = capsys.readouterr().out
    shown = tmp_path / "shown.yaml"
    shown.write_text(out[: out.index("\nstage pretrain")])
    assert load_hypes(shown) == config
    assert to_yaml(config) in out
    for words in (
        "stage pretrain: ",
        "pretrain, free step: ",
        "balance, balanced step: ",
        "batch of 1 on cpu (the file says 2)",
        "balance: ",
        " h at this pace",
        "encoder",
    ):
        assert words in out
    assert not (tmp_path / "logs").exists()


def test_no_large_scenes_are_made_for_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def refused(config: RunConfig, *_args: object) -> None:
        asked.append(config.root_dir)
        raise UserError("enough")

    monkeypatch.setattr("turbotrain_plugin.engine.dry_run.build_dataset", refused)
    keys = ["root_dir=synthetic:bench", "turbotrain.pretrain.root_dir=synthetic:bench"]
    with pytest.raises(UserError, match="enough"):
        dry_run(tiny_config(tmp_path, keys), CPU)
    assert asked == [(PROBE,)]


def test_frozen_modules_and_stages_of_one_agent_are_measured_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, ["turbotrain.strategy=manual"])
    costs = dry_run(config, CPU)
    assert [cost.taken for cost in costs] == [True] * 5  # the fourth also balanced
    out = capsys.readouterr().out
    parts = out[out.index("\nstage detection: ") :].split("\nstage ")[1:]
    assert [part.split(":")[0] for part in parts] == [
        "detection",
        "prediction",
        "joint",
        "cooperation",
    ]
    assert ["  frozen" in part for part in parts] == [False, True, False, False]
    assert ["\n  fusion " in part for part in parts] == [False, False, False, True]
    assert ["\n  prediction " in part for part in parts] == [False, True, True, True]


def test_peak_memory_sees_a_peak() -> None:
    size = 512 << 20
    with PeakMemory(CPU) as some:
        before = resident_mb()
        # Fresh pages of the system: an allocator may hand out memory that is resident already.
        with mmap.mmap(-1, size) as block:
            for start in range(0, size, mmap.PAGESIZE):
                block[start] = 1
            for _ in range(500):  # a busy machine may look seldom
                if some.peak_mb > before + 256:
                    break
                time.sleep(PeakMemory.SECONDS)
    assert before > 10
    assert some.peak_mb > before + 256
