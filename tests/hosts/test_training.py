"""A host's model trained from the host's own hypes file, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_host import host_hypes, step_lines, write_hypes
from turbotrain_plugin.cli import main

BLOCK: dict[str, Any] = {
    "host": {"workers": 0},
    "balance": {"free_steps": 2, "balance_steps": 2},
    "logging": {"tensorboard": False, "save_steps": 3},
}


def train(frames: Path, folder: Path, **changes: object) -> Path:
    """Train in ``folder`` and return it."""
    folder.mkdir(exist_ok=True)
    hypes = write_hypes(folder / "config.yaml", host_hypes(frames, **changes))
    assert (
        main(["train", "--hypes", str(hypes), "--model_dir", str(folder), "--device", "cpu"]) == 0
    )
    return folder


def test_a_balanced_run_learns_and_is_evaluated(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    del fake_host
    folder = train(frames, tmp_path / "run", turbotrain=BLOCK)
    lines = [line for line in step_lines(folder) if "step" in line and "losses" in line]
    assert [line["balanced"] for line in lines] == [False, False, True, True] * 2
    assert set(lines[0]["losses"]) == {"reg_loss", "conf_loss"}
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert {"cosine", "task_norms", "task_weights"} <= set(lines[2])
    results = json.loads((folder / "results.json").read_text())
    assert results["detection"]["n_gt"] == 12
    assert set(results["host"]) >= {"ap_0.50", "ap_0.50_global_sort"}
    assert (folder / "net_epoch2.pth").is_file()
    assert main(["evaluate", "--model_dir", str(folder), "--device", "cpu", "--epoch", "2"]) == 0
    assert json.loads((folder / "results.json").read_text()) == results
    assert main(["evaluate", "--model_dir", str(folder), "--split", "train"]) == 2
    assert main(["config", "check", str(folder / "config.yaml")]) == 0


def test_terms_kept_as_floats_are_tasks_as_well(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    del fake_host
    block = BLOCK | {"host": {"workers": 0, "tasks": ["conf_loss", "reg_loss"]}}
    tensors = train(frames, tmp_path / "tensors", turbotrain=block)
    loss = {"core_method": "float_loss", "args": {"reg": 2.0}}
    floats = train(frames, tmp_path / "floats", turbotrain=block, loss=loss)
    assert step_lines(tensors) == step_lines(floats)


def test_an_unknown_task_is_named(
    fake_host: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake_host
    block = BLOCK | {"host": {"workers": 0, "tasks": ["depth_loss"]}}
    hypes = write_hypes(tmp_path / "hypes.yaml", host_hypes(frames, turbotrain=block))
    log_dir = f"turbotrain.logging.log_dir={tmp_path}"
    assert main(["train", "--hypes", str(hypes), "--device", "cpu", "-o", log_dir]) == 2
    assert "depth_loss" in capsys.readouterr().err


def test_an_unknown_key_of_our_block_is_an_error(
    fake_host: Path, frames: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake_host
    hypes = host_hypes(frames, turbotrain={"balance": {"free_step": 2}})
    file = write_hypes(tmp_path / "hypes.yaml", hypes)
    assert main(["train", "--hypes", str(file), "--device", "cpu"]) == 2
    assert "free_steps" in capsys.readouterr().err
    assert main(["config", "check", str(file)]) == 2
    assert main(["config", "explain", "turbotrain.host."]) == 0
    assert "turbotrain.host.tasks" in capsys.readouterr().out


@pytest.mark.parametrize("random", ["step", "host"])
def test_resume_after_a_kill_ends_equal(
    fake_host: Path, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random: str
) -> None:
    """The run dies in step 6, as by SIGKILL: what it had written last is all there is."""
    del fake_host
    block = BLOCK | {"host": {"workers": 0, "random": random}}
    whole = train(frames, tmp_path / "whole", turbotrain=block)
    broken = tmp_path / "broken"
    from turbotrain_plugin.hosts import learner, loop

    taken = learner.take_step
    count = 0

    def die(*args: object) -> object:
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return taken(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "take_step", die)
    broken.mkdir()
    hypes = write_hypes(broken / "config.yaml", host_hypes(frames, turbotrain=block))
    arguments = ["train", "--hypes", str(hypes), "--model_dir", str(broken), "--device", "cpu"]
    assert main(arguments) == 130
    monkeypatch.undo()
    monkeypatch.setenv("OPENCOOD_ROOT", str(Path(__file__).parent / "fake_host"))
    assert main(["train", "--resume", "--model_dir", str(broken), "--device", "cpu"]) == 0
    assert step_lines(whole) == step_lines(broken)
    first, second = (
        torch.load(folder / "net_epoch2.pth", weights_only=True) for folder in (whole, broken)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_checkout_one_sentence_says_what_to_do(
    frames: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.helpers.made_host import forget_host

    forget_host()
    monkeypatch.delenv("OPENCOOD_ROOT", raising=False)
    hypes = write_hypes(tmp_path / "hypes.yaml", host_hypes(frames))
    assert main(["train", "--hypes", str(hypes), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "git clone" in message
    assert "OPENCOOD_ROOT" in message
    assert "Traceback" not in message
