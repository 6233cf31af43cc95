"""A stage's loop: what it keeps, where it stops, what it chooses; tiny runs in one process."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_scenes import MadeScene, junction_scene, write_scene
from tests.helpers.tiny_run import assert_same_state, steps_of, tiny_config
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.engine import checkpoints, stage_loop
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stage_loop import StageLoop
from turbotrain_plugin.engine.steps import StepResult
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.engine.validation import evaluate_network

CPU = torch.device("cpu")
ONE_STAGE = ["turbotrain.strategy=one_time", "train_params.epoches=2", "train_params.save_freq=0"]


def run_in(config: RunConfig, folder: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    return Trainer(config, folder, CPU).run(resume=resume)


def assert_same_run(first: Path, second: Path) -> None:
    assert steps_of(first) == steps_of(second)
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_state(checkpoints.load(first / name), checkpoints.load(second / name), name)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send SIGTERM to this process when a stage has taken ``step`` steps."""
    record = StageLoop._record

    def recorded(self: StageLoop, result: StepResult, seconds: float) -> None:
        record(self, result, seconds)
        if self.position.stage_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(StageLoop, "_record", recorded)


@pytest.mark.parametrize("step", [1, 2])
def test_accumulated_steps_resume_mid_epoch(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five batches in groups of two: the last group of an epoch is smaller, and stays so."""
    keys = [*ONE_STAGE, "turbotrain.accumulate=2", "turbotrain.logging.save_steps=0"]
    config = tiny_config(tmp_path, keys)
    whole, parts = make_run_folder(config), make_run_folder(config)
    run_in(config, whole)
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted) as stopped:
            run_in(config, parts)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    position = checkpoints.load(parts / "last.ckpt")["position"]
    assert (position["epoch"], position["batch"]) == (0, 2 * step)
    run_in(config, parts, resume=True)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_in_a_validation_neither_waits_for_it_nor_is_lost(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, [*ONE_STAGE, "turbotrain.logging.save_steps=0"])
    whole, parts = make_run_folder(config), make_run_folder(config)
    run_in(config, whole)
    evaluate: Any = evaluate_network
    seen: list[int] = []

    def evaluated(*arguments: Any, on_sample: Any, **keys: Any) -> Any:  # noqa: ANN401
        def counted() -> None:
            seen.append(1)
            on_sample()

        if when == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        result = evaluate(*arguments, on_sample=counted, **keys)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(stage_loop, "evaluate_network", evaluated)
        with pytest.raises(Interrupted):
            run_in(config, parts)
    assert len(seen) == 1 if when == "before" else len(seen) > 1
    epoch = checkpoints.load(parts / "last.ckpt")["position"]["epoch"]
    assert epoch == (0 if when == "before" else 1)
    run_in(config, parts, resume=True)
    assert_same_run(whole, parts)


def test_a_run_without_a_checkpoint_starts_its_log_afresh(tmp_path: Path) -> None:
    """Killed before the first checkpoint: its lines are of steps that will be taken again."""
    config = tiny_config(tmp_path, [*ONE_STAGE, "train_params.epoches=1"])
    folder = make_run_folder(config)
    (folder / "metrics.jsonl").write_text('{"stage_step":1}\n{"stage_st')
    run_in(config, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line["stage_step"] for line in lines if "event" not in line]
    assert steps == list(range(1, len(steps) + 1))


def test_a_validation_without_labels_chooses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No score is no best checkpoint and no lost patience; the last weights are evaluated."""
    config = tiny_config(tmp_path, [*ONE_STAGE, "turbotrain.patience=1"])
    made = junction_scene("2023-03-17-15-53-02_2_0", frames=14)
    write_scene(tmp_path / "data" / "val", MadeScene(made.name, made.agents, (), made.frames))
    folder = make_run_folder(config)
    with caplog.at_level(logging.WARNING, logger="turbotrain_plugin"):
        run_in(config, folder)
    assert "no ap_0.50 was measured" in caplog.text
    assert not (folder / "best.ckpt").exists()
    position = checkpoints.load(folder / "last.ckpt")["position"]
    assert (position["epoch"], position["since_best"], position["best"]) == (2, 0, -1.0)
    assert checkpoints.find_weights(folder).name == "last.ckpt"


def test_patience_ends_a_stage_and_stays_ended(tmp_path: Path) -> None:
    """Nothing is detected after a few steps, so no validation beats the first (AP 0)."""
    keys = [*ONE_STAGE, "train_params.epoches=9", "turbotrain.patience=2", "optimizer.lr=1e-9"]
    config = tiny_config(tmp_path, keys)
    folder = make_run_folder(config)
    run_in(config, folder)
    state = checkpoints.load(folder / "last.ckpt")
    assert (state["position"]["epoch"], state["position"]["since_best"]) == (3, 2)
    run_in(config, folder, resume=True)
    assert_same_state(state, checkpoints.load(folder / "last.ckpt"))


def test_a_loss_scale_is_not_asked_of_a_checkpoint_that_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run saved on a CPU goes on with a GPU's loss scaler."""
    config = tiny_config(tmp_path, [*ONE_STAGE, "train_params.epoches=1"])
    folder = make_run_folder(config)
    loops: list[StageLoop] = []
    trainer = Trainer(config, folder, CPU)
    monkeypatch.setattr(trainer, "_hand_on", loops.append)
    trainer.run(resume=False)
    loops[0].scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loops[0].restore(checkpoints.load(folder / "last.ckpt"))
    assert loops[0].scaler.get_scale() == 8.0


class _Board:
    """Remembers how it was made."""

    made: list[int | None]

    def __init__(self, _folder: Path, *, enabled: bool, purge_step: int | None = None) -> None:
        assert not enabled
        self.made.append(purge_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Take nothing."""

    def close(self) -> None:
        """Do nothing."""


def test_tensorboard_drops_only_what_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Board.made = []
    monkeypatch.setattr("turbotrain_plugin.engine.trainer.Board", _Board)
    config = tiny_config(tmp_path, ONE_STAGE)
    folder = make_run_folder(config)
    run_in(config, folder)
    done = checkpoints.load(folder / "last.ckpt")["position"]["global_step"]
    run_in(config, folder, resume=True)
    assert _Board.made == [1, done + 1]
