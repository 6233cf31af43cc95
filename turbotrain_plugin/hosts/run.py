"""`opencood train` and `evaluate` of a host's hypes file: folder, stages, evaluation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.distributed import losing_nobody
from turbotrain_plugin.engine.interrupts import Interrupted, StopRequest
from turbotrain_plugin.engine.position import samples_of_step
from turbotrain_plugin.engine.records import (
    LOG,
    Board,
    MetricsLog,
    emit,
    environment,
    new_folder,
    write_json,
    write_text,
)
from turbotrain_plugin.hosts import host_named, randomness
from turbotrain_plugin.hosts.checkout import locate
from turbotrain_plugin.hosts.evaluation import detect_all, our_scores
from turbotrain_plugin.hosts.hypes import HostHypes
from turbotrain_plugin.hosts.loop import HostLoop, HostPosition, HostRun
from turbotrain_plugin.hosts.session import Session, enter
from turbotrain_plugin.hosts.stages import StageMaker, make_data
from turbotrain_plugin.structures import UserError


def train_host(hypes: HostHypes, given: Path | None, device: torch.device) -> int:
    """Train a host's model and evaluate it; return the exit code.

    In several processes all call it; the first alone reads and writes files, and evaluates.

    Args:
        hypes: The file.
        given: A run folder to go on in; None: a new one.
        device: Where to compute.

    Raises:
        UserError: On anything the user can mend.
    """
    if hypes.block.threads > 0:
        torch.set_num_threads(hypes.block.threads)
    root = locate(hypes.block.host.root)
    host = host_named(hypes.block.host.name, root)
    folder = exchange.shared(lambda: _folder(hypes, given))
    with losing_nobody(folder), enter(host, root) as session:
        LOG.info("run folder %s, device %s, %s in %s", folder, device, host.title, root)
        LOG.info("shims in force: %s", ", ".join(session.shims))
        try:
            model, parsed = _train(session, hypes, folder, device)
        except Interrupted as stop:
            LOG.warning("%s: go on with:  opencood train --resume --model_dir %s", stop, folder)
            return stop.exit_code
        if hypes.block.host.evaluate and exchange.is_main():
            evaluate_model(session, hypes, parsed, model, folder)
    return 0


def _folder(hypes: HostHypes, given: Path | None) -> Path:
    """Return the run folder, made where there is none."""
    folder = given
    if folder is None:
        folder = new_folder(Path(hypes.block.logging.log_dir), hypes.name)
        write_json(folder / "env.json", environment())
    if not (folder / "config.yaml").is_file():
        write_text(folder / "config.yaml", hypes.text())
    return folder


def _train(
    session: Session, hypes: HostHypes, folder: Path, device: torch.device
) -> tuple[nn.Module, dict[str, Any]]:
    state = exchange.shared(lambda: _saved(folder))
    start = HostPosition(**state["position"]) if state else HostPosition()
    randomness.seed_all(hypes.block.host.seed)
    parsed = hypes.parsed(session.host, session.modules)
    data = make_data(session, hypes, parsed)
    maker = StageMaker(session, hypes, parsed, data, folder, device)
    is_main = exchange.is_main()
    with StopRequest(patient=process_count() > 1) as stop:
        run = HostRun(
            session=session,
            block=hypes.block,
            folder=folder,
            device=device,
            stop=stop,
            log=MetricsLog(folder, int(state["metrics_bytes"]) if state else 0)
            if is_main
            else None,
            board=Board(
                folder,
                enabled=is_main and hypes.block.logging.tensorboard,
                purge_step=start.global_step + 1,
            ),
            workers=data.train_loader.num_workers,
            records=list(state["stage_records"]) if state else [],
        )
        try:
            for index in range(start.stage, len(maker.names)):
                model = _run_stage(maker, index, run, state if index == start.stage else None)
                run.stop_if_asked()
        finally:
            if run.log is not None:
                run.log.close()
            run.board.close()
    return model, parsed


def _saved(folder: Path) -> checkpoints.State | None:
    last = folder / checkpoints.LAST
    return checkpoints.load_run_state(last) if last.is_file() else None


def _run_stage(
    maker: StageMaker, index: int, run: HostRun, state: checkpoints.State | None
) -> nn.Module:
    stage, model = maker.make(index, fresh=state is None)
    exchange.synchronise(stage.learner.module)
    LOG.info(
        "stage %s: %d samples, %d epochs, %d steps of %s",
        stage.name,
        len(stage.train_set),
        stage.epoches,
        stage.steps * stage.epoches,
        samples_of_step(stage.batch_size),
    )
    taken = sum(record["steps"] for record in run.records) if index else 0
    loop = HostLoop(stage, run, HostPosition(stage=index, global_step=taken))
    if state is not None:
        loop.restore(state)
        LOG.info("resuming %s at step %d (exact)", stage.name, loop.position.stage_step)
    loop.run()
    if index + 1 < len(maker.names):
        maker.leave(model, stage.name)
    return model


# --------------------------------------------------------------------------------------- evaluation


def evaluate_folder(
    hypes: HostHypes,
    folder: Path,
    device: torch.device,
    *,
    split: str,
    epoch: int | None,
    out: Path | None,
) -> None:
    """Evaluate the newest weights of a run folder, as the hosts do, or those of an epoch.

    Args:
        hypes: Of the folder.
        folder: Written by us or by the host's own train.py.
        device: Where to compute.
        split: ``test`` or ``validate``.
        epoch: Which ``net_epoch<N>.pth``.
        out: Where to write; None: the folder, or ``<split>/`` in it.

    Raises:
        UserError: When there are no weights, or they are another model's.
    """
    if split not in ("test", "validate"):
        raise UserError(f"A host's model is evaluated on test or validate. Found {split!r}.")
    by_epoch = checkpoints.epoch_files(folder)
    if epoch is None and by_epoch:
        epoch = max(by_epoch)
    weights_file = checkpoints.find_weights(folder, epoch)
    out = out or (folder if split == "test" else folder / split)
    out.mkdir(parents=True, exist_ok=True)
    root = locate(hypes.block.host.root)
    with enter(host_named(hypes.block.host.name, root), root) as session:
        parsed = hypes.parsed(session.host, session.modules)
        model: nn.Module = session.modules.train_utils.create_model(parsed)
        weights = checkpoints.model_weights(checkpoints.load(weights_file))
        checkpoints.load_weights(model, weights, weights_file)
        evaluate_model(session, hypes, parsed, model.to(device), out, split)


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
