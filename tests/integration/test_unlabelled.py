"""Logs without labels: pretraining alone, its pictures, and a run that starts from its weights."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.made_scenes import junction_scene, write_root
from tests.helpers.tiny_run import HYPES, assert_same_state, steps_of
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import load_hypes
from turbotrain_plugin.data import SampleKey
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import build_dataset
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stages import stages_of, training_config
from turbotrain_plugin.engine.trainer import Trainer

ALONE = [
    "-o", "turbotrain.strategy=pretrain_only",
    "-o", "turbotrain.pretrain.epoches=1",
    "-o", "turbotrain.data.sample_stride=8",
    "-o", "validate_dir=[]",
    "-o", "test_dir=[]",
    "--device", "cpu",
]  # fmt: skip
SHORT = [
    "train_params={batch_size: 2, epoches: 1, eval_freq: 0}",
    "turbotrain.data.sample_stride=8",
]
CPU = torch.device("cpu")


def _write_log(folder: Path) -> Path:
    """Scenes whose YAML files hold poses and no `vehicles`; returns the root."""
    scenes = {"train": [junction_scene("2023-03-17-15-53-02_1_0", frames=22)]}
    root = write_root(folder, scenes, with_map=False)
    labels = sorted(root.rglob("*.yaml"))
    for file in labels:
        text = re.sub(r"^vehicles:.*\Z", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert "location" not in text
        file.write_text(text)
    assert len(labels) == 4 * 22
    return root


@pytest.fixture(scope="module")
def log_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that pretrained on an unlabelled log, by the command line."""
    folder = tmp_path_factory.mktemp("unlabelled")
    log = _write_log(folder / "log")
    hypes = folder / "tiny.yaml"
    hypes.write_text(HYPES.format(root=log, logs=folder / "logs"))
    assert main(["train", "--hypes", str(hypes), *ALONE]) == 0
    (run,) = (folder / "logs").iterdir()
    return run


def test_pretraining_alone_leaves_weights_and_pictures(log_run: Path) -> None:
    lines = steps_of(log_run)
    assert {line["stage"] for line in lines} == {"pretrain"}
    assert all(line["taken"] and line["parts"]["region_cells"] > 0 for line in lines)
    assert {"model", "learner"} <= checkpoints.load(log_run / "stage_pretrain.ckpt").keys()
    assert list((log_run / "vis").glob("reconstruction_*.png"))
    assert not (log_run / "results.json").exists()


def test_nothing_of_a_label_reaches_the_batch(log_run: Path) -> None:
    config = load_hypes(log_run / "config.yaml")
    dataset = build_dataset(config, "train", "pretrain")
    sample = dataset[SampleKey(0, 0)]
    assert sample.truth is None
    assert sample.targets is None
    assert sample.reconstruction is not None
    assert len(sample.reconstruction.xyz) > 0


def test_its_pictures_are_drawn_again_elsewhere(log_run: Path, tmp_path: Path) -> None:
    assert main(["visualize", str(log_run), "--pretrain", "--samples", "2", "--out",
                 str(tmp_path / "pictures"), "--device", "cpu"]) == 0  # fmt: skip
    assert len(list((tmp_path / "pictures").glob("reconstruction_*.png"))) == 2


@pytest.mark.parametrize(
    "verb", [["visualize"], ["evaluate", "--model_dir"]], ids=["visualize", "evaluate"]
)
def test_it_detects_nothing_and_says_so(
    verb: list[str], log_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, str(log_run), "--device", "cpu"]) == 2
    assert "--pretrain" in capsys.readouterr().err


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    scene = junction_scene("2023-03-17-15-53-02_2_0", frames=22)
    root = write_root(folder / "data", {"train": [scene], "val": [scene], "test": [scene]})
    hypes = folder / "tiny.yaml"
    hypes.write_text(HYPES.format(root=root, logs=folder / "logs"))
    return hypes


def _train(hypes: Path, *overrides: str) -> tuple[Trainer, Path]:
    config = load_hypes(hypes, [*SHORT, *overrides])
    folder = make_run_folder(config)
    trainer = Trainer(config, folder, CPU)
    trainer.run(resume=False)
    return trainer, folder


