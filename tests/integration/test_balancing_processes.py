"""Balancing in two and three processes: N ranks with a batch split are one with all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.helpers.balanced_processes import CASES, SOURCES, alone, one_of

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo",
)

THREE = tuple(f"{kind}, {source}" for kind in ("split", "empty batch") for source in SOURCES)
RUNS = [(2, name) for name in CASES] + [(3, name) for name in THREE]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Run all cases in two, and some in three processes; return what each process found."""
    found: dict[int, list[Any]] = {}
    for world in (2, 3):
        folder: Path = tmp_path_factory.mktemp(f"world{world}")
        names = tuple(name for count, name in RUNS if count == world)
        spawn(one_of, args=(world, str(folder), names), nprocs=world)
        paths = [folder / f"{rank}.pt" for rank in range(world)]
        found[world] = [torch.load(path, weights_only=True) for path in paths]
    return found


@pytest.mark.parametrize(("world", "name"), RUNS)
def test_many_ranks_are_one(ranks: dict[int, list[Any]], world: int, name: str) -> None:
    expected = alone(CASES[name], world)
    first, *others = (rank[name] for rank in ranks[world])
    assert [balanced for balanced, _ in first["records"]] == [False, True, True, False]
    for (_, found), (_, weights) in zip(first["records"], expected["records"], strict=True):
        assert found == pytest.approx(weights, rel=1e-9)
    for key, value in expected["weights"].items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-9, atol=1e-12, msg=key)
        for other in others:  # not a bit apart, or they would drift
            assert torch.equal(other["weights"][key], first["weights"][key]), key
    assert all(other["records"] == first["records"] for other in others)


def test_most_of_these_runs_conflict(ranks: dict[int, list[Any]]) -> None:
    """Else averaging before or after the decision would be the same."""
    steps = [records for name in CASES for _, records in ranks[2][0][name]["records"] if records]
    conflicts = [weights for weights in steps if set(weights.values()) != {1.0}]
    assert len(conflicts) > len(steps) / 2


@pytest.mark.parametrize("world", [2, 3])
def test_processes_with_other_tasks_are_refused_everywhere(
    ranks: dict[int, list[Any]], world: int
) -> None:
    for found in ranks[world]:
        assert "differ in their tasks or parameters" in found["refused"]


@pytest.mark.parametrize("world", [2, 3])
def test_a_wrapper_that_ties_outputs_together_is_refused(
    ranks: dict[int, list[Any]], world: int
) -> None:
    for found in ranks[world]:
        free, balanced = found["tied"]
        assert "find_unused_parameters=True or static_graph=True" in free
        assert balanced == free


@pytest.mark.parametrize("world", [2, 3])
def test_nothing_to_differentiate_is_said_everywhere(
    ranks: dict[int, list[Any]], world: int
) -> None:
    for found in ranks[world]:
        assert "None of the losses detection, prediction depends" in found["apart"]


@pytest.mark.parametrize("world", [2, 3])
def test_a_bad_loss_on_one_process_stops_the_step_on_all(
    ranks: dict[int, list[Any]], world: int
) -> None:
    assert [found["skipped"] for found in ranks[world]] == [[0, 0]] * world
