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
    _add_verify(actions)
    _add_stats(actions)
    _add_browse(actions)
    _add_tree(actions)
    convert = actions.add_parser("convert", help="write data in the layout of another format")
    convert.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    convert.add_argument("--from", dest="source", default="auto", metavar="FORMAT")
    convert.add_argument("--to", dest="target", required=True, metavar="FORMAT")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    convert.set_defaults(run=_data_convert)


def _add_verify(actions: Verbs[argparse.ArgumentParser]) -> None:
    verify = actions.add_parser(
        "verify",
        help="look for missing, unreadable and implausible data",
        description=(
            "Check files, times, poses, labels, clouds, map and splits. Every label file is read "
            "and every cloud's size is looked at; every n-th cloud is read whole, one at a time. "
            "Exit code 0 without errors (with --strict: without warnings), else 1."
        ),
    )
    _add_roots(verify)
    _add_stride(verify, "read every n-th frame's clouds (default 10)")
    verify.add_argument("--all", action="store_true", help="read all clouds: --stride 1")
    verify.add_argument("--strict", action="store_true", help="exit code 1 for warnings, too")
    verify.set_defaults(run=_data_verify)


def _add_stats(actions: Verbs[argparse.ArgumentParser]) -> None:
    stats = actions.add_parser("stats", help="counts, classes, speeds, ranges, points per box")
    _add_roots(stats)
    stats.add_argument("--plots", type=Path, metavar="PNG", help="also draw a page of plots")
    _add_stride(stats, "count points in every n-th cloud (default 10)")
    stats.set_defaults(run=_data_stats)


def _add_browse(actions: Verbs[argparse.ArgumentParser]) -> None:
    browse = actions.add_parser(
        "browse", help="draw a scene with all its agents from above (PNG or GIF)"
    )
    browse.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    browse.add_argument("--scene", help="name or number (default: the first)")
    browse.add_argument("--frame", type=int, help="10 Hz frame (default: the middle one)")
    browse.add_argument("--out", type=Path, metavar="FILE", help=".png, or .gif for the scene")
    browse.add_argument(
        "--around", type=float, default=50.0, metavar="M", help="metres shown around the agents"
    )
    browse.add_argument("--step", type=int, default=1, metavar="N", help="GIF: every n-th frame")
    browse.set_defaults(run=_data_browse)


def _add_tree(actions: Verbs[argparse.ArgumentParser]) -> None:
    tree = actions.add_parser("tree", help="the expected folders and files against those found")
    tree.add_argument("root", type=Path, metavar="ROOT")
    tree.add_argument("--json", type=Path, metavar="FILE", help="also write it as JSON")
    tree.add_argument("--scenes", type=int, default=10, metavar="N", help="shown of every split")
    tree.set_defaults(run=_data_tree)


def _add_roots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write a JSON report")


def _add_stride(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--stride", type=int, default=10, metavar="N", help=help_text)


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

    stride = 1 if options.all else options.stride
    return verify(options.roots, options.json, stride=stride, strict=options.strict)


def _data_stats(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import stats

    return stats(options.roots, options.json, plots=options.plots, stride=options.stride)


def _data_browse(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_views import browse

    return browse(
        options.roots,
        scene=options.scene,
        frame=options.frame,
        out=options.out,
        around_m=options.around,
        step=options.step,
    )


def _data_tree(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_views import tree

    return tree(options.root, options.json, scenes=options.scenes)


def _data_convert(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import convert

    return convert(options.roots, options.source, options.target, options.out)
