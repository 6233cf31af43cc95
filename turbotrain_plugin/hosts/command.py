"""Which command lines are a host's, and what they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turbotrain_plugin.config import describes_host, load_tree
from turbotrain_plugin.hosts.hypes import read
from turbotrain_plugin.structures import UserError

if TYPE_CHECKING:
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


def train(request: TrainRequest, *, alone: bool) -> int:
    """Run ``opencood train`` of a host's hypes file; return the exit code.

    Args:
        request: The options; ``seed`` takes the place of ``turbotrain.host.seed``.
        alone: Whether this is the only process.

    Raises:
        UserError: On anything the user can mend.
    """
    from turbotrain_plugin.engine import checkpoints
    from turbotrain_plugin.engine.assembly import pick_device
    from turbotrain_plugin.hosts.run import train_host

    if request.dry_run:
        raise UserError("--dry-run is for our own networks; a host's model has to be run.")
    if not alone:
        raise UserError("A host's model is trained by one process; leave out --gpus and torchrun.")
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
    hypes = read(file, overrides, request.seed)
    return train_host(hypes, folder, pick_device(request.device))


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
    from turbotrain_plugin.engine.assembly import pick_device
    from turbotrain_plugin.hosts.run import evaluate_folder

    hypes = read(folder / CONFIG, overrides)
    evaluate_folder(hypes, folder, pick_device(device), split=split, epoch=epoch, out=out)
    return 0