def test_a_run_starts_from_it_without_pretraining(
    log_run: Path, labelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("turbotrain_plugin").propagate = True
    caplog.set_level(logging.INFO, logger="turbotrain_plugin")
    trainer, folder = _train(
        labelled,
        f"turbotrain.pretrain.init={log_run}",
        "turbotrain.pretrain.epoches=0",
        "optimizer.lr=1e-30",
    )
    assert [stage.name for stage in trainer.stages] == ["balance"]
    assert f"starting from {log_run / 'stage_pretrain.ckpt'}" in caplog.text
    source = checkpoints.load(log_run / "stage_pretrain.ckpt")["model"]
    found = checkpoints.load(folder / "last.ckpt")["model"]
    weights = [
        name
        for name in found
        if name.startswith(("encoder", "projection", "temporal", "fusion"))
        and name.endswith("weight")
    ]
    assert len(weights) > 10
    # Nearly no learning rate: what is there now is what the run started from.
    assert all(torch.allclose(found[name], source[name], atol=1e-6) for name in weights)


def test_pretraining_goes_on_from_it(log_run: Path, labelled: Path) -> None:
    common = ("turbotrain.pretrain.epoches=1", "turbotrain.strategy=pretrain_only")
    _, afresh = _train(labelled, *common)
    _, gone_on = _train(labelled, *common, f"turbotrain.pretrain.init={log_run}")
    first, second = (steps_of(folder)[0]["losses"] for folder in (afresh, gone_on))
    assert first != second


def test_logs_for_pretraining_and_labels_for_the_rest(log_run: Path, labelled: Path) -> None:
    log = load_hypes(log_run / "config.yaml").root_dir[0]
    config = load_hypes(labelled, [f"turbotrain.pretrain.root_dir=[{log}]"])
    pretrain, balance = stages_of(config)
    assert training_config(config, pretrain).root_dir == (log,)
    assert training_config(config, balance).root_dir == config.root_dir
    dataset = build_dataset(training_config(config, pretrain), "train", "pretrain")
    assert dataset.scene_names == ("2023-03-17-15-53-02_1_0",)


def test_a_run_that_is_pretraining_can_be_looked_at(log_run: Path, tmp_path: Path) -> None:
    running = tmp_path / "run"
    running.mkdir()
    for name in ("config.yaml", "last.ckpt"):
        shutil.copy(log_run / name, running / name)
    assert main(["visualize", str(running), "--pretrain", "--samples", "1", "--device",
                 "cpu"]) == 0  # fmt: skip
    assert len(list((running / "vis").glob("*.png"))) == 1
    (running / "last.ckpt").unlink()
    assert main(["visualize", str(running), "--pretrain", "--device", "cpu"]) == 2


def test_resuming_starts_from_the_checkpoint_and_not_from_init_again(
    log_run: Path, labelled: Path
) -> None:
    overrides = [
        *SHORT,
        f"turbotrain.pretrain.init={log_run}",
        "turbotrain.pretrain.epoches=0",
        "train_params.epoches=2",
    ]
    whole_config = load_hypes(labelled, overrides)
    whole = make_run_folder(whole_config)
    Trainer(whole_config, whole, CPU).run(resume=False)
    parts = make_run_folder(whole_config)
    trainer = Trainer(whole_config, parts, CPU)

    class Enough(Exception):  # noqa: N818 - a mark, not an error
        pass

    loops = []
    stage_of = trainer._stage

    def stage(*args: object) -> object:
        loop = stage_of(*args)  # type: ignore[arg-type]
        loops.append(loop)
        after = loop._after_step

        def stop_at_two() -> None:
            after()
            if loop.position.stage_step == 2:
                raise Enough

        loop._after_step = stop_at_two  # type: ignore[method-assign]
        return loop

    trainer._stage = stage  # type: ignore[assignment, method-assign]
    with pytest.raises(Enough):
        trainer.run(resume=False)
    Trainer(whole_config, parts, CPU).run(resume=True)
    assert_same_state(
        checkpoints.load(whole / "last.ckpt")["model"],
        checkpoints.load(parts / "last.ckpt")["model"],
    )
