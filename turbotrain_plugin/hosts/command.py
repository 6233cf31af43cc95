"""Which command lines are a host's, and what they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turbotrain_plugin.config import describes_host, load_tree
from turbotrain_plugin.hosts.hypes import HostHypes, read
from turbotrain_plugin.structures import UserError

if TYPE_CHECKING:
    import torch

    from turbotrain_plugin.engine.run import TrainRequest

CONFIG = "config.yaml"


def is_for_host(hypes: str | None, model_dir: Path | None) -> bool:
    """Return whether a command line is about a host's model; a wrong one is left to its verb."""
    file: str | Path | None = model_dir / CONFIG if model_dir is not None else hypes
    if model_dir is not None and not (model_dir / CONFIG).is_file():
        file = hypes
    if file is None:
        return False
    try:
        return describes_host(load_tree(file))
    except UserError:
        return False


def train(request: TrainRequest) -> int:
    """Run ``opencood train`` of a host's hypes file; return the exit code.

    Args:
        request: The options; ``seed`` takes the place of ``turbotrain.host.seed``.

    Raises:
        UserError: On anything the user can mend.
    """
    from turbotrain_plugin.engine.distributed import run_together

    return run_together(lambda device: _train(request, device), request.device)


def _train(request: TrainRequest, device: torch.device) -> int:
    """Do it as one of the processes of a run."""
    from turbotrain_plugin.balancing.processes import process_count
    from turbotrain_plugin.engine import exchange
    from turbotrain_plugin.hosts.dry_run import dry_run
    from turbotrain_plugin.hosts.run import train_host

    hypes = exchange.shared(lambda: hypes_of(request))
    if request.dry_run:
        if process_count() > 1:
            raise UserError("--dry-run measures one process; start it without a launcher.")
        dry_run(hypes, device)
        return 0
    refuse_own_streams(hypes, process_count())
    return train_host(hypes, request.model_dir, device)


def refuse_own_streams(hypes: HostHypes, processes: int) -> None:
    """Raise UserError where several processes would have to repeat the host's own training."""
    if processes > 1 and hypes.block.host.random == "host":
        raise UserError(
            f"{hypes.source}: turbotrain.host.random is 'host' (so it is without a turbotrain "
            "block): that repeats the host's own train.py to the bit, which one process does. For "
            f"{processes} processes set turbotrain.host.random: step; the host's own training in "
            "several processes is its train.py under torchrun."
        )


def hypes_of(request: TrainRequest) -> HostHypes:
    """Return the hypes that the options of ``opencood train`` name.

    Raises:
        UserError: When there are none, or nothing to resume.
    """
    from turbotrain_plugin.engine import checkpoints

    folder = request.model_dir
    own = folder / CONFIG if folder is not None else None
    file = own if own is not None and own.is_file() else request.hypes
    if file is None:
        raise UserError("opencood train needs --hypes FILE, or --model_dir DIR to go on.")
    if request.resume and (folder is None or not (folder / checkpoints.LAST).is_file()):
        raise UserError(
            f"{folder or 'a host run'}: nothing to resume; give the run folder with --model_dir "
            f"DIR, in which there is a {checkpoints.LAST}."
        )
    overrides = list(request.overrides)
    if request.half:
        overrides.append("turbotrain.amp=bf16")
    return read(file, overrides, request.seed)


def evaluate(
    folder: Path,
    *,
    device: str,
    split: str,
    epoch: int | None,
    overrides: Sequence[str],
    out: Path | None,
) -> int:
    """Run ``opencood evaluate`` on the run folder of a host's model; return the exit code.

    Of several processes the first does it.

    Args:
        folder: The run folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        split: ``test`` or ``validate``.
        epoch: Which ``net_epoch<N>.pth``; the newest without it.
        overrides: ``key=value`` entries.
        out: Where to write.

    Raises:
        UserError: On anything the user can mend.
    """
    from turbotrain_plugin.engine import exchange
    from turbotrain_plugin.engine.distributed import run_together
    from turbotrain_plugin.hosts.run import evaluate_folder

    def work(place: torch.device) -> int:
        if exchange.is_main():
            hypes = read(folder / CONFIG, overrides)
            evaluate_folder(hypes, folder, place, split=split, epoch=epoch, out=out)
        return 0

    return run_together(work, device)
