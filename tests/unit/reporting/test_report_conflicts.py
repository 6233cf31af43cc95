"""``opencood report conflicts``: the table by hand, the picture by its parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.helpers.caught_figures import catch_figures
from turbotrain_plugin.cli import main
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting import conflict_plots
from turbotrain_plugin.reporting.conflict_plots import draw_conflicts, module_means, running_mean
from turbotrain_plugin.reporting.conflicts import conflict_table, read_conflicts

Record = dict[str, Any]


def step(number: int, *, balanced: bool, cosine: float | None = None, **more: Any) -> Record:  # noqa: ANN401
    record: Record = {"stage": "balance", "step": number, "taken": True, "balanced": balanced}
    if cosine is not None:
        record |= {
            "cosines": {"det/pred": cosine},
            "task_norms": {"det": 4.0, "pred": 1.0},
            "modules": {
                "encoder": {
                    "cosines": {"det/pred": 0.5},
                    "task_norms": {"det": math.sqrt(12.0), "pred": 0.8},
                },
                "fusion": {
                    "cosines": {"det/pred": -0.25},
                    "task_norms": {"det": 2.0, "pred": 0.6},
                },
            },
        }
        if balanced:
            record["task_weights"] = {"det": 1.5, "pred": 2.0}
    return record | more


def run_of(*, cycles: int = 2, free: int = 8, balanced: int = 4, every: int = 4) -> list[Record]:
    """Free steps with probes (cosine +0.25), then balanced ones (-0.5), again."""
    records: list[Record] = [{"stage": "pretrain", "step": n, "balanced": False} for n in range(5)]
    for number in range(cycles * (free + balanced)):
        place = number % (free + balanced)
        if place >= free:
            records.append(step(5 + number, balanced=True, cosine=-0.5))
        else:
            probed = 0.25 if every and number % every == 0 else None
            records.append(step(5 + number, balanced=False, cosine=probed))
    records.append({"event": "validation", "step": records[-1]["step"], "metrics": {}})
    return records


def write(folder: Path, records: list[Record]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    return catch_figures(monkeypatch, conflict_plots)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_ylabel() or axes.get_title(loc="left"): axes for axes in figure.axes}


def labels(axes: Axes) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


# -------------------------------------------------------------------------------------------- table


def cells(table: str, start: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(start)]
    return line.removeprefix(start).split()


def test_the_table_by_hand(tmp_path: Path) -> None:
    table = conflict_table(read_conflicts(write(tmp_path / "some", run_of())))
    assert table.startswith("some: 29 training steps, measured: 4 free, probed, 8 balanced")
    free = cells(table, "det/pred, free, probed")
    assert free == ["4", "+0.250", "+0.250", "+0.250", "+0.250", "0%"]
    assert cells(table, "det/pred, balanced") == ["8", *["-0.500"] * 4, "100%"]
    # 12 of 16 and 0.64 of 1 lie in the encoder.
    assert cells(table, "encoder") == ["+0.500", "0%", "75%", "64%"]
    assert cells(table, "fusion") == ["-0.250", "100%", "25%", "36%"]
    assert cells(table, "det  ") == ["4", "1.5", "1.5", "1.5", "1.5"]


def test_quantiles_and_pooled_cosine(tmp_path: Path) -> None:
    records = [step(n, balanced=True, cosine=c / 10 - 0.5) for n, c in enumerate(range(11))]
    records[0]["task_norms"] = {"det": 400.0, "pred": 100.0}  # swamps the others: cosine -0.5
    table = conflict_table(read_conflicts(write(tmp_path, records)))
    found = cells(table, "det/pred, balanced")
    assert found == ["11", "+0.000", "-0.400", "+0.400", "-0.499", "45%"]


def test_three_tasks_have_a_column_a_pair(tmp_path: Path) -> None:
    record = step(0, balanced=True)
    names = ("a/b", "a/c", "b/c")
    figures = {
        "cosines": dict(zip(names, (0.1, -0.2, 0.3), strict=True)),
        "task_norms": {"a": 1.0, "b": 2.0, "c": 3.0},
    }
    record |= {**figures, "task_weights": {"a": 1.0, "b": 1.0, "c": 2.0}}
    record["modules"] = {"neck": figures}
    table = conflict_table(read_conflicts(write(tmp_path, [record])))
    assert cells(table, "neck") == ["+0.100", "-0.200", "+0.300", "33%", *["100%"] * 3]
    assert [cells(table, f"{name}, balanced")[1] for name in names] == [
        "+0.100",
        "-0.200",
        "+0.300",
    ]


def test_what_is_missing_is_a_dash_or_left_out(tmp_path: Path) -> None:
    probed = step(0, balanced=False, cosine=0.5)
    table = conflict_table(read_conflicts(write(tmp_path / "a", [probed])))
    assert cells(table, "det  ") == ["4", "-", "-", "-", "-"]
    older = step(0, balanced=True, cosine=0.5)
    del older["modules"]
    table = conflict_table(read_conflicts(write(tmp_path / "b", [older])))
    assert "module" not in table


def test_steps_that_were_not_taken_do_not_count(tmp_path: Path) -> None:
    records = [step(0, balanced=True, cosine=0.5), step(1, balanced=True, cosine=-0.5, taken=False)]
    log = read_conflicts(write(tmp_path, records))
    assert [record["step"] for record in log.measured] == [0]


def test_a_run_without_figures_says_how_to_get_some(tmp_path: Path) -> None:
    write(tmp_path, run_of(balanced=0, every=0))
    with pytest.raises(
        UserError, match=r"no step whose task gradients .*turbotrain\.balance\.probe_every"
    ):
        read_conflicts(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_conflicts(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------ picture


def test_the_parts_of_the_picture(tmp_path: Path, figures: list[Figure]) -> None:
    draw_conflicts([read_conflicts(write(tmp_path, run_of()))], Path("unused"), window=5)
    found = panels(figures[0])
    rate = "conflicting share\nof 5 steps"
    assert {"cosine", "gradient norm", rate, "mean cosine by module"} <= set(found)
    assert labels(found["cosine"]) == ["det/pred", "balanced phase"]
    assert labels(found["gradient norm"]) == ["det", "pred"]
    heat = found["mean cosine by module"]
    assert [text.get_text() for text in heat.get_yticklabels()] == ["encoder", "fusion"]
    assert heat.yaxis_inverted()
    for name in ("cosine", "gradient norm", rate):
        axes = found[name]
        inverse = axes.transData.inverted()
        spans = [patch.get_extents().transformed(inverse) for patch in axes.patches]
        assert [(round(s.x0, 2), round(s.x1, 2)) for s in spans] == [(12.5, 16.5), (24.5, 28.5)]
    left, right = heat.get_xlim()
    assert left < 5 < 28 < right  # the stage that was measured, not the pretraining before it
    assert left > 0


def test_steps_are_at_their_place(tmp_path: Path, figures: list[Figure]) -> None:
    draw_conflicts([read_conflicts(write(tmp_path, run_of()))], Path("unused"))
    dots = panels(figures[0])["cosine"].lines[0]
    x, y = np.asarray(dots.get_xdata()), np.asarray(dots.get_ydata())
    assert x.tolist() == [5, 9, 13, 14, 15, 16, 17, 21, 25, 26, 27, 28]
    assert y.tolist() == [0.25, 0.25, *[-0.5] * 4, 0.25, 0.25, *[-0.5] * 4]


def test_several_runs_share_a_picture_and_no_shade(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [write(tmp_path / name, run_of(free=free)) for name, free in (("one", 8), ("two", 4))]
    draw_conflicts([read_conflicts(run) for run in runs], Path("unused"))
    found = panels(figures[0])
    assert labels(found["cosine"]) == ["one\ndet/pred", "two\ndet/pred"]
    assert "mean cosine by module, one" in found
    assert "mean cosine by module, two" in found
    assert not found["cosine"].patches


def test_a_run_without_modules_has_no_heat_map(tmp_path: Path, figures: list[Figure]) -> None:
    records = run_of()
    for record in records:
        record.pop("modules", None)
    draw_conflicts([read_conflicts(write(tmp_path, records))], Path("unused"))
    assert len(figures[0].axes) == 3


def test_columns_of_the_heat_map_are_means(tmp_path: Path) -> None:
    records = [step(n, balanced=True, cosine=0.0) for n in range(96)]
    for n, record in enumerate(records):
        record["modules"]["encoder"]["cosines"] = {"det/pred": n / 100}
    for record in records[48:52]:
        del record["modules"]  # such as a step of source feature: nothing is known
    edges, means = module_means(read_conflicts(write(tmp_path, records)), "det/pred")
    assert edges.tolist() == np.linspace(-0.5, 95.5, 49).tolist()
    assert means.shape == (2, 48)
    assert means[0, :3] == pytest.approx([0.005, 0.025, 0.045])
    assert np.isnan(means[:, 24:26]).all()
    assert means[1, 0] == pytest.approx(-0.25)


def test_a_column_is_not_narrower_than_probes_lie_apart(tmp_path: Path) -> None:
    records = [step(n, balanced=False, cosine=0.1 if n % 20 == 0 else None) for n in range(100)]
    edges, means = module_means(read_conflicts(write(tmp_path, records)), "det/pred")
    assert len(edges) == 6
    assert np.isfinite(means).all()


def test_the_running_mean_by_hand() -> None:
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    found = running_mean(values, 4)
    assert found.tolist() == [1.0, 0.5, 2 / 3, 0.75, 0.5, 0.5]
    late = running_mean(values, 12)
    assert np.isnan(late[:2]).all()
    assert late[2:].tolist() == pytest.approx([2 / 3, 0.75, 0.6, 0.5])
    assert running_mean(values[:1], 50).tolist() == [1.0]


# ------------------------------------------------------------------------------------- command line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", run_of())
    assert main(["report", "conflicts", str(run)]) == 0
    assert (run / "conflicts.png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert "det/pred, balanced" in text
    assert str(run / "conflicts.png") in text
    out = tmp_path / "other" / "two.png"
    assert main(["report", "conflicts", str(run), str(run), "--out", str(out)]) == 0
    assert out.is_file()


def test_mistakes_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "conflicts", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    assert main(["report", "conflicts", str(tmp_path), "--window", "0"]) == 2
    assert "--window" in capsys.readouterr().err
