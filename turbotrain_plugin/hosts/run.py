"""`opencood train` and `evaluate` of a host's hypes file: folder, stages, evaluation."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning
from turbotrain_plugin.config import BalanceConfig
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import derive_seed
from turbotrain_plugin.engine.interrupts import Interrupted, StopRequest
from turbotrain_plugin.engine.records import (
    LOG,
    Board,
    MetricsLog,
    emit,
    environment,
    write_json,
    write_text,
)
from turbotrain_plugin.engine.steps import schedule_of
from turbotrain_plugin.hosts import host_named, randomness
from turbotrain_plugin.hosts.checkout import locate
from turbotrain_plugin.hosts.evaluation import detect_all, our_scores
from turbotrain_plugin.hosts.hypes import HostHypes
from turbotrain_plugin.hosts.learner import TaskLearner
from turbotrain_plugin.hosts.loop import HostLoop, HostPosition, HostRun, HostStage
from turbotrain_plugin.hosts.session import Session, enter
from turbotrain_plugin.structures import UserError


@dataclass(frozen=True, slots=True)
class HostData:
    """Data sets and loaders of a run, made in the order of the host's train.py."""

    train_set: Any
    validation_set: Any
    train_loader: DataLoader[Any]
    validation_loader: DataLoader[Any]


def train_host(hypes: HostHypes, folder: Path | None, device: torch.device) -> int:
    """Train a host's model and evaluate it; return the exit code.

    Args:
        hypes: The file.
        folder: A run folder to go on in; None: a new one.
        device: Where to compute.

    Raises:
        UserError: On anything the user can mend.
    """
    if hypes.block.threads > 0:
        torch.set_num_threads(hypes.block.threads)
    root = locate(hypes.block.host.root)
    host = host_named(hypes.block.host.name, root)
    folder = folder or _new_folder(hypes)
    if not (folder / "config.yaml").is_file():
        write_text(folder / "config.yaml", hypes.text())
    with enter(host, root) as session:
        LOG.info("run folder %s, device %s, %s in %s", folder, device, host.title, root)
        LOG.info("shims in force: %s", ", ".join(session.shims))
        try:
            model, parsed = _train(session, hypes, folder, device)
        except Interrupted as stop:
            LOG.warning("%s: go on with:  opencood train --resume --model_dir %s", stop, folder)
            return stop.exit_code
        if hypes.block.host.evaluate:
            evaluate_model(session, hypes, parsed, model, folder)
    return 0


def _new_folder(hypes: HostHypes) -> Path:
    parent = Path(hypes.block.logging.log_dir)
    stem = f"{hypes.name}_{datetime.now():%Y_%m_%d_%H_%M_%S}"
    for attempt in range(100):
        folder = parent / (stem if attempt == 0 else f"{stem}_{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder}: the run folder cannot be made ({error.strerror}). "
                "Set turbotrain.logging.log_dir to a folder that can be written."
            ) from error
        write_json(folder / "env.json", environment())
        return folder
    raise FileExistsError(stem)


