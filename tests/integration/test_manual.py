"""The manual pipeline: what its stages share, freeze and see; killed in any, it ends equal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny_run import assert_same_state, steps_of, tiny_config
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.engine import checkpoints, evaluate
from turbotrain_plugin.engine.evaluate import evaluate_run
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.stage_loop import StageLoop
from turbotrain_plugin.engine.steps import StepResult
from turbotrain_plugin.engine.trainer import Trainer

CPU = torch.device("cpu")
STAGES = ("detection", "prediction", "joint", "cooperation")
KEYS = [
    "turbotrain.strategy=manual",
    "turbotrain.manual.epoches=[3, 2, 1, 2]",
    "turbotrain.balance.args.dwa.window=1",
    "turbotrain.data.sample_stride=4",
    "turbotrain.evaluation={pictures: 0, max_samples: 2}",
]
DETECTOR = ("encoder", "projection", "neck", "detection")


class Seen:
    """What the loops of a run started with: weights, and the data sets' options."""

    def __init__(self) -> None:
        self.starts: dict[str, dict[str, Tensor]] = {}
        self.options: dict[str, tuple[int, int, int, int]] = {}

    def note(self, loop: StageLoop) -> None:
        name = loop.stage.name
        state = loop.learner.network.state_dict()
        self.starts[name] = {key: value.clone() for key, value in state.items()}
        learnt, measured = loop._train_set.options, loop._validation_set
        assert measured is not None
        self.options[name] = (
            learnt.max_agents,
            learnt.hist_frames,
            measured.options.max_agents,
            measured.options.hist_frames,
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Path, Seen]:
    """Return configuration and folder of an uninterrupted run, and what its stages started with."""
    config = tiny_config(tmp_path_factory.mktemp("finished"), KEYS)
    folder, seen = make_run_folder(config), Seen()
    run = StageLoop.run

    def noted(loop: StageLoop) -> None:
        seen.note(loop)
        run(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageLoop, "run", noted)
        Trainer(config, folder, CPU).run(resume=False)
    return config, folder, seen


