"""Settings of every test: one torch thread (the machine may be small), no cache of the user's."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keep synthetic scenes made by tests out of the user's cache."""
    monkeypatch.setenv("TURBOTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """Undo what a command line called by a test has set up for its own log."""
    logger = logging.getLogger("turbotrain_plugin")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before
