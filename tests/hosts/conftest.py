"""The fake host and its data for every test here; real checkouts where variables name them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.made_host import FAKE_HOST, forget_host, write_frames


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``train`` (8 frames) and ``validate`` (4 frames)."""
    root = tmp_path_factory.mktemp("frames")
    write_frames(root / "train", scenes=2, frames=4)
    write_frames(root / "validate", scenes=1, frames=4, seed=1)
    return root


@pytest.fixture
def fake_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Name the fake host as the user's checkout; nothing of a host is loaded before or after."""
    forget_host()
    monkeypatch.setenv("OPENCOOD_ROOT", str(FAKE_HOST))
    yield FAKE_HOST
    forget_host()
