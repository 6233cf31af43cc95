"""What a trainer refuses before it has built anything, and what it warns of."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.config import load_hypes
from turbotrain_plugin.engine import dry_run as dry_run_module
from turbotrain_plugin.engine import trainer as trainer_module
from turbotrain_plugin.engine.dry_run import dry_run
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.errors import UserError


class Built(Exception):  # noqa: N818 - a mark, not an error
    """A data set was asked for."""


@pytest.fixture
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: object) -> None:
        raise Built

    for module in (trainer_module, dry_run_module):
        monkeypatch.setattr(module, "build_dataset", built)


def start(folder: Path, *overrides: str) -> None:
    config = load_hypes("turbotrain_v2xpnp_tiny.yaml", overrides)
    Trainer(config, folder, torch.device("cpu")).run(resume=False)


@pytest.mark.usefixtures("_nothing_is_built")
def test_a_wrong_balance_method_fails_before_the_first_stage(tmp_path: Path) -> None:
    """Not after hours of pretraining, which knows nothing of it."""
    with pytest.raises(UserError, match=r"(?i)torchjd"):
        start(tmp_path, "turbotrain.balance.method=torchjd:Nope")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_nothing_is_built")
def test_a_dry_run_finds_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["turbotrain.balance.method=torchjd:Nope"]
    with pytest.raises(UserError, match=r"(?i)torchjd"):
        dry_run(load_hypes("turbotrain_v2xpnp_tiny.yaml", keys), torch.device("cpu"))
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("_nothing_is_built")
def test_a_method_of_a_stage_that_does_not_run_is_not_asked_for(tmp_path: Path) -> None:
    keys = ["turbotrain.balance.method=torchjd:Nope", "turbotrain.strategy=turbotrain_no_balance"]
    with pytest.raises(Built):
        start(tmp_path, *keys)


@pytest.mark.parametrize(("strategy", "warned"), [("turbotrain", True), ("manual", False)])
def test_balancing_every_step_is_warned_of_where_the_file_asks_for_it(
    strategy: str, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weighing losses in every step is what the manual pipeline's fourth stage is."""
    keys = [
        f"turbotrain.strategy={strategy}",
        "turbotrain.balance={free_steps: 0, balance_steps: 1}",
        "turbotrain.data.sample_stride=8",
        "turbotrain.pretrain.epoches=1",
        "train_params={epoches: 1, eval_freq: 0}",
    ]
    with caplog.at_level(logging.WARNING, logger="turbotrain_plugin"):
        Trainer(tiny_config(tmp_path, keys), tmp_path, torch.device("cpu")).run(resume=False)
    assert ("EVERY step is balanced" in caplog.text) == warned
