"""`opencood train --dry-run` of a host's model: what it says, and that nothing is left of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_host import FAKE_HOST, host_hypes, write_hypes
from turbotrain_plugin.cli import main
from turbotrain_plugin.hosts.dry_run import commit_of, dry_run
from turbotrain_plugin.hosts.hypes import read
from turbotrain_plugin.hosts.learner import HostStep, take_step

CPU = torch.device("cpu")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def block(folder: Path, **more: object) -> dict[str, Any]:
    return {
        "strategy": "turbotrain",
        "host": {"workers": 0},
        "pretrain": {"epoches": 1, "modules": {"encoder": ["encoder"], "fusion": ["fusion_net"]}},
        "balance": {"free_steps": 3, "balance_steps": 3},
        "logging": {"log_dir": str(folder / "logs"), "tensorboard": False, "save_steps": 1},
        **more,
    }


def test_it_says_what_would_run_and_leaves_nothing_behind(
    fake_host: Path,
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    hypes = write_hypes(tmp_path / "h.yaml", host_hypes(frames, turbotrain=block(tmp_path)))
    before = [files(folder) for folder in (tmp_path, frames, fake_host)]
    assert main(["train", "--dry-run", "--hypes", str(hypes), "--device", "cpu"]) == 0
    assert [files(folder) for folder in (tmp_path, frames, fake_host)] == before
    out = capsys.readouterr().out
    shown = tmp_path / "shown.yaml"
    shown.write_text(out[: out.index("OpenCOOD in ")])
    assert read(shown).block == read(hypes).block
    assert read(shown).plain == read(hypes).plain
    for words in (
        f"OpenCOOD in {FAKE_HOST}, commit unknown (31ba160 was read and run)",
        "device cpu; 8 frames to train on, 4 to validate on",
        "stage pretrain: 0.003 M parameters",
        "pretrain: loss ",
        "pretrain: 1 epochs of 4 steps, learning rate 0.002\n",
        "stage balance: 0.001 M parameters",
        "  encoder ",
        "  cls_head ",
        "3 free steps, then 3 balanced",
        "Shared parameters (8 tensors, 1224 numbers): encoder (6), neck (2).",
        "Tensors only one task reaches: reg_loss 2, conf_loss 2.",
        "balance, free step: ",
        "balance, balanced step: ",
        "batch of 1 on cpu (the file says 2)",
        "balance: 2 epochs of 4 steps, learning rate 0.01, 0.005 from epoch 2\n",
        "balance: 8 steps, about 0.0 h at this pace",
    ):
        assert words in out
    assert "pretrain, balanced step" not in out


def test_every_kind_of_step_is_taken_once(
    fake_host: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del fake_host
    kinds: list[bool | None] = []

    def noted(*arguments: Any) -> HostStep:  # noqa: ANN401
        step = take_step(*arguments)
        kinds.append(None if step.record is None else step.record.balanced)
        return step

    monkeypatch.setattr("turbotrain_plugin.hosts.dry_run.take_step", noted)
    hypes = write_hypes(tmp_path / "h.yaml", host_hypes(frames, turbotrain=block(tmp_path)))
    costs = dry_run(read(hypes), CPU)
    assert kinds == [None, False, True]  # pretraining, free, balanced
    assert [cost.taken for cost in costs] == [True] * 3
    assert all(0.0 < cost.seconds < 30.0 and cost.memory_mb > 10.0 for cost in costs)


def test_without_a_block_the_host_s_own_training_is_looked_at(
    fake_host: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake_host
    rates = {"core_method": "multistep", "step_size": list(range(1, 9)), "gamma": 0.5}
    hypes = host_hypes(frames, lr_scheduler=rates)
    hypes["train_params"]["epoches"] = 9
    (cost,) = dry_run(read(write_hypes(tmp_path / "h.yaml", hypes)), CPU)
    assert cost.taken
    out = capsys.readouterr().out
    assert "train: 9 epochs of 4 steps, learning rate 0.01 at first, 3.90625e-05 at last" in out
    assert "balanced" not in out[out.index("OpenCOOD in ") :]


def test_what_would_stop_the_first_step_stops_the_dry_run(
    fake_host: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake_host
    wrong = block(tmp_path, strategy="balance", host={"workers": 0, "tasks": ["depth_loss"]})
    hypes = write_hypes(tmp_path / "h.yaml", host_hypes(frames, turbotrain=wrong))
    assert main(["train", "--dry-run", "--hypes", str(hypes), "--device", "cpu"]) == 2
    assert "depth_loss" in capsys.readouterr().err


def test_the_commit_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    (root / "opencood").mkdir(parents=True)
    assert commit_of(root) == "unknown"
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (("init", "-q"), (*author, "commit", "-q", "--allow-empty", "-m", "x")):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
    whole = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    assert whole.startswith(commit_of(root))
    assert len(commit_of(root)) >= 7
    assert commit_of(root / "opencood") == "unknown"  # part of something larger
