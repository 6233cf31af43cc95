"""``report``: pictures and tables of what runs have logged."""

from __future__ import annotations

import argparse
from pathlib import Path

from turbotrain_plugin.cli.common import Verbs


def add_report(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``report`` and its actions."""
    parser = verbs.add_parser("report", help="pictures and tables of what runs have logged")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    conflicts = actions.add_parser(
        "conflicts", help="how the task gradients met: over time, by module"
    )
    conflicts.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder(s); several are overlaid"
    )
    conflicts.add_argument(
        "--out", type=Path, metavar="FILE", help="PNG (default: conflicts.png in the first run)"
    )
    conflicts.add_argument(
        "--window", type=int, default=50, metavar="N", help="measured steps of a running mean (50)"
    )
    conflicts.set_defaults(run=_conflicts)


def _conflicts(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.records import emit
    from turbotrain_plugin.errors import UserError
    from turbotrain_plugin.reporting.conflict_plots import draw_conflicts
    from turbotrain_plugin.reporting.conflicts import conflict_table, read_conflicts

    if options.window < 1:
        raise UserError(f"--window must be 1 or more. Found {options.window}.")
    first = options.runs[0]
    out = options.out or (first if first.is_dir() else first.parent) / "conflicts.png"
    logs = [read_conflicts(run) for run in options.runs]
    for log in logs:
        emit(conflict_table(log) + "\n")
    emit(str(draw_conflicts(logs, out, options.window)))
    return 0
