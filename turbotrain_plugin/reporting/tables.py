"""Tables of ``results.json`` for the console, Markdown and CSV, each with its protocol.

A results dictionary may lack any part, and any value may be None (not measured): a dash is shown,
in CSV an empty cell. Fractions become per cent in tables and stay fractions in CSV.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

MISSING: Final = "-"

Results = Mapping[str, Any]


def results_table(*results: Results) -> str:
    """Return console text: one result in full, or several as rows to compare."""
    protocols = "\n".join(_wrapped(line) for line in _protocols(results).split("\n"))
    if len(results) == 1:
        blocks = [_detection(results[0]), _distances(results[0]), _prediction(results[0])]
        text = "\n\n".join(aligned(block) for block in blocks if len(block) > 1)
        counts = _wrapped(_counts(results[0]))
        return "\n\n".join(part for part in (text, counts, protocols) if part)
    return aligned(comparison(results)) + "\n\n" + protocols


def results_markdown(*results: Results) -> str:
    """Return a Markdown table with one row per result, and the protocol under it."""
    header, *rows = comparison(results)
    lines = [_markdown_row(header), "|---|" + "---:|" * (len(header) - 1)]
    lines += [_markdown_row(row) for row in rows]
    return "\n".join([*lines, "", _protocols(results)]) + "\n"


def results_csv(*results: Results) -> str:
    """Return CSV with one row per result: every value under its dotted name, the protocol too."""
    rows = [dict(_flat(result)) for result in results]
    names = dict.fromkeys(name for row in rows for name in row)
    # A part that one result lacks (None) is no column where another result has values in it.
    columns = [name for name in names if not any(n.startswith(f"{name}.") for n in names)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def protocol_line(results: Results) -> str:
    """Return one sentence with what the numbers of a result depend on, and over how many."""
    protocol = _part(results, "protocol")
    if not protocol:
        return "Protocol: not recorded."
    parts = [text.format(value) for key, text in _PROTOCOL if (value := _words(protocol, key))]
    digest = str(protocol.get("split_sha256") or "")[:12]
    return "Protocol: " + "; ".join(parts + ([f"split {digest}"] if digest else [])) + "."


_PROTOCOL: Final = (
    ("evaluation_range_m", "range {}"),
    ("range_rule", "{}"),
    ("dataset_mode", "mode {}"),
    ("ego_rule", "ego: {}"),
    ("comm_range_m", "agents within {} m"),
    ("max_agents", "at most {} agents"),
    ("ap_global_order", "AP sorted by {}"),
    ("ap_opencood_order", "AP (OpenCOOD) sorted by {}"),
    ("iou_kind", "IoU: {}"),
    ("score_threshold", "score > {}"),
    ("nms_iou", "NMS {}"),
    ("max_box_extent_m", "boxes up to {} m"),
    ("min_points", "objects of {} or more points"),
    ("match", "match {}"),
    ("miss_m", "miss above {} m"),
    ("epa_alpha", "EPA alpha {}"),
    ("epa_gt", "EPA objects {}"),
    ("disturbances", "disturbed: {}"),
    ("label_repairs", "labels repaired: {}"),
    ("n_samples", "{} samples"),
)
"""What of the protocol is said under a table, in order; all of it is in ``protocol.yaml``."""


def _words(protocol: Results, key: str) -> str:
    value = protocol.get(key)
    if value is None or value == "" or (key == "max_box_extent_m" and not value):
        return ""
    if key == "evaluation_range_m" and len(value) == 6:
        low_x, low_y, _, high_x, high_y, _ = (f"{limit:g}" for limit in value)
        return f"x {low_x} to {high_x} m, y {low_y} to {high_y} m"
    # Semicolons part the entries of the line.
    return f"{value:g}" if isinstance(value, float) else str(value).replace(";", ",")


def _protocols(results: Sequence[Results]) -> str:
    """Return the protocol of all results, or what differs, because then they do not compare."""
    if not results:
        return ""
    protocols = [_part(result, "protocol") for result in results]
    names = dict.fromkeys(name for protocol in protocols for name in protocol)
    differing = [
        name for name in names if any(p.get(name) != protocols[0].get(name) for p in protocols)
    ]
    if not differing:
        return protocol_line(results[0])
    listed = (f"{_name(result, i)}: {protocol_line(result)}" for i, result in enumerate(results))
    warning = f"The protocols differ ({', '.join(differing)}): these numbers do not compare."
    return "\n".join([warning, *listed])


# ------------------------------------------------------------------------------------- one result


def _detection(results: Results) -> list[list[str]]:
    detection = _part(results, "detection")
    thresholds = _thresholds([results])
    rows = [["Detection, AP in %", *(f"IoU {name}" for name in thresholds)]]
    for key, label in (
        ("ap_global", "sorted over all samples"),
        ("ap_opencood", "OpenCOOD's order"),
    ):
        values = _part(detection, key)
        if values:
            rows.append([f"  {label}", *(_per_cent(values.get(name)) for name in thresholds)])
    return rows


def _distances(results: Results) -> list[list[str]]:
    bins = _part(_part(results, "detection"), "ap_global_by_distance")
    if not bins:
        return []
    iou = _part(results, "protocol").get("distance_iou")
    label = "AP by distance, %" if iou is None else f"AP by distance, IoU {iou:.2f}, %"
    return [
        [label, *(f"{name} m" for name in bins)],
        ["  sorted over all samples", *(_per_cent(value) for value in bins.values())],
    ]


def _prediction(results: Results) -> list[list[str]]:
    values, end = _part(results, "prediction"), _part(results, "end_to_end")
    if not values and not end:
        return []
    rows = [
        ["Prediction", "ADE m", "FDE m", "MR %", "EPA"],
        [
            "  matched objects",
            _metres(values.get("ade_m")),
            _metres(values.get("fde_m")),
            _per_cent(values.get("mr")),
            _plain(end.get("epa")),
        ],
        ["  predicted to stay", MISSING, _metres(values.get("fde_static_m")), MISSING, MISSING],
    ]
    if values.get("fde_moving_m") is not None:
        still = _metres(values.get("fde_moving_static_m"))
        rows.append(
            ["  moving objects", MISSING, _metres(values["fde_moving_m"]), MISSING, MISSING]
        )
        rows.append(["  moving, predicted to stay", MISSING, still, MISSING, MISSING])
    return rows


def _counts(results: Results) -> str:
    detection, end = _part(results, "detection"), _part(results, "end_to_end")
    counted = {
        "objects": detection.get("n_gt"),
        "detections": detection.get("n_det"),
        "matched": _part(results, "prediction").get("n_matched"),
        "EPA hits": end.get("n_hit"),
        "EPA false positives": end.get("n_fp"),
        "EPA objects": end.get("n_gt"),
        "EPA unclipped": _plain(end.get("epa_unclipped")) if end else None,
        "message": _bytes(results.get("message_bytes")),
    }
    parts = [f"{name} {value}" for name, value in counted.items() if value is not None]
    return "Counts: " + ", ".join(parts) + "." if parts else ""


# --------------------------------------------------------------------------------- several results


def comparison(results: Sequence[Results]) -> list[list[str]]:
    """Return a header and one row of cells per result."""
    thresholds = _thresholds(results)
    header = ["run", *(f"AP@{name} %" for name in thresholds)]
    header += [f"AP@{name} % (OpenCOOD)" for name in thresholds]
    header += ["ADE m", "FDE m", "FDE static m", "MR %", "EPA", "objects", "detections", "matched"]
    return [header, *(_row(result, i, thresholds) for i, result in enumerate(results))]


def _row(results: Results, index: int, thresholds: Sequence[str]) -> list[str]:
    detection, prediction = _part(results, "detection"), _part(results, "prediction")
    row = [_name(results, index)]
    for key in ("ap_global", "ap_opencood"):
        row += [_per_cent(_part(detection, key).get(name)) for name in thresholds]
    row += [_metres(prediction.get(key)) for key in ("ade_m", "fde_m", "fde_static_m")]
    row += [_per_cent(prediction.get("mr")), _plain(_part(results, "end_to_end").get("epa"))]
    counts = (detection.get("n_gt"), detection.get("n_det"), prediction.get("n_matched"))
    return row + [MISSING if count is None else str(count) for count in counts]


def _name(results: Results, index: int) -> str:
    return str(results.get("name") or f"run {index + 1}")


def _thresholds(results: Sequence[Results]) -> list[str]:
    names = {
        name
        for result in results
        for key in ("ap_global", "ap_opencood")
        for name in _part(_part(result, "detection"), key)
    }
    return sorted(names, key=float)


# ------------------------------------------------------------------------------------------- cells


def _part(results: Results, key: str) -> Results:
    value = results.get(key)
    return value if isinstance(value, Mapping) else {}


def _per_cent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _metres(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _plain(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _bytes(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value / 1e6:.2f} MB per neighbour and frame"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("   ".join(cells).rstrip())
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flat(value: Results, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}.")
        elif isinstance(item, list | tuple):
            yield name, json.dumps(item)
        else:
            yield name, item
