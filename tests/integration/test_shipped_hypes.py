"""Every shipped file trains and is evaluated: what it says, laid over a run that takes a second."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny_run import steps_of, write_hypes, write_shrunk
from turbotrain_plugin.config import RunConfig, load_hypes, shipped_hypes
from turbotrain_plugin.data.targets import grid_from_config
from turbotrain_plugin.engine import evaluate
from turbotrain_plugin.engine.evaluate import evaluate_run
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stages import network_config, stages_of
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.models import build_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypes(tmp_path_factory.mktemp("shipped"))


@pytest.mark.parametrize("name", sorted(shipped_hypes()))
def test_trained_and_evaluated(name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "draw_all", lambda *_: [])
    config = load_hypes(write_shrunk(tiny, name))
    assert config.name == Path(name).stem
    folder = make_run_folder(config)
    records = Trainer(config, folder, torch.device("cpu")).run(resume=False)
    stages = stages_of(config)
    assert [record["name"] for record in records] == [stage.name for stage in stages]
    assert all(record["steps"] > 0 for record in records)
    assert all(math.isfinite(record["last_loss"]) for record in records)
    lines = [line for line in steps_of(folder) if "event" not in line]
    assert all(line["taken"] for line in lines)
    for stage in stages:
        balanced = {line["balanced"] for line in lines if line["stage"] == stage.name}
        assert (True in balanced) == (stage.balance is not None)
    results = evaluate_run(folder, device=torch.device("cpu"))
    assert results["detection"]["n_gt"] > 0
    assert (folder / "results.json").is_file()


@pytest.mark.parametrize("name", shipped_hypes())
def test_the_networks_of_every_stage_are_built(name: str) -> None:
    """In the sizes of the file itself."""
    config = load_hypes(name)
    for stage in stages_of(config):
        count = parameters(network_config(config, stage))
        assert count > (1e4 if "tiny" in name else 5e6)


_COUNTED: dict[object, int] = {}


def parameters(config: RunConfig) -> int:
    """Return how many parameters a network has; equal ones are built once."""
    frames = config.turbotrain.data.hist_frames
    key = (config.model, config.preprocess, config.postprocess, frames)
    if key not in _COUNTED:
        network = build_model(
            config.model.args,
            grid_from_config(config),
            hist_frames=frames,
            future_steps=config.turbotrain.data.future_steps,
            anchors_per_cell=len(config.postprocess.anchor_args.r),
        )
        _COUNTED[key] = sum(parameter.numel() for parameter in network.parameters())
    return _COUNTED[key]
