"""A run that was killed, interrupted or continued ends bit-equal to one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import (
    assert_same_state,
    command,
    environment,
    run_command,
    steps_of,
    tiny_config,
    write_hypes,
)
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of an uninterrupted run (dropout on, both stages)."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder)
    run = make_run_folder(config)
    Trainer(config, run, CPU).run(resume=False)
    return run


def assert_same_run(first: Path, second: Path) -> None:
    assert steps_of(first) == steps_of(second)
    for name in ("last.ckpt", "best.ckpt", "stage_pretrain.ckpt", "net_epoch2.pth"):
        assert_same_state(checkpoints.load(first / name), checkpoints.load(second / name), name)


def copy_config(finished: Path, target: Path) -> Path:
    """Return a new run folder with the same configuration and the same data."""
    target.mkdir(parents=True)
    shutil.copy(finished / "config.yaml", target / "config.yaml")
    return target


def test_a_run_repeats_itself(finished: Path, tmp_path: Path) -> None:
    again = copy_config(finished, tmp_path / "again")
    done = run_command("train", "--model_dir", again, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, again)


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_step_of_either_stage(
    attempt: int, finished: Path, tmp_path: Path
) -> None:
    """SIGKILL, several times in one run, wherever it happens to be; then resume to the end."""
    run = copy_config(finished, tmp_path / "killed")
    rng = random.Random(attempt)
    total = len([line for line in steps_of(finished) if "event" not in line])
    kill_at = sorted(rng.sample(range(1, total), 2))
    for step in kill_at:
        process = start_training(run, tmp_path, errors=subprocess.DEVNULL)
        await_steps(process, run, step)
        process.kill()
        process.wait()
    done = run_command("train", "--resume", "--model_dir", run, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, run)


def start_training(
    run: Path, cwd: Path, *, errors: int = subprocess.PIPE, own_group: bool = False
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", "--model_dir", run, "--device", "cpu"),
        cwd=cwd,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=own_group,
    )


def await_steps(process: subprocess.Popen[str], run: Path, steps: int) -> None:
    while process.poll() is None and written_steps(run) < steps:
        time.sleep(0.002)


def written_steps(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b'"stage_step"') if file.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_say_how_to_go_on(number: int, finished: Path, tmp_path: Path) -> None:
    run = copy_config(finished, tmp_path / "stopped")
    process = start_training(run, tmp_path)
    await_steps(process, run, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"opencood train --resume --model_dir {run}" in errors
    done = run_command("train", "--resume", "--model_dir", run, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert_same_run(finished, run)


def test_a_signal_to_the_whole_process_group(tmp_path: Path) -> None:
    """Schedulers and terminals signal the loader processes too; they must not die of it."""
    config = tiny_config(tmp_path, ["turbotrain.data.num_workers=1", "train_params.epoches=1"])
    run = make_run_folder(config)
    process = start_training(run, tmp_path, own_group=True)
    await_steps(process, run, 2)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert "state saved" in errors
    checkpoints.load_run_state(run / "last.ckpt")


def test_resuming_a_finished_run_changes_nothing(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    done = run_command("train", "--resume", "--model_dir", run, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_run(finished, run)
    results = json.loads((run / "results.json").read_text())
    assert [record["name"] for record in results["stages"]] == ["pretrain", "balance"]


def test_the_newest_run_is_found(finished: Path, tmp_path: Path) -> None:
    done = run_command("train", "--resume", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "no run to resume" in done.stderr
    file = write_hypes(tmp_path)
    shutil.copytree(finished, tmp_path / "logs" / "tiny_2026_01_01_00_00_00")
    done = run_command("train", "--resume", "--hypes", file, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny_2026_01_01_00_00_00" in done.stderr


def test_a_resumed_run_keeps_its_settings(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(finished, run)
    done = run_command(
        "train", "--resume", "--model_dir", run, "-o", "optimizer.lr=1", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "must keep its settings; changed: optimizer.lr 0.002 -> 1.0" in done.stderr


def test_balanced_steps_follow_the_schedule(finished: Path) -> None:
    lines = [s for s in steps_of(finished) if s["stage"] == "balance" and "event" not in s]
    assert len(lines) > 4
    for line in lines:
        step = line["stage_step"] - 1
        assert line["balanced"] == (step % 4 >= 2)
        assert ("cosine" in line) == line["balanced"]


def test_learning_rate_follows_the_cosine(finished: Path) -> None:
    rates = [s["lr"] for s in steps_of(finished) if s["stage"] == "balance" and "lr" in s]
    assert rates[0] == pytest.approx(2e-3)
    assert all(later < earlier for earlier, later in pairwise(rates))
