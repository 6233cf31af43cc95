"""``python -m turbotrain_plugin.hosts train|inference``: the host's script with what is ours."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from turbotrain_plugin.structures import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a host's script; arguments that are not ours are the script's."""
    parser = argparse.ArgumentParser(prog="python -m turbotrain_plugin.hosts", add_help=False)
    parser.add_argument("script")
    parser.add_argument("--checkout", default="", help="the host's checkout")
    parser.add_argument("--log_dir", type=Path, default=Path("logs"), help="where runs are made")
    parser.add_argument("--run_seed", type=int, help="seed Python, numpy and torch first")
    parser.add_argument(
        "-o",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key of a hypes file of ours (repeatable)",
    )
    options, rest = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(options, rest)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from turbotrain_plugin.hosts import host_named
    from turbotrain_plugin.hosts.checkout import locate
    from turbotrain_plugin.hosts.launcher import run_script
    from turbotrain_plugin.hosts.randomness import seed_all
    from turbotrain_plugin.hosts.session import enter

    root = locate(options.checkout)
    with enter(host_named("auto", root), root) as session:
        if options.run_seed is not None:
            seed_all(options.run_seed)
        return run_script(session, options.script, rest, options.log_dir, options.overrides)


if __name__ == "__main__":
    sys.exit(main())
