"""The `evaluate` command: metrics, tables and pictures of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.assembly import build_dataset, build_network, prepare_torch
from turbotrain_plugin.engine.pictures import draw_all
from turbotrain_plugin.engine.records import LOG, Progress, emit, write_json, write_text
from turbotrain_plugin.engine.stages import PRETRAIN, network_config, stage_behind
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting import results_csv, results_table


def evaluate_run(
    folder: Path,
    *,
    device: torch.device,
    split: str = "test",
    epoch: int | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run and write results.json, results.csv, protocol.yaml and pictures.

    In several processes the samples are divided among them; the first alone reads checkpoints,
    writes and draws.

    Args:
        folder: Run folder.
        device: Where to compute.
        split: ``train``, ``validate`` or ``test``.
        epoch: Which ``net_epoch{N}.pth``; the best checkpoint without it.
        overrides: ``key=value`` entries; they are in the protocol.
        out: Where to write; without it the run folder, or ``<split>/`` in it for a split other than
            ``test``, so that the results of the test split stay.

    Returns:
        What results.json holds.

    Raises:
        UserError: When the folder holds no run, or ``out`` cannot be made.
    """
    config = exchange.shared(lambda: _config_of(folder, overrides))
    prepare_torch(config)
    weights_file = exchange.shared(lambda: checkpoints.find_weights(folder, epoch))
    stages = exchange.shared(lambda: _stage_records(folder))
    out = exchange.shared(
        lambda: made_folder(out or (folder if split == "test" else folder / split))
    )
    state = exchange.shared(lambda: checkpoints.load(weights_file))
    stage = exchange.shared(lambda: stage_behind(state, config, folder))
    if stage.kind == PRETRAIN:
        raise UserError(
            f"{weights_file}: pretrained so far, there is nothing to evaluate; draw what it "
            f"rebuilds with `opencood visualize {folder} --pretrain`."
        )
    measured = network_config(config, stage)
    dataset = exchange.main_first(lambda: build_dataset(measured, split, "evaluate"))
    network = build_network(measured, dataset)
    checkpoints.load_weights(network, checkpoints.model_weights(state), weights_file)
    network.to(device)
    LOG.info("evaluating %s on %d samples of %s", weights_file, len(dataset), dataset.split)
    with Progress("evaluate", -(-len(dataset) // process_count())) as progress:
        evaluated = evaluate_network(
            network,
            dataset,
            measured,
            draw=config.turbotrain.evaluation.pictures,
            on_sample=progress.advance,
        )
    results = {
        **evaluated.result.to_json(),
        "message_bytes": evaluated.message_bytes,
        "stages": stages,
        "name": config.name,
    }
    if not exchange.is_main():
        return results
    write_json(out / "results.json", results)
    write_text(out / "results.csv", results_csv(results))
    write_text(out / "protocol.yaml", yaml.safe_dump(results["protocol"], sort_keys=False))
    emit(results_table(results))
    pictures = draw_all(config, folder, out, dataset, evaluated)
    emit("\n".join(["", "pictures:", *(f"  {path}" for path in pictures)]))
    emit(f"results:\n  {out / 'results.json'}")
    return results


def _config_of(folder: Path, overrides: Sequence[str]) -> RunConfig:
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder, there is no config.yaml.")
    return load_hypes(folder / "config.yaml", overrides)


def _stage_records(folder: Path) -> list[dict[str, Any]]:
    last = folder / checkpoints.LAST
    if not last.is_file():
        return []
    records: list[dict[str, Any]] = checkpoints.load_run_state(last)["stage_records"]
    return records


def made_folder(out: Path) -> Path:
    """Return a folder that exists from now on.

    Raises:
        UserError: When it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: this folder cannot be made ({error.strerror}).") from error
    return out
