"""Tiny runs in two processes: alike on both, resumed to the bit, measured as in one.

One group of two processes is started once and does everything; the same is done here alone where
it should come to the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.helpers import distributed_runs as runs
from tests.helpers.tiny_run import assert_same_state, steps_of, write_hypes
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.stages import stages_of

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo",
)
WORLD = 2

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def hypes(folder: Path) -> str:
    return str(write_hypes(folder))


@pytest.fixture(scope="module")
def ranks(folder: Path, hypes: str) -> Ranks:
    spawn(runs.as_process, args=(WORLD, str(folder), hypes), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_small_messages(ranks: Ranks) -> None:
    for rank, found in enumerate(found["exchanged"] for found in ranks):
        assert found["largest"] == 10
        assert found["shared"] == "from 0"
        assert found["error"] == "said by 0"
        assert found["once"] == [rank]
        assert found["mean"] == {"a": 0.5, "b": 1.0}
        assert found["present"] == {"all": 0.5, "only 0": 4.0, "only 1": 4.0}


def test_all_start_from_the_weights_of_the_first(ranks: Ranks) -> None:
    (own, mine), (other, yours) = (found["exchanged"]["net"] for found in ranks)
    assert own != other
    assert mine == yours == own


def test_random_draws_differ_between_processes_and_follow_from_the_step(ranks: Ranks) -> None:
    first, second = (found["whole"]["seeds"] for found in ranks)
    assert not set(first) & set(second)
    for found in ranks:
        whole, stopped = found["whole"]["seeds"], found["stopped"]["seeds"]
        assert len(set(whole)) == len(whole)
        assert stopped + found["resumed"]["seeds"] == whole


@pytest.mark.parametrize("strategy", runs.STRATEGIES)
def test_every_strategy_and_stage_keeps_processes_alike(
    ranks: Ranks, hypes: str, strategy: str
) -> None:
    """Weights, heads and running statistics are equal to the bit wherever a stage ends."""
    first, second = (found[strategy] for found in ranks)
    config = runs.settings(hypes, *runs.CHEAP, f"turbotrain.strategy={strategy}")
    names = [stage.name for stage in stages_of(config)]
    assert [end.split()[0] for end in first["ends"]] == names
    assert first["ends"] == second["ends"]
    assert first["folder"] == second["folder"]
    lines = [line for line in steps_of(Path(first["folder"])) if "event" not in line]
    assert all(line["taken"] for line in lines)
    state = checkpoints.load_run_state(Path(first["folder"]) / "last.ckpt")
    assert state["processes"] == WORLD
    assert [record["name"] for record in state["stage_records"]] == names


def test_one_folder_a_run_and_one_line_a_step(ranks: Ranks) -> None:
    folder = Path(ranks[0]["whole"]["folder"])
    steps = [line["step"] for line in steps_of(folder) if "event" not in line]
    assert steps == list(range(1, len(steps) + 1))
    parents = [path.parent for path in folder.parent.glob("*/config.yaml")]
    assert len(parents) == len(runs.STRATEGIES) + 2


def test_validation_comes_to_the_numbers_of_one_process(ranks: Ranks, hypes: str) -> None:
    alone = runs.validate(hypes)
    assert alone["results"]["detection"]["n_det"] > 20
    assert alone["results"]["prediction"]["n_matched"] > 0
    assert len(alone["drawn"]) == 3
    for found in (found["validation"] for found in ranks):
        assert json.dumps(found["results"]) == json.dumps(alone["results"])
        assert found["bytes"] == alone["bytes"]
        assert_same_state(found["drawn"], alone["drawn"])
        assert found["calls"] == 4  # of 7 samples, on either: they ask together whether to stop


@pytest.mark.parametrize("balanced", [False, True], ids=["free", "balanced"])
def test_two_processes_are_one_with_the_whole_batch(
    ranks: Ranks, hypes: str, balanced: bool
) -> None:
    """Objects are counted over both: one sample here has more of them than another."""
    alone = runs.step_on(hypes, runs.FOUR, balanced=balanced)
    for found in (found["steps"][balanced] for found in ranks):
        assert found["tasks"] == pytest.approx(alone["tasks"], rel=1e-5)
        assert found["parts"] == pytest.approx(alone["parts"], rel=1e-5)
        for name, expected in alone["moved"].items():
            gap = float((found["moved"][name] - expected).norm())
            assert gap <= 1e-4 * float(expected.norm()) + 1e-7, (name, gap)


def test_a_bad_loss_on_one_process_is_refused_by_all_and_named(ranks: Ranks) -> None:
    for found in (found["refused"] for found in ranks):
        assert found["untouched"]
        for taken, culprit, steps in found["results"]:
            assert not taken
            assert steps == 0
            assert culprit.startswith("non-finite loss at ")
            assert culprit == ranks[0]["refused"]["results"][0][1]
            assert ";" not in culprit  # the other process's batch is blameless


def test_running_statistics_are_the_mean_over_processes(ranks: Ranks) -> None:
    first, second = (found["statistics"] for found in ranks)
    assert not torch.equal(first["own"], second["own"])
    assert torch.equal(first["after"], second["after"])
    torch.testing.assert_close(first["after"], (first["own"] + second["own"]) / 2)
    assert first["all"] == second["all"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(ranks: Ranks) -> None:
    for found in (found["stopped"] for found in ranks):
        assert found["stopped"] == 128 + 15
    state = checkpoints.load_run_state(Path(ranks[0]["stopped"]["folder"]) / "last.ckpt")
    assert state["position"]["global_step"] > runs.STOP_AT  # resumed since


def test_a_resumed_run_ends_as_if_nothing_had_happened(ranks: Ranks, folder: Path) -> None:
    stopped = checkpoints.load_run_state(folder / "stopped" / "last.ckpt")
    assert stopped["position"]["global_step"] == runs.STOP_AT
    whole, resumed = (Path(ranks[0][kind]["folder"]) for kind in ("whole", "resumed"))
    assert steps_of(whole) == steps_of(resumed)
    for name in ("last.ckpt", "best.ckpt", "stage_balance.ckpt"):
        assert_same_state(checkpoints.load(whole / name), checkpoints.load(resumed / name), name)
    assert ranks[0]["whole"]["ends"] == ranks[1]["whole"]["ends"]
    assert ranks[0]["resumed"]["ends"] == ranks[1]["resumed"]["ends"]


def test_one_process_goes_on_with_what_two_have_begun(ranks: Ranks, folder: Path) -> None:
    """At the same sample of the epoch: two of the six are done, four steps of one are left."""
    assert ranks
    before = checkpoints.load_run_state(folder / "stopped" / "last.ckpt")
    assert (before["position"]["epoch"], before["position"]["batch"]) == (1, 1)
    report = runs.train(
        runs.settings(str(folder / "tiny.yaml"), *runs.RESUMED), resume=folder / "stopped"
    )
    after = checkpoints.load_run_state(folder / "stopped" / "last.ckpt")
    assert report["stopped"] == 0
    assert "processes" not in after
    assert after["position"]["epoch"] == 2
    assert after["position"]["stage_step"] == before["position"]["stage_step"] + 4
