"""The `evaluate` command on splits and folders other than the usual ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.engine.evaluate import evaluate_run
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.errors import UserError

CPU = torch.device("cpu")


def test_other_splits_and_folders(tmp_path: Path) -> None:
    """A split longer than the test split has pictures too; `out` takes everything."""
    config = tiny_config(
        tmp_path, ["train_params.epoches=1", "turbotrain.pretrain.epoches=1", "comm_range=40"]
    )
    folder = make_run_folder(config)
    Trainer(config, folder, CPU).run(resume=False)
    out = tmp_path / "new" / "out"
    before = sorted(path.name for path in folder.iterdir())
    results = evaluate_run(folder, device=CPU, split="train", out=out)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert results["detection"]["n_gt"] > 0
    assert json.loads((out / "results.json").read_text())["name"] == "tiny"
    names = sorted(path.name for path in (out / "vis").iterdir())
    assert any(name.startswith("reconstruction_2023-03-17-15-53-02_1_0") for name in names)
    assert "curves.png" in names
    evaluate_run(folder, device=CPU, split="validate")
    added = {path.name for path in folder.iterdir()} - set(before)
    assert added == {"validate"}
    assert (folder / "validate" / "results.json").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="this folder cannot be made"):
        evaluate_run(folder, device=CPU, out=tmp_path / "file" / "out")


def test_what_is_only_pretrained_is_not_evaluated(tmp_path: Path) -> None:
    """It has heads, but they have learned nothing."""
    config = tiny_config(
        tmp_path, ["turbotrain.strategy=pretrain_only", "turbotrain.pretrain.epoches=1"]
    )
    folder = make_run_folder(config)
    Trainer(config, folder, CPU).run(resume=False)
    with pytest.raises(UserError, match=r"pretrained so far, .*visualize .* --pretrain"):
        evaluate_run(folder, device=CPU)
    assert not (folder / "results.json").is_file()
