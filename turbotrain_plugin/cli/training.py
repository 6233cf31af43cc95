"""``train`` and ``evaluate``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from turbotrain_plugin.cli.common import Verbs, add_hypes, add_override
from turbotrain_plugin.errors import UserError


def add_train(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``train``."""
    parser = verbs.add_parser("train", help="train all stages of a hypes file, then evaluate")
    add_hypes(parser)
    parser.add_argument("--model_dir", type=Path, metavar="DIR", help="run folder to go on in")
    parser.add_argument("--resume", action="store_true", help="go on exactly where a run stopped")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="train in N processes on this machine, one a GPU (with --device cpu: on the CPU)",
    )
    parser.add_argument("--seed", type=int, help="replaces the file's seed")
    parser.add_argument("--half", action="store_true", help="mixed precision (bf16)")
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="resolved settings, parameters, memory and time of one step; trains nothing",
    )
    parser.set_defaults(run=_train)


def add_evaluate(verbs: Verbs[argparse.ArgumentParser]) -> None:
    """Add ``evaluate``."""
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
    parser.add_argument(
        "--sweep",
        dest="sweeps",
        metavar="AXIS=VALUES",
        action="append",
        default=[],
        help="evaluate under every value of a disturbance instead: latency=0,100,200 (ms), "
        "xyz_std (m), ryp_std (deg) or drop_out (share); repeatable, each gives a table",
    )
    add_override(parser)
    parser.set_defaults(run=_evaluate)


def _train(options: argparse.Namespace) -> int:
    from turbotrain_plugin.engine.distributed import is_launched
    from turbotrain_plugin.engine.launch import launch
    from turbotrain_plugin.engine.run import TrainRequest, train
    from turbotrain_plugin.hosts import command

    request = TrainRequest(
        hypes=options.hypes,
        model_dir=options.model_dir,
        resume=options.resume,
        overrides=options.overrides,
        device=options.device,
        seed=options.seed,
        half=options.half,
        dry_run=options.dry_run,
    )
    alone = options.gpus in (None, 1)
    launched = is_launched(os.environ)
    for_host = command.is_for_host(options.hypes, options.model_dir)
    if not (alone or options.dry_run or launched):
        if for_host:  # said at once, not by processes that have to start first
            command.refuse_own_streams(command.hypes_of(request), options.gpus)
        return launch(options.gpus, options.device, options.command_line)
    return command.train(request) if for_host else train(request)


def _evaluate(options: argparse.Namespace) -> int:
    import torch

    from turbotrain_plugin.engine.distributed import run_together
    from turbotrain_plugin.engine.evaluate import evaluate_run
    from turbotrain_plugin.engine.sweep import sweep_run
    from turbotrain_plugin.hosts import command

    overrides = list(options.overrides)
    if options.dataset_mode:
        overrides.append(f"dataset_mode={options.dataset_mode}")
    if command.is_for_host(None, options.model_dir):
        if options.sweeps:
            raise UserError("--sweep is for our own networks; a host's data have no such keys.")
        return command.evaluate(
            options.model_dir,
            device=options.device,
            split=options.split,
            epoch=options.epoch,
            overrides=overrides,
            out=options.out,
        )

    def work(device: torch.device) -> int:
        how: dict[str, Any] = {
            "device": device,
            "split": options.split,
            "epoch": options.epoch,
            "overrides": overrides,
            "out": options.out,
        }
        if options.sweeps:
            sweep_run(options.model_dir, options.sweeps, **how)
        else:
            evaluate_run(options.model_dir, **how)
        return 0

    return run_together(work, options.device)
