"""Tables and curves of sweeps, from documents made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from turbotrain_plugin.reporting import sweeps
from turbotrain_plugin.reporting.style import save
from turbotrain_plugin.reporting.sweeps import draw_sweeps, sweep_csv, sweep_table


def row(value: float, ap: float | None, fde: float | None) -> dict[str, Any]:
    return {
        "value": value,
        "protocol": {"dataset_mode": "vc"},
        "detection": {"ap_global": {"0.50": ap}, "n_gt": 40},
        "prediction": {"fde_m": fde},
        "end_to_end": {"epa": 0.25},
    }


DOCUMENT = {
    "name": "demo",
    "protocol": {"dataset_mode": "vc", "n_samples": 12},
    "sweeps": [
        {
            "axis": "latency", "label": "latency", "unit": "ms",
            "rows": [row(200, 0.6, 1.5), row(0, 0.9, None), row(100, None, 1.0)],
        },
        {"axis": "drop_out", "label": "messages lost", "unit": "share", "rows": [row(0.5, 0.5, 2)]},
    ],
}  # fmt: skip


def points_of(line: Line2D) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())], axis=1)


def test_one_table_per_axis_and_one_protocol() -> None:
    text = sweep_table(DOCUMENT)
    lines = text.splitlines()
    assert lines[0].split("   ")[0] == "latency [ms]"
    assert [line.split()[0] for line in lines[1:4]] == ["200", "0", "100"]
    assert lines[1].split()[1] == "60.0"
    assert lines[3].split()[1] == "-"
    assert "messages lost [share]" in text
    assert text.count("Protocol:") == 1
    assert "12 samples" in text


def test_csv_has_a_row_per_value() -> None:
    header, *rows = sweep_csv(DOCUMENT).splitlines()
    assert header.startswith("axis,unit,value,")
    assert [line.split(",")[:3] for line in rows] == [
        ["latency", "ms", "200"], ["latency", "ms", "0"], ["latency", "ms", "100"],
        ["drop_out", "share", "0.5"],
    ]  # fmt: skip


def test_curves_are_in_rising_order_without_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, out: Path) -> Path:
        drawn.append(figure)
        return save(figure, out)

    monkeypatch.setattr(sweeps, "save", keep)
    path = draw_sweeps(DOCUMENT, tmp_path / "sweep.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    top, other, below, _ = drawn[0].axes
    lines = {line.get_label(): points_of(line) for line in top.get_lines()}
    np.testing.assert_allclose(lines["AP@0.50"], [(0, 0.9), (200, 0.6)])
    np.testing.assert_allclose(lines["EPA"], [(0, 0.25), (100, 0.25), (200, 0.25)])
    (fde,) = below.get_lines()
    np.testing.assert_allclose(points_of(fde), [(100, 1.0), (200, 1.5)])
    assert below.get_xlabel() == "latency [ms]"
    assert len(other.get_lines()) == 2
    assert below.get_ylim()[0] == 0
    assert below.get_ylim()[1] > 2  # the other axis' largest error fits, too


def test_nothing_measured_is_an_empty_picture(tmp_path: Path) -> None:
    bare = {"value": 0.0, "detection": None}
    document = {"sweeps": [{"axis": "a", "label": "a", "unit": "m", "rows": [bare]}]}
    assert draw_sweeps(document, tmp_path / "sweep.png").exists()
    assert sweep_table(document).startswith("a [m]")