def _train(
    session: Session, hypes: HostHypes, folder: Path, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    last = folder / checkpoints.LAST
    state = checkpoints.load_run_state(last) if last.is_file() else None
    randomness.seed_all(hypes.block.host.seed)
    parsed = hypes.parsed(session.host, session.modules)
    data = _data(session, hypes, parsed)
    if hypes.block.host.random == "step":
        torch.manual_seed(derive_seed(hypes.block.host.seed, "weights"))
    model: nn.Module = session.modules.train_utils.create_model(parsed)
    model.to(device)
    step = int(state["position"]["global_step"]) if state else 0
    with StopRequest() as stop:
        run = HostRun(
            session=session,
            block=hypes.block,
            folder=folder,
            device=device,
            stop=stop,
            log=MetricsLog(folder, int(state["metrics_bytes"]) if state else 0),
            board=Board(folder, enabled=hypes.block.logging.tensorboard, purge_step=step + 1),
            workers=data.train_loader.num_workers,
            records=list(state["stage_records"]) if state else [],
        )
        try:
            stage = _task_stage(session, hypes, parsed, model, data, index=0)
            loop = HostLoop(stage, run, HostPosition())
            if state is not None:
                loop.restore(state)
                LOG.info("resuming %s at step %d (exact)", stage.name, loop.position.stage_step)
            loop.run()
        finally:
            run.log.close()
            run.board.close()
    return model, parsed


def _data(session: Session, hypes: HostHypes, parsed: dict[str, Any]) -> HostData:
    build = session.modules.datasets.build_dataset
    train_set = build(parsed, visualize=False, train=True)
    validation_set = build(parsed, visualize=False, train=False)
    keys, wanted = session.host.loader, hypes.block.host.workers
    size = int(parsed["train_params"]["batch_size"])
    pin = keys.pin_memory and torch.cuda.is_available()
    train_loader = DataLoader(
        train_set,
        batch_size=size,
        num_workers=keys.workers if wanted < 0 else wanted,
        collate_fn=train_set.collate_batch_train,
        shuffle=True,
        pin_memory=pin,
        drop_last=True,
    )
    validation_loader = DataLoader(
        validation_set,
        batch_size=size,
        num_workers=keys.validation_workers if wanted < 0 else wanted,
        collate_fn=train_set.collate_batch_train,
        shuffle=keys.shuffle_validation,
        pin_memory=pin,
        drop_last=True,
    )
    if not len(train_loader):
        raise UserError(
            f"{parsed['root_dir']}: {len(train_set)} frames make no batch of {size} "
            "(train_params.batch_size)."
        )
    return HostData(train_set, validation_set, train_loader, validation_loader)


def _task_stage(
    session: Session,
    hypes: HostHypes,
    parsed: dict[str, Any],
    model: nn.Module,
    data: HostData,
    *,
    index: int,
) -> HostStage:
    block, epoches = hypes.block, int(parsed["train_params"]["epoches"])
    balanced = block.strategy in ("balance", "turbotrain")
    learner = TaskLearner(session, parsed, model, data.train_set)
    steps = len(data.train_loader)
    optimizer = session.modules.train_utils.setup_optimizer(parsed, model)
    scheduler = session.host.make_scheduler(session.modules, parsed, optimizer, steps)
    return HostStage(
        name="balance" if balanced else "train",
        index=index,
        epoches=epoches,
        batch_size=int(parsed["train_params"]["batch_size"]),
        learner=learner,
        optimizer=_balancer(optimizer, model, block.balance, steps * epoches)
        if balanced
        else optimizer,
        scheduler=scheduler,
        train_set=data.train_set,
        train_loader=data.train_loader,
        validation_loader=data.validation_loader,
        hypes=parsed,
    )


def _balancer(
    optimizer: torch.optim.Optimizer, model: nn.Module, keys: BalanceConfig, total_steps: int
) -> GradientBalancer:
    schedule = schedule_of(keys, total_steps)
    for warning in schedule.warnings(total_steps):
        LOG.warning("%s", warning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)  # said above, with the run's length
        return GradientBalancer(
            optimizer,
            method=keys.method,
            schedule=schedule,
            shared=keys.shared or None,
            named_parameters=list(model.named_parameters()),
            source=keys.source,
            cut=keys.cut,
            args=keys.args.of(keys.method),
        )


# --------------------------------------------------------------------------------------- evaluation


def evaluate_model(
    session: Session,
    hypes: HostHypes,
    parsed: dict[str, Any],
    model: nn.Module,
    out: Path,
    split: str = "test",
) -> dict[str, Any]:
    """Evaluate by the host's rules and by ours, and write results.json.

    Args:
        session: The host.
        hypes: The file.
        parsed: As the host's scripts see it.
        model: On its device.
        out: Where to write.
        split: ``test`` (``test_dir`` where the file has one) or ``validate``.
    """
    wanted = dict(parsed)
    if split == "test" and parsed.get("test_dir"):
        wanted["validate_dir"] = parsed["test_dir"]
    dataset = session.modules.datasets.build_dataset(wanted, visualize=False, train=False)
    workers = min(max(hypes.block.host.workers, 0), os.cpu_count() or 1)
    LOG.info("evaluating on %d frames of %s", len(dataset), wanted["validate_dir"])
    randomness.seed_all(hypes.block.host.seed)
    frames = list(detect_all(session, model, dataset, parsed, workers))
    results = {
        "schema": 1,
        "protocol": {
            "host": session.host.title,
            "data": str(wanted["validate_dir"]),
            "frames": len(frames),
            "fusion_method": session.host.fusion_method(parsed),
            "range": "the host's",
        },
        "host": session.host.scores(session.modules, frames),
        "detection": our_scores(frames, hypes.block.evaluation),
        "name": hypes.name,
    }
    write_json(out / "results.json", results)
    emit(_table(results))
    emit(f"results:\n  {out / 'results.json'}")
    return results


def _table(results: dict[str, Any]) -> str:
    host, ours = results["host"], results["detection"]
    lines = [f"{'IoU':>6}  {'host':>8}  {'host, sorted':>12}  {'ours':>8}"]
    for name, value in ours["ap_global"].items():
        cells = (host.get(f"ap_{name}"), host.get(f"ap_{name}_global_sort"), value)
        shown = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        lines.append(f"{name:>6}  {shown[0]:>8}  {shown[1]:>12}  {shown[2]:>8}")
    return "\n".join(lines)
