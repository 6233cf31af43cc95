"""``host``: checkouts of OpenCOOD and its forks, their patches and data for them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from turbotrain_plugin.cli.common import Verbs


def add_host(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``host`` and its actions."""
    parser = verbs.add_parser("host", help="your checkout of OpenCOOD or a fork of it")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text in (
        ("check", "say what a checkout is and whether it is patched"),
        ("apply", "add one line to its scripts (see patches/README.md)"),
        ("revert", "take the line out again, to the byte"),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("--checkout", default="", metavar="DIR", help="default: OPENCOOD_ROOT")
        action.set_defaults(run=_host_patch)
    data = actions.add_parser("data", help="write data sets in the shape the hosts can read")
    data.add_argument("roots", nargs="+", type=Path, metavar="ROOT")
    data.add_argument("--from", dest="source", default="auto", metavar="FORMAT")
    data.add_argument(
        "--clouds",
        choices=("pcd", "bin"),
        default="pcd",
        help="pcd: OpenCOOD, HEAL; bin: V2X-Real, CooPre",
    )
    data.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    data.set_defaults(run=_host_data)


def _host_patch(options: argparse.Namespace) -> int:
    from turbotrain_plugin.hosts import host_named
    from turbotrain_plugin.hosts.checkout import locate
    from turbotrain_plugin.hosts.patching import UNKNOWN, shipped_patch

    root = locate(options.checkout)
    host = host_named("auto", root)
    patch = shipped_patch(host.name)
    if options.action == "apply":
        sys.stdout.write(f"{root}: {patch.apply(root)} files patched\n")
    elif options.action == "revert":
        sys.stdout.write(f"{root}: {patch.revert(root)} files restored\n")
    states = patch.states(root)
    sys.stdout.write(f"{host.title}; the patch fits {patch.repository} at {patch.commit[:7]}\n")
    for path, state in states.items():
        sys.stdout.write(f"  {state:<8}  {path}\n")
    return 1 if UNKNOWN in states.values() else 0


def _host_data(options: argparse.Namespace) -> int:
    from turbotrain_plugin.hosts.scenes import convert_for_hosts

    fitted = convert_for_hosts(options.roots, options.source, options.out, clouds=options.clouds)
    sys.stdout.write(
        f"{options.out}: left out {fitted.agents} agents and {fitted.frames} frames of others that "
        "the hosts cannot read\n"
    )
    return 0
