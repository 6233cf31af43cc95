"""A host's model in two processes: alike on both, as one with the whole batch, resumed to the bit.

One group of two processes is started once and does everything; the same is done here alone where
it should come to the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.helpers import host_processes as runs
from tests.helpers.made_host import FAKE_HOST, host_hypes, step_lines, write_frames, write_hypes
from tests.helpers.tiny_run import assert_same_state, environment
from turbotrain_plugin.cli import main
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.hosts import randomness

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch has no gloo",
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="signals"),
    pytest.mark.timeout(900),  # the group's whole work counts to the first test
]
WORLD = 2
LONG = 32
"""Steps of the run that is stopped from outside."""

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return frames whose cars lie in cells of their own: every frame has as many positives."""
    root = tmp_path_factory.mktemp("spread")
    write_frames(root / "train", scenes=2, frames=4, seed=SEED)
    write_frames(root / "validate", scenes=1, frames=4, seed=1)
    return root


SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder: Path, spread: Path) -> Ranks:
    write_hypes(folder / "plain.yaml", host_hypes(spread))
    write_hypes(folder / "block.yaml", host_hypes(spread, turbotrain=runs.block()))
    spawn(runs.as_process, args=(WORLD, str(folder), str(spread)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


# --------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", ["balance", "one_time", "turbotrain", "whole"])
def test_all_processes_end_with_the_same_weights_and_statistics(
    ranks: Ranks, folder: Path, name: str
) -> None:
    first, second = (found[name] for found in ranks)
    assert first["code"] == second["code"] == 0
    assert first["ends"] == second["ends"]
    assert len(first["ends"]) == (2 if name == "turbotrain" else 1)
    assert not set(first["seeds"]) & set(second["seeds"])  # dropout and masks differ
    steps = [line["step"] for line in step_lines(folder / name) if "event" not in line]
    assert steps == list(range(1, len(first["seeds"]) + 1))  # one line a step, by one process
    assert checkpoints.load_run_state(folder / name / "last.ckpt")["processes"] == WORLD


@pytest.mark.parametrize("strategy", ["balance", "one_time"])
def test_two_processes_are_one_with_the_whole_batch(
    ranks: Ranks, folder: Path, spread: Path, tmp_path: Path, fake_host: Path, strategy: str
) -> None:
    """Eight steps of SGD without batch norms and dropout, the same samples in each of them."""
    del ranks, fake_host
    runs.train(tmp_path / "one", runs.exact_hypes(spread, 2, strategy))
    ours, theirs = step_lines(folder / strategy), step_lines(tmp_path / "one")
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    assert len(ours) == 10  # 8 steps, 2 validations
    for line, expected in zip(ours, theirs, strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert line.get("lr") == expected.get("lr")
        assert line.get("losses", {}) == pytest.approx(expected.get("losses", {}), rel=1e-5)
        for part in {"cosine", "gradient_norm"} & line.keys():
            assert line[part] == pytest.approx(expected[part], rel=1e-3, abs=1e-5)
    if strategy == "balance":
        assert [line["balanced"] for line in ours if "taken" in line] == [0, 1, 1, 0, 1, 1, 0, 1]
        conflicts = [line for line in ours if line.get("cosine", 0.0) < 0.0]
        assert conflicts, "with this seed nothing is decided; choose another"
    first, second = (
        torch.load(run / "net_epoch2.pth", weights_only=True)
        for run in (folder / strategy, tmp_path / "one")
    )
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_validation_is_that_of_one_process(ranks: Ranks, folder: Path, fake_host: Path) -> None:
    """The first process alone computes it, over all batches of the host's loader."""
    del ranks
    from turbotrain_plugin.engine.assembly import derive_seed
    from turbotrain_plugin.hosts import host_named
    from turbotrain_plugin.hosts.hypes import read
    from turbotrain_plugin.hosts.learner import TaskLearner
    from turbotrain_plugin.hosts.session import enter
    from turbotrain_plugin.hosts.stages import make_data

    hypes = read(folder / "whole" / "config.yaml")
    with enter(host_named("auto", fake_host), fake_host) as session:
        parsed = hypes.parsed(session.host, session.modules)
        data = make_data(session, hypes, parsed)
        model = session.modules.train_utils.create_model(parsed)
        model.load_state_dict(torch.load(folder / "whole" / "net_epoch2.pth", weights_only=True))
        learner = TaskLearner(session, parsed, model.eval(), data.train_set)
        randomness.seed_all(derive_seed(0, "balance", "validation", 1))
        losses = [
            float(learner.losses(batch["ego"], torch.Generator()).total.detach())
            for batch in data.validation_loader
        ]
    assert len(losses) == 4
    (*_, line) = [line for line in step_lines(folder / "whole") if "event" in line]
    assert line["loss"] == sum(losses) / 4


def test_the_first_process_alone_evaluates(ranks: Ranks, folder: Path) -> None:
    assert [found["evaluated"] for found in ranks] == [0, 0]
    after_training = json.loads((folder / "turbotrain" / "results.json").read_text())
    assert after_training["detection"]["n_gt"] == 12
    again = json.loads((folder / "evaluated by 0" / "results.json").read_text())
    assert again == after_training
    assert not (folder / "evaluated by 1").exists()


def test_a_signal_to_one_stops_all_and_the_resumed_run_ends_equal(
    ranks: Ranks, folder: Path
) -> None:
    for found in ranks:
        assert found["stopped"]["code"] == 143
        assert found["stopped"]["ends"] == []
        assert len(found["stopped"]["seeds"]) == runs.STOP_AT
        assert found["stopped"]["seeds"] + found["resumed"]["seeds"] == found["whole"]["seeds"]
        assert found["resumed"]["ends"] == found["whole"]["ends"]
    saved = checkpoints.load_run_state(folder / "stopped" / "last.ckpt")
    assert saved["position"]["global_step"] == runs.STOP_AT
    assert step_lines(folder / "broken") == step_lines(folder / "whole")
    first, second = (
        checkpoints.load_run_state(folder / name / "last.ckpt") for name in ("broken", "whole")
    )
    assert_same_state(first, second)


def test_one_process_goes_on_at_the_same_sample(
    ranks: Ranks, folder: Path, tmp_path: Path, fake_host: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two had seen two of the eight samples of the second epoch, so six steps of one are left."""
    del ranks, fake_host
    shutil.copytree(folder / "stopped", tmp_path / "run")
    with caplog.at_level("WARNING"):
        found = runs.train(tmp_path / "run", {})
    assert found["code"] == 0
    assert len(found["seeds"]) == 6
    assert "was saved by 2 process(es) and goes on with 1" in caplog.text


# ----------------------------------------------------------------------------------------- commands


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *(str(argument) for argument in arguments), "--device", "cpu"],
        cwd=cwd,
        env=environment(OPENCOOD_ROOT=str(FAKE_HOST)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_steps(process: subprocess.Popen[str], folder: Path, steps: int) -> None:
    file = folder / "metrics.jsonl"
    while not (file.is_file() and file.read_bytes().count(b'"stage_step"') >= steps):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_stopped_killed_and_gone_on_with_it_ends_equal(
    ranks: Ranks, folder: Path, tmp_path: Path
) -> None:
    """SIGTERM to the launcher, which passes it on to loader processes as well; then SIGKILL to all.

    ``--gpus`` starts the first two runs, torchrun the last.
    """
    del ranks
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(folder / "long" / "config.yaml", run)
    ours = ("-m", "turbotrain_plugin", "train", "--gpus", 2, "--model_dir", run)
    process = start(*ours, cwd=tmp_path)
    await_steps(process, run, 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("SIGTERM: go on with:") == 1
    assert "Traceback" not in errors
    assert "steps of 2 (1 x 2 processes)" in errors
    stopped = checkpoints.load_run_state(run / "last.ckpt")["position"]["global_step"]
    assert 3 <= stopped < LONG

    process = start(*ours, "--resume", cwd=tmp_path)
    await_steps(process, run, stopped + 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == WORLD
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGKILL, errors
    assert f"resuming balance at step {stopped} (exact)" in errors
    assert stopped < checkpoints.load_run_state(run / "last.ckpt")["position"]["global_step"] < LONG

    torchrun = ("-m", "torch.distributed.run", f"--nproc_per_node={WORLD}")
    theirs = (*torchrun, "-m", "turbotrain_plugin", "train", "--resume", "--model_dir", run)
    process = start(*theirs, cwd=tmp_path)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert step_lines(run) == step_lines(folder / "long")
    first, second = (
        checkpoints.load_run_state(place / "last.ckpt") for place in (run, folder / "long")
    )
    assert_same_state(first, second)


# -------------------------------------------------------------------------------------------- steps


def explicit(*, factors: tuple[float, ...], batches: int = 2) -> list[Any]:
    """Return the mean loss of each task over two processes, and its mean gradients."""
    sums: dict[str, Any] = {}
    for rank in range(batches):
        toy = runs.Toy(factors[rank])
        losses = toy.losses({"data": runs.data_of(rank), "both": rank == 0}, torch.Generator())
        for task, loss in losses.terms.items():
            named = dict(toy.module.named_parameters())
            leaves = list(named.values())
            own = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            held = sums.setdefault(task, [0.0, {}])
            held[0] += float(loss.detach()) / 2
            for name, gradient in zip(named, own, strict=True):
                if gradient is not None:
                    held[1][name] = held[1].get(name, 0.0) + gradient / 2
    return [sums["one"], sums["two"]]


def check(found: list[dict[str, Any]], *, balanced: bool, **how: Any) -> None:  # noqa: ANN401
    """Compare a step of the toy on both processes with the explicit one."""
    (loss_one, one), (loss_two, two) = explicit(**how)
    weights = {"one": 1.0, "two": 1.0}
    if balanced:
        trunk = [name for name in one if name.startswith("shared")]
        rows = [torch.cat([task[name].flatten() for name in trunk]) for task in (one, two)]
        product = float(rows[0] @ rows[1])
        assert product < 0, "with this seed nothing is decided; choose another"
        weights = {
            "one": 1.0 - product / float(rows[0] @ rows[0]),
            "two": 1.0 - product / float(rows[1] @ rows[1]),
        }
    for step in found:
        total, terms, taken, culprit, decided = step["step"]
        assert (taken, culprit) == (True, "")
        assert terms == pytest.approx({"one": loss_one, "two": loss_two}, rel=1e-12)
        assert total == pytest.approx(loss_one + loss_two, rel=1e-12)
        assert not balanced or decided == pytest.approx(weights, rel=1e-9)
        for name, gradient in step["grads"].items():
            both = name.startswith("shared")
            parts = [
                task[name] * (weights[key] if both else 1.0)
                for key, task in (("one", one), ("two", two))
                if name in task
            ]
            if not parts:
                assert gradient is None, name  # unused on all processes: nobody moves it
            else:
                torch.testing.assert_close(gradient, sum(parts), rtol=1e-9, atol=1e-12)
    first, second = (step["after"] for step in found)
    counted = "norm.num_batches_tracked"
    assert all(torch.equal(first[n], second[n]) for n in first if n != counted)


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
def test_gradients_are_means_and_a_task_without_a_loss_counts_as_zero(
    ranks: Ranks, balanced: bool
) -> None:
    """The second process lacks a task; the tasks conflict, and on neither process alone alike."""
    found = [rank["uneven"][balanced] for rank in ranks]
    check(found, balanced=balanced, factors=(1.0, -2.0))


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
def test_a_process_without_a_batch_counts_as_zero(ranks: Ranks, balanced: bool) -> None:
    found = [rank["empty"][balanced] for rank in ranks]
    check(found, balanced=balanced, factors=(-2.0,), batches=1)


@pytest.mark.parametrize("balanced", [False, True], ids=["plain", "balanced"])
def test_a_loss_that_is_not_finite_on_one_stops_the_step_on_all(
    ranks: Ranks, balanced: bool
) -> None:
    before = runs.Toy().module.state_dict()
    for rank in ranks:
        total, _, taken, culprit, _ = rank["refused"][balanced]["step"]
        assert math.isnan(total)
        assert not taken
        assert culprit == "non-finite loss on process 1"
        assert_same_state(rank["refused"][balanced]["after"], dict(before))


def test_running_statistics_are_averaged(ranks: Ranks) -> None:
    """Each process normalises by its own batch; what is kept is the mean."""
    found = ranks[0]["uneven"][False]["after"]
    means = torch.stack([runs.data_of(rank).mean(0) for rank in range(WORLD)])
    torch.testing.assert_close(found["norm.running_mean"], 0.1 * means.mean(0))


# ----------------------------------------------------------------------------------------- refusals


def test_what_several_processes_cannot_do_is_said(ranks: Ranks) -> None:
    for found in ranks:
        assert "set turbotrain.host.random: step" in found["own streams"]
        assert found["dry run"].startswith("--dry-run measures one process")
        few = "8 frames make no batch of 5 (train_params.batch_size) for each of 2 processes"
        assert few in found["too few"]


def test_a_launcher_is_not_started_for_the_host_s_own_training(
    fake_host: Path, spread: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake_host
    block = runs.block() | {"host": {"random": "host"}}
    for name, changes in (("plain", {}), ("host", {"turbotrain": block})):
        hypes = write_hypes(tmp_path / f"{name}.yaml", host_hypes(spread, **changes))
        assert main(["train", "--gpus", "2", "--device", "cpu", "--hypes", str(hypes)]) == 2
        message = capsys.readouterr().err
        assert "set turbotrain.host.random: step" in message
        assert "For 2 processes" in message
    assert not (tmp_path / "logs").exists()
