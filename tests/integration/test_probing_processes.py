"""Probing in two processes: the gradients of all samples are compared, and nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.helpers.probed_processes import one_rank, probed

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo",
)


def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    spawn(one_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    alone = probed(0, 1, 1)
    for found, expected in zip(first[1]["records"], alone["records"], strict=True):
        assert found["cosine"] == pytest.approx(expected["cosine"], rel=1e-9)
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-9)
        assert list(found["modules"]) == ["encoder", "trunk", "extra"]
        for name, norms in found["modules"].items():
            assert norms == pytest.approx(expected["modules"][name], rel=1e-9)
    assert second[1]["records"] == first[1]["records"]
    for key, value in first[0]["weights"].items():
        assert torch.equal(first[1]["weights"][key], value), key
        assert torch.equal(second[1]["weights"][key], value), key
