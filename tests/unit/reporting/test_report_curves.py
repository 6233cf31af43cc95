"""Training curves: panels, phases, stages, and damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tests.helpers.caught_figures import catch_figures
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting import curves, draw_curves

Record = dict[str, Any]


def _pretrain(count: int = 20) -> list[Record]:
    return [
        {
            "stage": "pretrain",
            "step": i,
            "stage_step": i,
            "epoch": 0,
            "losses": {"points": 1.0 / (i + 1), "occupancy": 0.1},
            "parts": {},
            "lr": 2e-3,
            "balanced": False,
            "seconds": 0.1,
        }
        for i in range(count)
    ]


def _balance(count: int = 30, first: int = 20, free: int = 10, cycle: int = 15) -> list[Record]:
    records = []
    for i in range(count):
        balanced = i % cycle >= free
        record = _pretrain(1)[0] | {
            "stage": "balance",
            "step": first + i,
            "stage_step": i,
            "losses": {"detection": 2.0, "prediction": 3.0},
            "lr": 2e-3 if i < 20 else 2e-4,
            "balanced": balanced,
        }
        if balanced:
            record |= {"cosine": -0.2, "conflict_rate": 0.6, "task_norms": {"detection": 1.0}}
        records.append(record)
    return records


def _validation(step: int, **metrics: float) -> Record:
    return {"event": "validation", "stage": "balance", "step": step, "metrics": metrics}


def _write(path: Path, records: list[Record], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return catch_figures(monkeypatch, curves)


def _draw(tmp_path: Path, figures: list[Figure], records: list[Record]) -> dict[str, Axes]:
    draw_curves(_write(tmp_path / "metrics.jsonl", records), Path("unused"))
    return {axes.get_ylabel(): axes for axes in figures[-1].axes}


def _xs(line: Line2D) -> list[float]:
    values: list[float] = np.asarray(line.get_xdata(), dtype=float).tolist()
    return values


def _labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_the_curves_of_a_whole_run(tmp_path: Path, figures: list[Figure]) -> None:
    records = [*_pretrain(), *_balance(), _validation(50, **{"ap_0.50": 0.4, "epa": 0.2})]
    panels = _draw(tmp_path, figures, records)
    assert list(panels) == ["task losses", "gradient conflict", "learning rate", "validation"]
    assert _labels(panels["task losses"]) == [
        "points", "occupancy", "detection", "prediction", "balanced phase",
    ]  # fmt: skip
    assert _labels(panels["validation"]) == ["AP@0.50", "EPA"]
    assert figures[0].get_suptitle() == tmp_path.name


def test_a_png_is_written(tmp_path: Path) -> None:
    out = tmp_path / "vis" / "curves.png"
    assert draw_curves(_write(tmp_path / "m.jsonl", _pretrain()), out) == out
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert list(out.parent.iterdir()) == [out]


def test_panels_without_data_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    records = [*_pretrain(), _validation(19), _validation(19, ade_m=1.0), {"event": "x", "step": 3}]
    panels = _draw(tmp_path, figures, records)
    assert list(panels) == ["task losses", "learning rate"]
    assert _labels(panels["task losses"]) == ["points", "occupancy"]


def test_balanced_phases_are_shaded(tmp_path: Path, figures: list[Figure]) -> None:
    panels = _draw(tmp_path, figures, [*_pretrain(), *_balance()])
    for axes in panels.values():
        spans = [
            patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches
        ]
        edges = [(round(span.x0, 3), round(span.x1, 3)) for span in spans]
        assert edges == [(29.5, 34.5), (44.5, 49.5)]


def test_stages_are_named_and_parted(tmp_path: Path, figures: list[Figure]) -> None:
    panels = _draw(tmp_path, figures, [*_pretrain(), *_balance()])
    top = panels["task losses"]
    assert [text.get_text() for text in top.texts] == ["pretrain", "balance"]
    assert not panels["learning rate"].texts
    for axes in panels.values():
        borders = [line for line in axes.lines if len(set(_xs(line))) == 1]
        assert any(_xs(line)[0] == 19.5 for line in borders)


def _line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    line = next(line for line in axes.lines if line.get_label() == label)
    return _xs(line), np.asarray(line.get_ydata(), dtype=float).tolist()


def test_values_stand_at_their_steps(tmp_path: Path, figures: list[Figure]) -> None:
    records = [*_pretrain(), *_balance()]
    records += [_validation(35, **{"ap_0.50": 0.3}), _validation(50, **{"ap_0.50": 0.4})]
    panels = _draw(tmp_path, figures, records)
    assert _line(panels["validation"], "AP@0.50") == ([35, 50], [0.3, 0.4])
    x, y = _line(panels["task losses"], "detection")
    assert x == list(range(20, 50))
    assert set(y) == {2.0}
    x, y = _line(panels["gradient conflict"], "cosine of the task gradients")
    assert x == [*range(30, 35), *range(45, 50)]
    assert set(y) == {-0.2}


def test_conflict_rate_does_not_bridge_free_phases(tmp_path: Path, figures: list[Figure]) -> None:
    panels = _draw(tmp_path, figures, [*_pretrain(), *_balance()])
    rates = [
        _xs(line)
        for line in panels["gradient conflict"].lines
        if np.allclose(np.asarray(line.get_ydata(), dtype=float), 0.6)
    ]
    assert rates == [list(range(30, 35)), list(range(45, 50))]


def test_long_stages_are_smoothed(tmp_path: Path, figures: list[Figure]) -> None:
    records = _pretrain(500)
    for i, record in enumerate(records):
        record["losses"] = {"points": 1.0 + (i % 2)}
    panels = _draw(tmp_path, figures, records)
    x, y = _line(panels["task losses"], "points")
    np.testing.assert_allclose(y, 1.5)  # ten steps a mean
    assert x[0] == 5
    assert len(panels["task losses"].lines) == 2  # every step is there too


@pytest.mark.parametrize(("lowest", "scale"), [(1e-5, "log"), (1e-3, "linear"), (0.0, "linear")])
def test_learning_rate_is_logarithmic_only_over_decades(
    tmp_path: Path, figures: list[Figure], lowest: float, scale: str
) -> None:
    records = _pretrain()
    records[-1]["lr"] = lowest
    assert _draw(tmp_path, figures, records)["learning rate"].get_yscale() == scale


def test_a_single_step_is_seen(tmp_path: Path, figures: list[Figure]) -> None:
    axes = _draw(tmp_path, figures, _pretrain(1))["task losses"]
    assert all(line.get_marker() == "o" for line in axes.lines)


def test_losses_that_are_zero_or_missing(tmp_path: Path) -> None:
    records = _pretrain(5)
    records[1]["losses"] = {}
    records[2]["losses"] = {"points": 0.0, "occupancy": 0.0}
    del records[3]["lr"]
    draw_curves(_write(tmp_path / "m.jsonl", records), tmp_path / "a.png")


def test_a_line_cut_short_by_a_killed_run_is_ignored(tmp_path: Path, figures: list[Figure]) -> None:
    path = _write(tmp_path / "m.jsonl", _pretrain(), tail='{"stage": "pretr')
    draw_curves(path, Path("unused"))
    assert _line(figures[0].axes[0], "points")[0] == list(range(20))


def test_refuses_damaged_missing_and_empty_files(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text('{"step": 1, "losses": {}}\n{"step":\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"damaged\.jsonl:2: not a JSON object"):
        draw_curves(damaged, tmp_path / "a.png")
    no_step = _write(tmp_path / "no_step.jsonl", [{"losses": {}}])
    with pytest.raises(UserError, match=r"no_step\.jsonl:1: must be a JSON object with a `step`"):
        draw_curves(no_step, tmp_path / "a.png")
    with pytest.raises(UserError, match=r"nothing\.jsonl: cannot be read"):
        draw_curves(tmp_path / "nothing.jsonl", tmp_path / "a.png")
    empty = _write(tmp_path / "empty.jsonl", [_validation(3)])
    with pytest.raises(UserError, match=r"empty\.jsonl: holds no training step"):
        draw_curves(empty, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
