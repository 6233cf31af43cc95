"""``visualize``: pictures of a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from turbotrain_plugin.cli.common import Verbs, add_override


def add_visualize(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``visualize``."""
    parser = verbs.add_parser(
        "visualize", help="pictures of detections and trajectories, or of pretraining"
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder")
    parser.add_argument(
        "--pretrain",
        action="store_true",
        help="input, mask, target and reconstruction of masked pretraining",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: RUN/vis)")
    parser.add_argument("--samples", type=int, default=4, metavar="N", help="how many (4)")
    parser.add_argument("--split", choices=("train", "validate", "test"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_override(parser)
    parser.set_defaults(run=_visualize)


def _visualize(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.assembly import pick_device
    from turbotrain_plugin.engine.visualize import VisualizeRequest, visualize_run

    visualize_run(
        VisualizeRequest(
            folder=options.run_folder,
            pretrain=options.pretrain,
            out=options.out,
            samples=options.samples,
            split=options.split,
            device=pick_device(options.device),
            overrides=options.overrides,
        )
    )
    return 0
