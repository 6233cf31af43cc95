"""The `train` command: a run folder made or continued, trained, evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import RunConfig, difference, load_hypes, to_yaml
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.distributed import go_on, losing_nobody, run_together
from turbotrain_plugin.engine.dry_run import dry_run
from turbotrain_plugin.engine.evaluate import evaluate_run
from turbotrain_plugin.engine.interrupts import Interrupted
from turbotrain_plugin.engine.records import LOG, make_run_folder, write_text
from turbotrain_plugin.engine.stages import PRETRAIN, stages_of
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.engine.visualize import VisualizeRequest, visualize_run
from turbotrain_plugin.errors import UserError

_MAY_CHANGE: Final = (
    "turbotrain.data.num_workers",
    "turbotrain.data.prefetch_factor",
    "turbotrain.data.pin_memory",
    "turbotrain.data.persistent_workers",
    "turbotrain.data.cache_dir",
    "turbotrain.logging.",
    "turbotrain.evaluation.pictures",
    "turbotrain.threads",
)
"""Keys a resumed run may change without becoming another run."""


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The options of ``opencood train``.

    Attributes:
        hypes: Hypes file, or None when a run folder says everything.
        model_dir: Run folder to continue or start in.
        resume: Insist on continuing.
        overrides: ``key=value`` entries.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        seed: Replaces the file's seed.
        half: Mixed precision.
        dry_run: Only say what would run.
    """

    hypes: str | None
    model_dir: Path | None
    resume: bool
    overrides: Sequence[str]
    device: str
    seed: int | None
    half: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the options come to, alike on all processes of a run.

    Attributes:
        config: The resolved settings.
        overrides: With what the options stand for.
        folder: Run folder; None for a dry run.
        resume: Whether to go on from its checkpoint.
    """

    config: RunConfig
    overrides: list[str]
    folder: Path | None
    resume: bool


def train(request: TrainRequest) -> int:
    """Run the command, as one of several processes where a launcher started it so.

    Returns:
        The exit code.

    Raises:
        UserError: On anything the user can mend.
    """
    return run_together(lambda device: _train(request, device), request.device)


def _train(request: TrainRequest, device: torch.device) -> int:
    plan = exchange.shared(lambda: _plan(request))
    if plan.folder is None:
        if process_count() > 1:
            raise UserError("--dry-run measures one process; start it without a launcher.")
        dry_run(plan.config, device)
        return 0
    LOG.info("run folder %s, device %s", plan.folder, device)
    try:
        with losing_nobody(plan.folder):
            Trainer(plan.config, plan.folder, device).run(resume=plan.resume)
            _show(plan.config, plan.folder, device, list(plan.overrides))
    except Interrupted as stop:
        LOG.warning("%s: state saved. %s", stop, go_on(plan.folder))
        return stop.exit_code
    return 0


def _plan(request: TrainRequest) -> _Plan:
    overrides = list(request.overrides)
    if request.seed is not None:
        overrides.append(f"seed={request.seed}")
    if request.half:
        overrides.append("turbotrain.amp=bf16")
    folder = _existing_folder(request)
    if folder is not None:
        config = _folder_config(folder, overrides)
        _say_what_rules(request, folder)
    elif request.hypes is None:
        raise UserError("opencood train needs --hypes FILE, or --model_dir DIR to go on.")
    else:
        config = load_hypes(request.hypes, overrides)
    if request.dry_run:
        return _Plan(config, overrides, None, resume=False)
    resume = folder is not None and (folder / checkpoints.LAST).is_file()
    if request.resume and not resume:
        raise UserError(f"{folder}: nothing to resume, there is no {checkpoints.LAST}.")
    if folder is None:
        folder = make_run_folder(config)
    elif not resume:
        write_text(folder / "config.yaml", to_yaml(config))  # as overridden, for whoever goes on
    return _Plan(config, overrides, folder, resume)


def _show(config: RunConfig, folder: Path, device: torch.device, overrides: Sequence[str]) -> None:
    """Measure what was trained; of a run that only pretrains, draw what it rebuilds."""
    if stages_of(config)[-1].kind != PRETRAIN:
        evaluate_run(folder, device=device, overrides=overrides)
        return
    if not exchange.is_main():
        return
    visualize_run(
        VisualizeRequest(folder, pretrain=True, split="train", device=device, overrides=overrides)
    )
    LOG.info("start a run from it:  -o turbotrain.pretrain.init=%s", folder)


def _existing_folder(request: TrainRequest) -> Path | None:
    if request.model_dir is not None:
        if not request.model_dir.is_dir():
            raise UserError(f"{request.model_dir}: there is no such run folder.")
        return request.model_dir
    if not request.resume:
        return None
    config = load_hypes(request.hypes, request.overrides) if request.hypes else RunConfig()
    parent = Path(config.turbotrain.logging.log_dir)
    pattern = f"{config.name}_*" if request.hypes else "*"
    found = [path.parent for path in parent.glob(f"{pattern}/{checkpoints.LAST}")]
    if not found:
        raise UserError(f"{parent}: no run to resume; give its folder with --model_dir DIR.")
    return max(found, key=lambda path: (path / checkpoints.LAST).stat().st_mtime)


def _say_what_rules(request: TrainRequest, folder: Path) -> None:
    """Warn of a hypes file that says something else than the run folder's own."""
    own = folder / "config.yaml"
    if request.hypes and difference(load_hypes(request.hypes), load_hypes(own)):
        LOG.warning("%s differs from %s; the latter rules.", request.hypes, own)


def _folder_config(folder: Path, overrides: Sequence[str]) -> RunConfig:
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(f"{folder}: not a run folder, there is no config.yaml.")
    recorded, wanted = load_hypes(file), load_hypes(file, overrides)
    if not (folder / checkpoints.LAST).is_file():
        return wanted
    drift = [
        f"{name} {was!r} -> {now!r}"
        for name, was, now in difference(recorded, wanted)
        if not name.startswith(_MAY_CHANGE)
    ]
    if drift:
        raise UserError(
            f"{folder}: a resumed run must keep its settings; changed: {'; '.join(drift)}. "
            "Start a new run for that."
        )
    return wanted
