"""``config``: show, check, compare and explain hypes files."""

from __future__ import annotations

import argparse
import sys

from turbotrain_plugin.cli.common import Verbs, add_override
from turbotrain_plugin.errors import UserError


def add_config(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``config`` and its actions."""
    parser = verbs.add_parser("config", help="show, check, compare and explain hypes files")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text, run in (
        ("show", "print the resolved file", _config_show),
        ("check", "say whether the file is valid", _config_check),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("file", metavar="FILE")
        add_override(action)
        action.set_defaults(run=run)
    diff = actions.add_parser("diff", help="print the keys in which two files differ")
    diff.add_argument("first", metavar="FILE")
    diff.add_argument("second", metavar="FILE")
    diff.set_defaults(run=_config_diff)
    explain = actions.add_parser("explain", help="print every key with default and meaning")
    explain.add_argument("prefix", nargs="?", default="", metavar="KEY")
    explain.set_defaults(run=_config_explain)


def _config_show(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import load_hypes, to_yaml

    sys.stdout.write(to_yaml(load_hypes(options.file, options.overrides)))
    return 0


def _config_check(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import (
        describes_host,
        find_hypes,
        host_block,
        load_hypes,
        load_tree,
    )

    tree = load_tree(options.file, options.overrides)
    if describes_host(tree):
        host_block(tree)
    else:
        load_hypes(options.file, options.overrides)
    sys.stdout.write(f"{find_hypes(options.file)}: valid\n")
    return 0


def _config_diff(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import difference, load_hypes

    for name, first, second in difference(load_hypes(options.first), load_hypes(options.second)):
        sys.stdout.write(f"{name}: {first!r} -> {second!r}\n")
    return 0


def _config_explain(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import HostBlock, explain

    entries = {entry[0]: entry for entry in (*explain(HostBlock, "turbotrain"), *explain())}
    found = [entry for entry in entries.values() if entry[0].startswith(options.prefix)]
    if not found:
        raise UserError(f"no key begins with {options.prefix!r}.")
    for name, default, text in found:
        sys.stdout.write(f"{name} = {default!r}\n    {text}\n")
    return 0
