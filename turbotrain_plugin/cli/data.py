"""``data``: make, check, describe and convert data."""

from __future__ import annotations

import argparse
from pathlib import Path

from turbotrain_plugin.cli.common import Verbs


def add_data(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``data`` and its actions."""
    parser = verbs.add_parser("data", help="make, check, describe and convert data")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    synth = actions.add_parser("synth", help="make synthetic V2X scenes")
    synth.add_argument("--preset", default="tiny", help="tiny, small, bench, ...")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    synth.add_argument("--seed", type=int, default=0, help="one seed, the same files")
    synth.add_argument("--workers", type=int, default=2, help="processes")
    synth.add_argument("--tracks", type=Path, metavar="CSV", help="replay these trajectories")
    synth.add_argument(
        "--cloud-stride",
        type=int,
        metavar="N",
        help="write clouds at every N-th frame only (5: the 2 Hz grid, a fifth of the size); "
        "labels stay at the preset's rate",
    )
    synth.add_argument(
        "--noise",
        metavar="SPEC",
        help="flaws of real labels and files, off by default: 'real', or KEY=VALUE,... of "
        "jitter_standing_m, jitter_moving_m, staircase_share, flip_share (reversed yaw), "
        "duplicate_share (second ids), missing_share (labels left out), nan_share (NaN points)",
    )
    synth.add_argument("--resume", action="store_true", help="keep scenes that are complete")
    synth.set_defaults(run=_data_synth)
    for name, help_text, run in (
        ("verify", "look for missing, unreadable and implausible data", _data_verify),
        ("stats", "counts, classes, speeds, points per box", _data_stats),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
        action.add_argument("--json", type=Path, metavar="FILE", help="also write a JSON report")
        action.set_defaults(run=run)
    convert = actions.add_parser("convert", help="write data in the layout of another format")
    convert.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    convert.add_argument("--from", dest="source", default="auto", metavar="FORMAT")
    convert.add_argument("--to", dest="target", required=True, metavar="FORMAT")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    convert.set_defaults(run=_data_convert)


def _data_synth(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import synthesise

    return synthesise(
        options.preset,
        options.out,
        seed=options.seed,
        workers=options.workers,
        tracks=options.tracks,
        resume=options.resume,
        cloud_stride=options.cloud_stride,
        noise=options.noise,
    )


def _data_verify(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import verify

    return verify(options.roots, options.json)


def _data_stats(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import stats

    return stats(options.roots, options.json)


def _data_convert(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import convert

    return convert(options.roots, options.source, options.target, options.out)
