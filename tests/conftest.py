"""Settings of every test: one torch thread (the machine may be small), no cache of the user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep synthetic scenes made by tests out of the user's cache."""
    monkeypatch.setenv("TURBOTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
