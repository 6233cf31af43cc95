"""The command ``opencood``, also ``turbotrain``: verbs only; the work is done in the rooms.

Unofficial and not affiliated with the authors of OpenCOOD. Heavy imports happen inside the verbs,
so that ``--help`` and ``config`` answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import turbotrain_plugin
from turbotrain_plugin.cli.data import add_data
from turbotrain_plugin.cli.host import add_host
from turbotrain_plugin.cli.hypes import add_config
from turbotrain_plugin.cli.profile import add_profile
from turbotrain_plugin.cli.report import add_report
from turbotrain_plugin.cli.training import add_evaluate, add_train
from turbotrain_plugin.cli.visualize import add_visualize
from turbotrain_plugin.errors import UserError

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code (2 for mistakes of the user)."""
    options = _parser().parse_args(argv)
    options.command_line = list(sys.argv[1:] if argv is None else argv)
    _configure_log(options.verbose)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:  # `opencood config explain | head`
        # What is still buffered has nowhere to go; the interpreter would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _configure_log(verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("turbotrain_plugin")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    if not verbose:
        # Third-party deprecation notices say nothing to somebody who trains a model.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)


# ------------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_program(),
        description=(
            "TurboTrain for V2X perception and prediction (unofficial; not affiliated with the "
            "authors of OpenCOOD)."
        ),
    )
    parser.add_argument("--version", action="version", version=turbotrain_plugin.__version__)
    parser.add_argument("--verbose", action="store_true", help="say more, show warnings")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        add_train,
        add_evaluate,
        add_visualize,
        add_report,
        add_profile,
        add_data,
        add_host,
        add_config,
    ):
        add(verbs)
    doctor = verbs.add_parser("doctor", help="check this machine and say what to fix")
    doctor.set_defaults(run=_doctor)
    return parser


def _program() -> str:
    """Return the name the command was called by; `python -m turbotrain_plugin` has none."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return name if name in ("opencood", "turbotrain") else "opencood"


# -------------------------------------------------------------------------------------------- verbs


def _doctor(_options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.doctor import examine
    from turbotrain_plugin.hosts.doctor import host_findings

    return examine([host_findings])
