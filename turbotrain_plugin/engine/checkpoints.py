"""Atomic checkpoints that load without executing anything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from turbotrain_plugin.errors import UserError

FORMAT: Final = 1
LAST: Final = "last.ckpt"
BEST: Final = "best.ckpt"
STEP_COUNTER: Final = "turbotrain_step"
"""A buffer that a balancer in a host's own loop keeps with the model; no weight of it."""
_EPOCH_FILE: Final = re.compile(r"net_epoch(\d+)\.pth")

State = dict[str, Any]


def atomic_write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it.

    A reader never sees half a file, and a full disk leaves the previous file as it was. What a
    killed process leaves is overwritten by the next save.

    Raises:
        UserError: When the file system refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        kept = f" The previous {path.name} is untouched." if path.exists() else ""
        raise UserError(f"{path}: cannot be written ({_first_line(error)}).{kept}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def save(path: Path, state: State) -> None:
    """Save a state dictionary atomically."""
    atomic_write(path, lambda file: torch.save(state, file))


def load(path: Path) -> State:
    """Load a checkpoint onto the CPU with ``weights_only=True``: no code in it can run.

    Raises:
        UserError: When the file is missing, damaged, or holds more than plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises a dozen unrelated types for damaged or foreign files.
        raise UserError(f"{path}: not a readable checkpoint ({_first_line(error)}).") from error
    if not isinstance(state, dict):
        raise UserError(
            f"{path}: a checkpoint must hold a dictionary. Found {type(state).__name__}."
        )
    return state


def load_run_state(path: Path) -> State:
    """Load a ``last.ckpt`` and check that it is one of ours.

    Raises:
        UserError: When it is not.
    """
    state = load(path)
    if state.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a run checkpoint of format {FORMAT}. Found {state.get('format')!r}."
        )
    return state


def model_weights(state: State) -> dict[str, Tensor]:
    """Return the model's weights from a run checkpoint or a plain ``net_epoch{N}.pth``."""
    weights = state.get("model", state)
    return {
        str(name): value
        for name, value in weights.items()
        if isinstance(value, Tensor) and name != STEP_COUNTER
    }


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that must fit entirely.

    Raises:
        UserError: Naming the first keys that are missing, foreign or of another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    foreign = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} in place of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {kind} (such as {', '.join(names[:3])})"
        for kind, names in (
            ("missing", missing),
            ("foreign", foreign),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source}: the checkpoint belongs to another model: {'; '.join(problems)}. "
            "Use the config.yaml of the run that wrote it."
        )
    model.load_state_dict(dict(weights))


def epoch_files(folder: Path) -> dict[int, Path]:
    """Return ``net_epoch{N}.pth`` files by N, in order."""
    found = {}
    for path in folder.glob("net_epoch*.pth"):
        match = _EPOCH_FILE.fullmatch(path.name)
        if match:
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def forget_epochs(folder: Path) -> None:
    """Remove the ``net_epoch{N}.pth`` files, which a coming stage would count as its own."""
    for path in epoch_files(folder).values():
        path.unlink(missing_ok=True)


def find_weights(folder: Path, epoch: int | None = None) -> Path:
    """Return the weights to evaluate: a given epoch, else the best, the last, the newest epoch.

    ``last.ckpt`` comes before the epochs' files because it is never older than they are.

    Raises:
        UserError: When the folder holds none.
    """
    by_epoch = epoch_files(folder)
    if epoch is not None:
        if epoch not in by_epoch:
            raise UserError(f"{folder}: no net_epoch{epoch}.pth. Found epochs {list(by_epoch)}.")
        return by_epoch[epoch]
    candidates = [folder / BEST, folder / LAST, *reversed(by_epoch.values())]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(f"{folder}: no checkpoint (best.ckpt, net_epoch<N>.pth or last.ckpt).")


def stage_weights(folder: Path, name: str) -> Path:
    """Return where a finished stage leaves its network and what it was trained with."""
    return folder / f"stage_{name}.ckpt"
