"""What the stages of a strategy hand to one another."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer

SHORT = ["turbotrain.pretrain.epoches=1", "train_params.epoches=1"]


@pytest.mark.parametrize(
    ("overrides", "fresh"),
    [
        ([], "neck, map_fusion, detection, prediction"),
        (["turbotrain.pretrain.transfer_neck=true"], "map_fusion, detection, prediction"),
        (
            ["turbotrain.pretrain.agent_fusion=false"],
            "neck, fusion, map_fusion, detection, prediction",
        ),
        (
            # Without agent fusion nothing behind it was trained, whatever the key says.
            ["turbotrain.pretrain={agent_fusion: false, transfer_neck: true, epoches: 1}"],
            "neck, fusion, map_fusion, detection, prediction",
        ),
        (
            ["model.args.neck.position=pre_temporal"],
            "map_fusion, detection, prediction",
        ),
    ],
)
def test_modules_that_start_afresh_after_pretraining(
    overrides: list[str], fresh: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A neck behind fusion stands where the decoders do; one before it belongs to the encoder."""
    config = tiny_config(tmp_path, [*SHORT, *overrides])
    with caplog.at_level(logging.INFO, "turbotrain_plugin"):
        Trainer(config, make_run_folder(config), torch.device("cpu")).run(resume=False)
    (report,) = (text for text in caplog.messages if "left at initialisation" in text)
    assert report.splitlines()[-1] == f"left at initialisation: {fresh}"
