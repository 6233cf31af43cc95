"""Several processes of one run: who is who, how they meet, and how they end.

PyTorch's own engine does the work: ``torchrun`` (or ``opencood train --gpus N``, or Slurm's
``srun``) starts the processes, NCCL carries tensors between GPUs and gloo those of the CPU.
docs/distributed.md is the user's side of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import pick_device
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.errors import UserError

USER_ERROR: Final = 2
FAILED: Final = 1
_TIMEOUT: Final = timedelta(minutes=30)
"""How long a process waits for the others: reading labels or drawing may take one of them long."""

_LOST: Final = ("closed by peer", "reset by peer", "broken pipe", "timed out", "pair closure")
"""How gloo says, in lower case, that a process is gone; NCCL's errors have a class of their own."""


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those of a run.

    Attributes:
        rank: Its number; 0 writes and speaks.
        world_size: How many there are.
        local_rank: Its number on its machine.
        device: Where it computes.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


class LostProcess(Exception):  # noqa: N818 - the error is another process's
    """Another process of the run is gone; the text says what that leaves behind."""


def is_launched(environ: Mapping[str, str]) -> bool:
    """Return whether a launcher started this process as one of several."""
    if "RANK" in environ:
        return int(environ.get("WORLD_SIZE", "1")) > 1
    return _slurm_tasks(environ) > 1


def _slurm_tasks(environ: Mapping[str, str]) -> int:
    """Return the tasks of the job step; 1 outside one, as in a batch script before ``srun``."""
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return 1
    return int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)


def rendezvous_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what PyTorch reads to meet the others where only Slurm has said it.

    Of Slurm's, the first machine of the step is where they meet, at a port that follows from the
    job's number; ``MASTER_ADDR`` and ``MASTER_PORT`` overrule both.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return {}
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "localhost")
    job = int(environ.get("SLURM_JOB_ID", "0"))
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": str(_slurm_tasks(environ)),
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": environ.get("MASTER_ADDR", first_host(nodes)),
        "MASTER_PORT": environ.get("MASTER_PORT", str(15000 + job % 10000)),
    }


def first_host(nodes: str) -> str:
    """Return the first machine of a Slurm node list such as ``gpu[003-006,009],login1``."""
    match = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else nodes


def place_of(environ: Mapping[str, str], device: str) -> Place:
    """Return the place that a launcher's variables give this process.

    Args:
        environ: With ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``.
        device: ``auto``, ``cpu`` or ``cuda``: each process takes the GPU of its local number.

    Raises:
        UserError: When the machine has too few GPUs, or one GPU is asked for by number.
    """
    rank, world_size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    picked = pick_device(device)
    if picked.type == "cuda":
        if ":" in device:
            raise UserError(
                f"--device {device}: {world_size} processes cannot share one GPU; give "
                "--device cuda, and choose GPUs by CUDA_VISIBLE_DEVICES."
            )
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"Process {local_rank} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}. Start fewer processes, or give --device cpu."
            )
        picked = torch.device("cuda", local_rank)
    return Place(rank, world_size, local_rank, picked)


def run_together(work: Callable[[torch.device], int], device: str) -> int:
    """Do ``work`` as one of the processes a launcher started, or alone; return the exit code.

    A user's mistake that all processes find is said once. Only the first process logs.

    Args:
        work: Gets the device of this process.
        device: What the user asked for.

    Raises:
        UserError: Alone, or on the process that says it.
    """
    if not is_launched(os.environ):
        return work(pick_device(device))
    os.environ.update(rendezvous_variables(os.environ))
    try:
        place = place_of(os.environ, device)
    except UserError:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        return USER_ERROR
    _be_quiet(place)
    store = _meet(place)
    LOG.info("%d processes, the first on %s", place.world_size, place.device)
    try:
        code = _known(work, place.device)
    except (UserError, LostProcess) as error:
        code = USER_ERROR if isinstance(error, UserError) else FAILED
        if _is_first_to_say(store, str(error)):
            sys.stderr.write(f"error: {error}\n")
        if isinstance(error, LostProcess):
            return code  # a group that lacks a process cannot be taken down in order
    torch.distributed.destroy_process_group()
    return code


def _known(work: Callable[[torch.device], int], device: torch.device) -> int:
    """Do ``work``; raise LostProcess where a collective fails because another process is gone."""
    try:
        return work(device)
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise LostProcess("another process is gone; what it had to say is above.") from error


@contextmanager
def losing_nobody(folder: Path) -> Iterator[None]:
    """Say, where another process of a run is gone, what is left in its folder.

    Raises:
        LostProcess: In place of the error of a collective.
    """
    try:
        yield
    except RuntimeError as error:
        if process_count() == 1 or not is_lost(error):
            raise
        raise LostProcess(
            "another process of this run is gone; what it had to say is above. The run's "
            f"{checkpoints.LAST} is complete. {go_on(folder)}"
        ) from error


def go_on(folder: Path) -> str:
    """Return the sentence that says how to go on with a run."""
    return f"Go on with:  opencood train --resume --model_dir {folder}"


def _meet(place: Place) -> Any:  # noqa: ANN401 - torch's store
    """Set up the process group; return the store that all processes share."""
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT
    )
    return store


def _be_quiet(place: Place) -> None:
    if place.rank > 0:
        LOG.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")


def _is_first_to_say(store: Any, text: str) -> bool:  # noqa: ANN401
    """Return whether no other process has said the same; True when nobody can be asked."""
    try:
        said = store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1)
    except RuntimeError:
        return True
    return bool(said == 1)


def is_lost(error: BaseException) -> bool:
    """Return whether an error of a collective means that another process is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)
