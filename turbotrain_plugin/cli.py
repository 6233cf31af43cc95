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
from turbotrain_plugin.errors import UserError

USER_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code (2 for mistakes of the user)."""
    options = _parser().parse_args(argv)
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
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_data(verbs)
    _add_config(verbs)
    doctor = verbs.add_parser("doctor", help="check this machine and say what to fix")
    doctor.set_defaults(run=_doctor)
    return parser


def _program() -> str:
    """Return the name the command was called by; `python -m turbotrain_plugin` has none."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return name if name in ("opencood", "turbotrain") else "opencood"


_Verbs = argparse._SubParsersAction


def _add_hypes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hypes",
        "--hypes_yaml",
        "-y",
        metavar="FILE",
        help="hypes file; a bare name is looked up here, then among the shipped files",
    )
    _add_override(parser)


def _add_override(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key, such as optimizer.lr=1e-3 (repeatable)",
    )


def _add_train(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("train", help="train all stages of a hypes file, then evaluate")
    _add_hypes(parser)
    parser.add_argument("--model_dir", type=Path, metavar="DIR", help="run folder to go on in")
    parser.add_argument("--resume", action="store_true", help="go on exactly where a run stopped")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, help="replaces the file's seed")
    parser.add_argument("--half", action="store_true", help="mixed precision (bf16)")
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="resolved settings, parameters, memory and time of one step; trains nothing",
    )
    parser.set_defaults(run=_train)


def _add_evaluate(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "evaluate", aliases=["inference"], help="metrics, tables and pictures of a run folder"
    )
    parser.add_argument("--model_dir", type=Path, metavar="DIR", required=True, help="run folder")
    parser.add_argument("--epoch", type=int, help="evaluate net_epoch<N>.pth (default: best.ckpt)")
    parser.add_argument("--split", default="test", choices=("train", "validate", "test"))
    parser.add_argument("--dataset_mode", choices=("vc", "ic", "v2v", "i2i"), help="other mode")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: the run folder)"
    )
    _add_override(parser)
    parser.set_defaults(run=_evaluate)


def _add_data(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("data", help="make, check, describe and convert data")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    synth = actions.add_parser("synth", help="make synthetic V2X scenes")
    synth.add_argument("--preset", default="tiny", help="tiny, small, bench, ...")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--workers", type=int, default=2, help="processes")
    synth.add_argument("--tracks", type=Path, metavar="CSV", help="replay these trajectories")
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


def _add_config(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser("config", help="show, check, compare and explain hypes files")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, help_text, run in (
        ("show", "print the resolved file", _config_show),
        ("check", "say whether the file is valid", _config_check),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("file", metavar="FILE")
        _add_override(action)
        action.set_defaults(run=run)
    diff = actions.add_parser("diff", help="print the keys in which two files differ")
    diff.add_argument("first", metavar="FILE")
    diff.add_argument("second", metavar="FILE")
    diff.set_defaults(run=_config_diff)
    explain = actions.add_parser("explain", help="print every key with default and meaning")
    explain.add_argument("prefix", nargs="?", default="", metavar="KEY")
    explain.set_defaults(run=_config_explain)


# -------------------------------------------------------------------------------------------- verbs


def _train(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.run import TrainRequest, train

    return train(
        TrainRequest(
            hypes=options.hypes,
            model_dir=options.model_dir,
            resume=options.resume,
            overrides=options.overrides,
            device=options.device,
            seed=options.seed,
            half=options.half,
            dry_run=options.dry_run,
        )
    )


def _evaluate(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.assembly import pick_device
    from turbotrain_plugin.engine.evaluate import evaluate_run

    overrides = list(options.overrides)
    if options.dataset_mode:
        overrides.append(f"dataset_mode={options.dataset_mode}")
    evaluate_run(
        options.model_dir,
        device=pick_device(options.device),
        split=options.split,
        epoch=options.epoch,
        overrides=overrides,
        out=options.out,
    )
    return 0


def _data_synth(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.data_tools import synthesise

    return synthesise(
        options.preset,
        options.out,
        seed=options.seed,
        workers=options.workers,
        tracks=options.tracks,
        resume=options.resume,
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


def _config_show(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import load_hypes, to_yaml

    sys.stdout.write(to_yaml(load_hypes(options.file, options.overrides)))
    return 0


def _config_check(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import find_hypes, load_hypes

    load_hypes(options.file, options.overrides)
    sys.stdout.write(f"{find_hypes(options.file)}: valid\n")
    return 0


def _config_diff(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import difference, load_hypes

    for name, first, second in difference(load_hypes(options.first), load_hypes(options.second)):
        sys.stdout.write(f"{name}: {first!r} -> {second!r}\n")
    return 0


def _config_explain(options: argparse.Namespace) -> int:
    from turbotrain_plugin.config import explain

    found = [entry for entry in explain() if entry[0].startswith(options.prefix)]
    if not found:
        raise UserError(f"no key begins with {options.prefix!r}.")
    for name, default, text in found:
        sys.stdout.write(f"{name} = {default!r}\n    {text}\n")
    return 0


def _doctor(_options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.doctor import examine

    return examine()


if __name__ == "__main__":
    sys.exit(main())
