"""``profile``: what a network costs and what its agents send."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from turbotrain_plugin.cli.common import Verbs, add_hypes
from turbotrain_plugin.errors import UserError


def add_profile(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``profile``."""
    parser = verbs.add_parser(
        "profile", help="parameters, GFLOPs, latency, memory and message size of a network"
    )
    add_hypes(parser)
    parser.add_argument(
        "--model_dir", type=Path, metavar="DIR", help="run folder, with its weights"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.set_defaults(run=_profile)


def _profile(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import load_hypes
    from turbotrain_plugin.engine.assembly import pick_device
    from turbotrain_plugin.engine.profile import profile, profile_run

    device = pick_device(options.device)
    if (options.hypes is None) == (options.model_dir is None):
        raise UserError("opencood profile needs --hypes FILE or --model_dir DIR, one of them.")
    if options.model_dir is not None:
        measured = profile_run(options.model_dir, options.overrides, device)
    else:
        measured = profile(load_hypes(options.hypes, options.overrides), device)
    text = json.dumps(measured.to_json(), indent=2) if options.json else measured.table()
    sys.stdout.write(f"{text}\n")
    return 0
