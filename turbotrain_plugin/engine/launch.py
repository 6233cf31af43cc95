"""``opencood train --gpus N``: torchrun's launcher for N processes on this machine."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from typing import Final

import torch

from turbotrain_plugin.engine.assembly import pick_device
from turbotrain_plugin.engine.distributed import FAILED, USER_ERROR
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.errors import UserError

_SHUTDOWN_S: Final = "120"
"""Seconds the processes have to finish their step and save it; torch's own 30 may be too few."""

_STOPPED: Final = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM))


def launch(processes: int, device: str, arguments: Sequence[str]) -> int:
    """Run the command line ``arguments`` in several processes; return the exit code.

    Args:
        processes: How many.
        device: ``auto``, ``cuda`` or ``cpu``.
        arguments: As of ``opencood``.

    Raises:
        UserError: When there are too few GPUs.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    check_gpus(processes, device)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN_S)
    _silence(logging.getLogger("torch.distributed"))
    launcher = ["--standalone", f"--nproc_per_node={processes}", "-m", "turbotrain_plugin"]
    try:
        run(parse_args([*launcher, *arguments]))
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as failed:
        codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        return explain(codes)
    return 0


def _silence(logger: logging.Logger) -> None:
    """Keep the launcher's own account away; what matters of it is in :func:`explain`."""
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]


def check_gpus(processes: int, device: str) -> None:
    """Raise UserError unless there is a GPU for each process, or the CPU is asked for."""
    if processes < 1:
        raise UserError(f"--gpus must be at least 1. Found {processes}.")
    if device == "cpu":
        return
    count = torch.cuda.device_count()
    if not count:
        raise UserError(
            f"--gpus {processes}: this torch sees no CUDA device; see `opencood doctor`. "
            f"--gpus {processes} --device cpu runs {processes} processes on the CPU."
        )
    pick_device(device)
    if ":" in device or processes > count:
        raise UserError(
            f"--gpus {processes} --device {device}: there are {count} CUDA devices, and every "
            "process needs one of its own; choose them by CUDA_VISIBLE_DEVICES."
        )


def explain(codes: dict[int, int]) -> int:
    """Say why a run ended, where its processes have not; return the exit code.

    Args:
        codes: Rank -> exit code of the processes that failed; minus the signal that ended it.
    """
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    if killed:
        rank, number = next(iter(killed.items()))
        LOG.error(
            "error: process %d was killed by %s; the others were ended. The run's last.ckpt is "
            "complete; go on with:  opencood train --resume --model_dir DIR",
            rank,
            signal.Signals(number).name,
        )
        return 128 + number
    for code in (USER_ERROR, *_STOPPED):
        if code in codes.values():
            return code
    LOG.error("error: processes %s failed; their own words are above.", sorted(codes))
    return FAILED
