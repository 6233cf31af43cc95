"""A balance stage with a method that remembers: arguments from YAML, exact resume mid-stage."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import assert_same_state, steps_of, tiny_config
from turbotrain_plugin.balancing import MoCo
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stage_loop import StageLoop
from turbotrain_plugin.engine.steps import StepResult
from turbotrain_plugin.engine.trainer import Trainer

CPU = torch.device("cpu")

KEYS = [
    "turbotrain.pretrain.epoches=1",
    "train_params.epoches=1",
    "turbotrain.balance={method: moco, free_steps: 1, balance_steps: 2}",
    "turbotrain.balance.args.moco.beta=0.3",
]


def test_moco_resumes_within_its_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, KEYS)
    whole, parts = make_run_folder(config), make_run_folder(config)
    seen: list[float] = []
    record = StageLoop._record

    def recorded(self: StageLoop, result: StepResult, *times: float) -> None:
        record(self, result, *times)
        if isinstance(self.balancer.method, MoCo):
            seen.append(self.balancer.method.beta)
            if self.position.stage_step == 3 and len(seen) == 3 + steps:
                os.kill(os.getpid(), signal.SIGTERM)

    steps = 10**9
    monkeypatch.setattr(StageLoop, "_record", recorded)
    Trainer(config, whole, CPU).run(resume=False)
    assert set(seen) == {0.3}
    steps = len(seen)
    assert steps > 3
    with pytest.raises(Interrupted):
        Trainer(config, parts, CPU).run(resume=False)
    Trainer(config, parts, CPU).run(resume=True)
    assert steps_of(whole) == steps_of(parts)
    assert_same_state(
        checkpoints.load(whole / "last.ckpt"), checkpoints.load(parts / "last.ckpt"), "last.ckpt"
    )
