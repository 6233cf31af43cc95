"""Options that several verbs share."""

from __future__ import annotations

import argparse

Verbs = argparse._SubParsersAction


def add_hypes(parser: argparse.ArgumentParser) -> None:
    """Add the hypes file and its overrides."""
    parser.add_argument(
        "--hypes",
        "--hypes_yaml",
        "-y",
        metavar="FILE",
        help="hypes file; a bare name is looked up here, then among the shipped files",
    )
    add_override(parser)


def add_override(parser: argparse.ArgumentParser) -> None:
    """Add ``-o KEY=VALUE``."""
    parser.add_argument(
        "-o",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key, such as optimizer.lr=1e-3 (repeatable)",
    )