def weights(folder: Path, stage: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = checkpoints.load(folder / f"stage_{stage}.ckpt")["model"]
    return state


def parts(state: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name in state}


def equal_parts(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Return the modules that two networks have in common, value for value."""
    common = parts(first) & parts(second)
    differing = {
        name.split(".")[0]
        for name in first
        if name not in second or not torch.equal(first[name], second[name])
    }
    return common - differing


def test_networks_grow_from_stage_to_stage(finished: Any) -> None:  # noqa: ANN401
    _, folder, _ = finished
    single = {*DETECTOR, "temporal"}
    assert parts(weights(folder, "detection")) == single
    assert weights(folder, "detection")["temporal.time_embedding"].shape[0] == 1
    single |= {"map_fusion", "prediction"}
    assert parts(weights(folder, "prediction")) == parts(weights(folder, "joint")) == single
    assert parts(weights(folder, "cooperation")) == single | {"fusion"}


def test_every_stage_starts_from_the_weights_of_the_one_before(finished: Any) -> None:  # noqa: ANN401
    _, folder, seen = finished
    everything = {*DETECTOR, "temporal", "map_fusion", "prediction"}
    for before, stage, carried in (
        ("detection", "prediction", set(DETECTOR)),
        ("prediction", "joint", everything),
        ("joint", "cooperation", everything),
    ):
        assert equal_parts(weights(folder, before), seen.starts[stage]) == carried


def test_the_second_stage_moves_no_bit_of_the_detector(finished: Any) -> None:  # noqa: ANN401
    """Two epochs with a validation in between, after which the modes are as before."""
    _, folder, seen = finished
    found, start = weights(folder, "prediction"), seen.starts["prediction"]
    assert equal_parts(start, found) == set(DETECTOR)
    assert any("running_mean" in name for name in found)
    assert equal_parts(seen.starts["joint"], weights(folder, "joint")) == set()
    assert equal_parts(seen.starts["cooperation"], weights(folder, "cooperation")) == set()


def test_agents_and_frames_of_the_stages(finished: Any) -> None:  # noqa: ANN401
    """One agent is learnt from; all of them say what there is to find."""
    _, _, seen = finished
    assert seen.options == {
        "detection": (1, 1, 3, 1),
        "prediction": (1, 3, 3, 3),
        "joint": (1, 3, 3, 3),
        "cooperation": (3, 3, 3, 3),
    }


def test_tasks_and_weighting_of_the_stages(finished: Any) -> None:  # noqa: ANN401
    _, folder, _ = finished
    lines = [line for line in steps_of(folder) if "event" not in line]
    assert list(dict.fromkeys(line["stage"] for line in lines)) == list(STAGES)
    for line in lines:
        alone = line["stage"] == "detection"
        assert list(line["losses"]) == ["detection"] + ([] if alone else ["prediction"])
        assert line["balanced"] == (line["stage"] == "cooperation")
    weighted = [line["task_weights"] for line in lines if line["stage"] == "cooperation"]
    assert len(weighted) > 2
    assert weighted[0] == {"detection": 1.0, "prediction": 1.0}
    assert weighted[-1]["detection"] != 1.0
    assert sum(weighted[-1].values()) == pytest.approx(2.0)


def test_epoch_files_are_those_of_the_last_stage(finished: Any) -> None:  # noqa: ANN401
    """Older ones would be taken for its own: loaded by number, and kept in place of new ones."""
    _, folder, _ = finished
    assert list(checkpoints.epoch_files(folder)) == [1, 2]  # the first stage had three
    kept = checkpoints.load(folder / "net_epoch2.pth")
    assert_same_state(kept, weights(folder, "cooperation"))
    assert checkpoints.load(folder / "best.ckpt")["stage"] == "cooperation"


def assert_same_run(first: Path, second: Path) -> None:
    assert steps_of(first) == steps_of(second)
    files = [*(f"stage_{stage}.ckpt" for stage in STAGES), "net_epoch1.pth", "net_epoch2.pth"]
    for name in ("last.ckpt", "best.ckpt", *files):
        assert_same_state(checkpoints.load(first / name), checkpoints.load(second / name), name)


def stop_in(stage: str, step: int) -> Callable[[StageLoop, StepResult, float], None]:
    """Return a ``StageLoop._record`` that signals this process after a step of a stage."""
    record = StageLoop._record

    def recorded(self: StageLoop, result: StepResult, *times: float) -> None:
        record(self, result, *times)
        if (self.stage.name, self.position.stage_step) == (stage, step):
            os.kill(os.getpid(), signal.SIGTERM)

    return recorded


@pytest.mark.parametrize(
    ("stage", "step"), [("detection", 4), ("prediction", 2), ("joint", 1), ("cooperation", 4)]
)
def test_stopped_inside_a_stage(
    stage: str,
    step: int,
    finished: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on to the bit, and what there is so far can be evaluated as what it is."""
    config, whole, _ = finished
    folder = make_run_folder(config)
    monkeypatch.setattr(evaluate, "draw_all", lambda *_: [])
    with monkeypatch.context() as patch:
        patch.setattr(StageLoop, "_record", stop_in(stage, step))
        with pytest.raises(Interrupted):
            Trainer(config, folder, CPU).run(resume=False)
    position = checkpoints.load(folder / "last.ckpt")["position"]
    assert (position["stage"], position["stage_step"]) == (STAGES.index(stage), step)
    evaluate_unfinished(folder, stage, tmp_path / "out")
    Trainer(config, folder, CPU).run(resume=True)
    assert_same_run(whole, folder)


def evaluate_unfinished(folder: Path, stage: str, out: Path) -> None:
    """Evaluate the best weights (its own where it was validated), the last and an epoch's."""
    own = len(checkpoints.epoch_files(folder)) == 1
    best = checkpoints.load(folder / "best.ckpt")["stage"]
    assert STAGES.index(best) == STAGES.index(stage) - (not own)
    found = [evaluate_run(folder, device=CPU, out=out)]
    (folder / "best.ckpt").rename(out / "best.ckpt")
    found.append(evaluate_run(folder, device=CPU, out=out))
    if own:
        found.append(evaluate_run(folder, device=CPU, out=out, epoch=1))
    (out / "best.ckpt").rename(folder / "best.ckpt")
    objects = {results["detection"]["n_gt"] for results in found}
    assert objects == {12}  # four samples; one of their three is in the file of another agent alone
    assert [results["message_bytes"] > 0 for results in found] == (
        [stage == "cooperation"] * 3 if own else [False, False]
    )


class Killed(BaseException):
    """Ends a run where it stands, as SIGKILL does: nothing more is saved."""


@pytest.mark.parametrize("save_steps", [0, 2])
def test_killed_in_every_stage(
    save_steps: int,
    finished: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run, killed in each stage once; without checkpoints between, it may fall back a stage."""
    config, whole, _ = finished
    logging = replace(config.turbotrain.logging, save_steps=save_steps)
    config = replace(config, turbotrain=replace(config.turbotrain, logging=logging))
    folder = make_run_folder(config)
    left = list(STAGES)
    record = StageLoop._record

    def recorded(self: StageLoop, result: StepResult, *times: float) -> None:
        record(self, result, *times)
        if self.stage.name in left and self.position.stage_step == 3:
            left.remove(self.stage.name)
            raise Killed

    monkeypatch.setattr(StageLoop, "_record", recorded)
    for killed in range(len(STAGES)):
        with pytest.raises(Killed):
            Trainer(config, folder, CPU).run(resume=killed > 0 and (folder / "last.ckpt").exists())
    Trainer(config, folder, CPU).run(resume=True)
    assert_same_run(whole, folder)
