"""Result tables: what is shown, what may be missing, and that the protocol is always there."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from turbotrain_plugin.reporting import (
    protocol_line,
    results_csv,
    results_markdown,
    results_table,
)


def _results(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "schema": 1,
        "name": "tiny",
        "protocol": {
            "evaluation_range_m": [-102.4, -40, -5, 102.4, 40, 3],
            "dataset_mode": "vc",
            "ego_rule": "vehicles first; ids sorted as text",
            "ap_global_order": "falling score",
            "score_threshold": 0.2,
            "max_box_extent_m": 0.0,
            "distance_iou": 0.5,
            "match": "center_2m",
            "n_samples": 120,
            "split_sha256": "0123456789abcdef",
        },
        "detection": {
            "ap_global": {"0.30": 0.8124, "0.50": 0.7, "0.70": 0.4},
            "ap_opencood": {"0.30": 0.79, "0.50": 0.68, "0.70": 0.39},
            "ap_global_by_distance": {"0-30": 0.9, "30-50": None},
            "n_gt": 1234,
            "n_det": 1500,
        },
        "prediction": {
            "ade_m": 0.534,
            "fde_m": 1.02,
            "mr": 0.125,
            "fde_static_m": 3.21,
            "n_matched": 8,
        },
        "end_to_end": {"epa": 0.5126, "epa_unclipped": 0.5126, "n_hit": 5, "n_fp": 1, "n_gt": 10},
        "message_bytes": 2_500_000,
        "stages": [{"name": "pretrain", "steps": 900}],
    } | changes


def _cells(table: str, start: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.strip().startswith(start))
    return line.strip().removeprefix(start).split()


def test_one_result_in_full() -> None:
    table = results_table(_results())
    assert _cells(table, "sorted over all samples") == ["81.2", "70.0", "40.0"]
    assert _cells(table, "OpenCOOD's order") == ["79.0", "68.0", "39.0"]
    assert _cells(table, "matched objects") == ["0.53", "1.02", "12.5", "0.513"]
    assert _cells(table, "predicted to stay") == ["-", "3.21", "-", "-"]
    assert "objects 1234, detections 1500, matched 8" in table
    assert "message 2.50 MB per neighbour and frame" in table
    assert "AP by distance, IoU 0.50, %" in table


def test_columns_are_aligned() -> None:
    block = results_table(_results()).split("\n\n")[0].splitlines()
    assert len(block) == 3
    assert len({len(line) for line in block}) == 1


def test_moving_objects_are_shown_when_measured() -> None:
    prediction = _results()["prediction"] | {"fde_moving_m": 1.5, "fde_moving_static_m": 8.1}
    table = results_table(_results(prediction=prediction))
    assert _cells(table, "moving objects") == ["-", "1.50", "-", "-"]
    assert _cells(table, "moving, predicted to stay") == ["-", "8.10", "-", "-"]
    assert "moving" not in results_table(_results())


def test_no_line_of_the_single_table_is_longer_than_the_console() -> None:
    protocol = _results()["protocol"] | {"ap_opencood_order": "samples by key " * 10}
    lines = results_table(_results(protocol=protocol)).splitlines()
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction": None, "end_to_end": None},
        {"prediction": {}, "end_to_end": {}},
        {"prediction": {"ade_m": None, "fde_m": None, "mr": None, "n_matched": 0}},
        {"detection": {"ap_global": {"0.50": None}, "n_gt": 0, "n_det": 0}},
        {"detection": None},
        {"protocol": {}, "message_bytes": None},
        {"name": None, "stages": []},
    ],
)
def test_missing_parts_become_dashes(changes: dict[str, Any]) -> None:
    results = _results(**changes)
    for text in (results_table(results), results_markdown(results), results_csv(results)):
        assert "None" not in text
        assert "nan" not in text
    assert "Protocol: " in results_table(results)
    assert "Protocol: " in results_markdown(results)
    assert "None" not in results_table(results, _results())


def test_prediction_without_a_value_is_a_dash_not_a_zero() -> None:
    table = results_table(_results(prediction={"ade_m": None}, end_to_end={"epa": 0.0}))
    assert _cells(table, "matched objects") == ["-", "-", "-", "0.000"]


def test_an_empty_dictionary() -> None:
    assert results_table({}) == "Protocol: not recorded."
    assert "| run 1 |" in results_markdown({})
    assert results_csv({}).strip() == ""


def test_protocol_line_says_what_the_numbers_depend_on() -> None:
    line = protocol_line(_results())
    for part in (
        "range x -102.4 to 102.4 m, y -40 to 40 m",
        "mode vc",
        "ego: vehicles first, ids sorted as text",
        "AP sorted by falling score",
        "score > 0.2",
        "match center_2m",
        "120 samples",
        "split 0123456789ab.",
    ):
        assert part in line
    assert "boxes up to" not in line  # 0: no limit


def test_several_results_are_rows() -> None:
    other = _results(name="other", prediction=None, end_to_end=None)
    table = results_table(_results(), other).splitlines()
    assert table[0].split()[0] == "run"
    assert table[1].split()[:4] == ["tiny", "81.2", "70.0", "40.0"]
    assert table[2].split()[-1] == "-"
    assert table[2].split()[7:12] == ["-"] * 5
    assert "differ" not in "\n".join(table)


def test_thresholds_of_all_results_are_columns() -> None:
    other = _results(detection={"ap_global": {"0.25": 0.9, "0.50": 0.8}})
    header = results_markdown(_results(), other).splitlines()[0]
    named = [cell.strip() for cell in header.split("|")]
    assert named[2:6] == ["AP@0.25 %", "AP@0.30 %", "AP@0.50 %", "AP@0.70 %"]
    first, second = results_markdown(_results(), other).splitlines()[2:4]
    assert first.split("|")[2].strip() == "-"
    assert second.split("|")[2].strip() == "90.0"


def test_results_under_different_protocols_are_told_apart() -> None:
    protocol = _results()["protocol"] | {"score_threshold": 0.3, "match": "center_1m"}
    for text in (
        results_table(_results(), _results(name="other", protocol=protocol)),
        results_markdown(_results(), _results(name="other", protocol=protocol)),
    ):
        assert (
            "The protocols differ (score_threshold, match): these numbers do not compare." in text
        )
        assert "other: Protocol: " in text


def test_markdown_is_a_table() -> None:
    lines = results_markdown(_results(name="a|b")).splitlines()
    header, rule, row = lines[:3]
    assert rule.startswith("|---|---:|")
    assert header.count("|") == rule.count("|") == row.count("|") - 1  # one is escaped
    assert "a\\|b" in row


def test_csv_keeps_plain_fractions_and_the_protocol() -> None:
    (row,) = csv.DictReader(io.StringIO(results_csv(_results())))
    assert row["detection.ap_global.0.30"] == "0.8124"
    assert row["prediction.mr"] == "0.125"
    assert row["protocol.score_threshold"] == "0.2"
    assert json.loads(row["protocol.evaluation_range_m"]) == [-102.4, -40, -5, 102.4, 40, 3]
    assert json.loads(row["stages"]) == [{"name": "pretrain", "steps": 900}]
    assert row["detection.ap_global_by_distance.30-50"] == ""


def test_csv_of_several_results_has_the_columns_of_all() -> None:
    text = results_csv(_results(prediction=None), _results(name="other", extra={"x": 1}))
    first, second = csv.DictReader(io.StringIO(text))
    assert first["extra.x"] == ""
    assert second["extra.x"] == "1"
    assert first["prediction.ade_m"] == ""
    assert second["prediction.ade_m"] == "0.534"
    assert "prediction" not in first  # a part without values is no column


def test_csv_quotes_names_with_commas() -> None:
    (row,) = csv.DictReader(io.StringIO(results_csv(_results(name='a, "b"'))))
    assert row["name"] == 'a, "b"'
