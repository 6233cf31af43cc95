"""The whole matrix in two and three processes: each cell is the one large batch, by hand.

Precision x processes x accumulation x kind of step x clipping x source. One process is
``test_balancing_matrix.py``. Every world of processes is started once and runs all its cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.helpers.balance_matrix import PRECISIONS, RATE, assert_close, clipped, slow
from tests.helpers.made_tasks import TinyTasks
from tests.helpers.matrix_processes import CELLS, WORLDS, run_cells, whole_batch
from turbotrain_plugin.balancing.sweep import torch_starts_inside_graphs

pytestmark = [
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch has no gloo",
    ),
    pytest.mark.skipif(
        not torch_starts_inside_graphs(), reason="torch cannot start inside a graph"
    ),
]

Ranks = Callable[[int], list[dict[str, Any]]]

REDUCTIONS = {"exact": 1, "exact_low_memory": 1, "cut": 2, "feature": 1}
"""Of gradients, a balanced micro-batch; below a cut they are known only after the decision."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    """Return what each process of a world found; a world is started when it is first asked for."""

    @functools.cache
    def found(world: int) -> list[dict[str, Any]]:
        folder: Path = tmp_path_factory.mktemp(f"matrix{world}")
        spawn(run_cells, args=(world, str(folder)), nprocs=world)
        paths = [folder / f"{rank}.pt" for rank in range(world)]
        return [torch.load(path, weights_only=True) for path in paths]

    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", CELLS)
def test_many_processes_are_one_large_batch(ranks: Ranks, name: str, world: int) -> None:
    cell = CELLS[name]
    keys = PRECISIONS[cell.precision]
    model = TinyTasks(dtype=keys["dtype"])
    x = whole_batch(world, cell.micro_batches, keys["dtype"])
    expected = slow(model, x, keys, cell.micro_batches, cell.source, balanced=cell.balanced)
    if cell.clip:
        expected = clipped(expected)
    first, *others = (found[name] for found in ranks(world))
    assert_close(first["used"], expected, keys["rtol"])
    for key, parameter in model.named_parameters():  # and exactly that was taken
        taken = parameter.detach().add(first["used"][key], alpha=-RATE)
        assert torch.equal(first["after"][key], taken), key
        for other in others:  # not a bit apart, or they would drift
            assert torch.equal(other["after"][key], first["after"][key]), key
    assert all(other["weights"] == first["weights"] for other in others)


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_travel_once_a_micro_batch(ranks: Ranks, world: int) -> None:
    for name, cell in CELLS.items():
        each = REDUCTIONS[cell.source] if cell.balanced else 1
        for found in ranks(world):
            assert found[name]["reductions"] == each * cell.micro_batches, name


@pytest.mark.parametrize("world", WORLDS)
def test_an_overflow_on_one_process_skips_the_step_on_all(ranks: Ranks, world: int) -> None:
    for found in ranks(world):
        assert found["overflow"] == [(1, 1024.0, True), (1, 512.0, False), (2, 512.0, True)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_first_process_decides_for_all(ranks: Ranks, world: int) -> None:
    """A method may draw random numbers; weights of their own would let the processes drift."""
    weights, value = ranks(world)[0]["minds"]
    assert weights == {"detection": 1.0, "prediction": 1.0}
    for found in ranks(world):
        assert found["minds"][0] == weights
        assert torch.equal(found["minds"][1], value)
