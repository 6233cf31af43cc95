"""The command in several processes: launched, stopped, resumed, bereft of a process, mistaken."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import command, environment, steps_of, write_hypes
from turbotrain_plugin.engine import checkpoints

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch has no gloo",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
]

LONG = ("-o", "train_params.epoches=40", "-o", "train_params.eval_freq=0")
"""Longer than any test waits."""


@pytest.fixture(scope="module")
def hypes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypes(tmp_path_factory.mktemp("commands"))


def start(*arguments: object, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", "--device", "cpu", *arguments),
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m"]
    return subprocess.run(
        [*launcher, *command(*arguments, "--device", "cpu")[2:]],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def await_steps(process: subprocess.Popen[str], logs: Path, steps: int) -> Path:
    """Wait until the only run in ``logs`` has taken some steps; return its folder."""
    while process.poll() is None:
        for file in logs.glob("*/metrics.jsonl"):
            if file.read_bytes().count(b'"stage_step"') >= steps:
                return file.parent
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def by_slurm(rank: int, world: int, port: str) -> dict[str, str]:
    """Return what srun gives a task."""
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "17",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(world),
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_PORT": port,
    }


def test_a_signal_saves_once_and_torchrun_goes_on(hypes: Path, tmp_path: Path) -> None:
    logs = ("-o", f"turbotrain.logging.log_dir={tmp_path / 'logs'}")
    process = start("--gpus", 2, "--hypes", hypes, *logs, cwd=tmp_path)
    run = await_steps(process, tmp_path / "logs", 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("SIGTERM: state saved. Go on with:") == 1
    assert "Traceback" not in errors
    assert "steps of 4 (2 x 2 processes)" in errors
    saved = checkpoints.load_run_state(run / "last.ckpt")["position"]["global_step"]

    done = torchrun("train", "--resume", "--model_dir", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"at step {saved} (exact)") == 1
    steps = [line["step"] for line in steps_of(run) if "event" not in line]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > saved
    assert json.loads((run / "results.json").read_text())["detection"]["n_gt"] > 0
    assert done.stdout.count("results.json") == 1
    assert [path.name for path in (tmp_path / "logs").iterdir()] == [run.name]

    again = torchrun("evaluate", "--model_dir", run, "--out", tmp_path / "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    before, after = ((place / "results.json").read_text() for place in (run, tmp_path / "again"))
    assert after == before


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_a_killed_process_ends_the_run_with_a_usable_checkpoint(
    hypes: Path, tmp_path: Path
) -> None:
    """Even the first one, which writes and speaks for all."""
    logs = ("-o", f"turbotrain.logging.log_dir={tmp_path / 'logs'}")
    process = start("--gpus", 2, "--hypes", hypes, *LONG, *logs, cwd=tmp_path)
    run = await_steps(process, tmp_path / "logs", 3)
    os.kill(children(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, errors
    assert "error: process 0 was killed by SIGKILL; the others were ended" in errors
    assert errors.count("another process of this run is gone") == 1
    assert f"opencood train --resume --model_dir {run}" in errors
    assert "Traceback" not in errors
    state = checkpoints.load_run_state(run / "last.ckpt")
    assert state["position"]["global_step"] >= 2
    assert state["processes"] == 2


def test_a_mistake_is_said_once_by_all_tasks_of_slurm(hypes: Path, tmp_path: Path) -> None:
    port = free_port()
    wrong = (
        "--hypes",
        hypes,
        "-o",
        "optimizer.lrr=1",
        "-o",
        f"turbotrain.logging.log_dir={tmp_path}",
    )
    tasks = [start(*wrong, cwd=tmp_path, **by_slurm(rank, 2, port)) for rank in range(2)]
    errors = [task.communicate(timeout=120)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [2, 2], errors
    assert "".join(errors).count("error: ") == 1
    assert "lrr" in "".join(errors)
    assert not (tmp_path / "logs").exists()


def test_a_mistake_that_one_process_meets_is_said_by_it(tmp_path: Path) -> None:
    """A broken cloud among the samples of a process: no other one has seen it."""
    hypes = write_hypes(tmp_path)
    for cloud in sorted((tmp_path / "data").glob("train/*/*/*.bin"))[::2]:
        cloud.write_bytes(b"x" * 7)
    process = start("--gpus", 2, "--hypes", hypes, cwd=tmp_path)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("error: sample ") in (1, 2)  # each may meet one of its own
    assert "Traceback" not in errors
