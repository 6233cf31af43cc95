"""Figures caught before they are written."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure


def catch_figures(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[Figure]:
    """Return the list that gets what ``modules`` would save, laid out as in a file."""
    caught: list[Figure] = []

    def catch(figure: Figure, path: Path) -> Path:
        figure.draw_without_rendering()
        caught.append(figure)
        return path

    for module in modules:
        monkeypatch.setattr(module, "save", catch)
    return caught
