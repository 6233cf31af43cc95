"""The `visualize` command on a finished run: detections, reconstruction, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin import cli
from turbotrain_plugin.cli import main
from turbotrain_plugin.engine import visualize
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.engine.visualize import VisualizeRequest, visualize_run
from turbotrain_plugin.errors import UserError

CPU = torch.device("cpu")
SHORT = [
    "turbotrain.pretrain={epoches: 1, target_frames: all}",
    "train_params={batch_size: 2, epoches: 1, eval_freq: 0}",
    "turbotrain.data.sample_stride=8",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("visualize"), SHORT)
    folder = make_run_folder(config)
    Trainer(config, folder, CPU).run(resume=False)
    return folder


def test_detections_are_drawn_into_the_run_folder(run: Path) -> None:
    drawn = visualize_run(VisualizeRequest(run, samples=1))
    assert [path.parent for path in drawn] == [run / "vis"]
    assert all(path.is_file() for path in drawn)
    assert not drawn[0].name.startswith("reconstruction")


@pytest.mark.parametrize("split", [None, "train"])
def test_reconstructions_are_drawn_where_asked(
    run: Path, split: str | None, tmp_path: Path
) -> None:
    """Every frame rebuilt, the current one drawn."""
    request = VisualizeRequest(run, pretrain=True, out=tmp_path / "a", samples=2, split=split)
    drawn = visualize_run(request)
    scene = "2023-03-17-15-53-02_1_0" if split == "train" else "2023-03-17-15-53-02_3_0"
    assert len(drawn) == 2
    assert all(path.name.startswith(f"reconstruction_{scene}") for path in drawn)
    assert sorted(drawn) == sorted((tmp_path / "a").iterdir())


def test_the_same_sample_is_masked_alike_every_time(run: Path, tmp_path: Path) -> None:
    first, second = (
        visualize_run(VisualizeRequest(run, pretrain=True, out=tmp_path / name, samples=1))[0]
        for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()


def test_a_strategy_without_pretraining_has_nothing_to_show(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, ["turbotrain.strategy=one_time"])
    with pytest.raises(UserError, match=r"this run did not pretrain \(strategy one_time"):
        visualize_run(VisualizeRequest(make_run_folder(config), pretrain=True))


def test_a_run_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    folder = make_run_folder(tiny_config(tmp_path))
    with pytest.raises(UserError, match=r"neither stage_pretrain\.ckpt nor last\.ckpt"):
        visualize_run(VisualizeRequest(folder, pretrain=True))
    with pytest.raises(UserError, match="no checkpoint"):
        visualize_run(VisualizeRequest(folder))


def test_mistakes_of_the_call(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        visualize_run(VisualizeRequest(tmp_path))
    with pytest.raises(UserError, match=r"--samples must be at least 1\. Found 0"):
        visualize_run(VisualizeRequest(run, samples=0))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        visualize_run(VisualizeRequest(run, out=tmp_path / "file" / "x"))


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[VisualizeRequest] = []
    monkeypatch.setattr(visualize, "visualize_run", requests.append)
    line = "visualize logs/x --pretrain --out p --samples 7 --split train --device cpu -o seed=4"
    assert main(line.split()) == 0
    assert requests == [
        VisualizeRequest(
            folder=Path("logs/x"),
            pretrain=True,
            out=Path("p"),
            samples=7,
            split="train",
            device=CPU,
            overrides=["seed=4"],
        )
    ]
    assert cli.USER_ERROR == 2
