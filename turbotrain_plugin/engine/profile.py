"""The `profile` command: what a network costs and what its agents send, on one sample."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from turbotrain_plugin.config import RunConfig, load_hypes
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import (
    SYNTHETIC,
    build_dataset,
    build_network,
    prepare_torch,
)
from turbotrain_plugin.engine.dry_run import PROBE
from turbotrain_plugin.engine.flops import count_flops
from turbotrain_plugin.engine.stages import network_config, stage_behind, stages_of
from turbotrain_plugin.engine.steps import autocast
from turbotrain_plugin.engine.tensor_memory import peak_tensor_bytes
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.evaluation import decode, join_objects
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import Batch, Predictions

RATES_HZ: Final = (2, 10)
"""Rates of the paper's frames and of the recordings."""
LOOKED_AT: Final = 8
"""Samples among which the one with most agents is taken."""
_MEBIBYTE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """What a network costs in evaluation, one sample at a time.

    Attributes:
        name: The run's name.
        fusion: ``model.args.fusion.core_method``.
        device: Where it was measured.
        agents: Agents of the sample; 1 where their clouds are joined.
        frames: T.
        parameters: By module of the network, and ``total``.
        flops: The same, of one forward pass (see ``engine/flops.py``).
        latency_ms: Median time of a forward pass.
        peak_mib: Most memory of tensors at one time during a pass, weights and input left out.
        message_bytes: Bytes one neighbour sends per frame.
    """

    name: str
    fusion: str
    device: str
    agents: int
    frames: int
    parameters: dict[str, int]
    flops: dict[str, int]
    latency_ms: float
    peak_mib: float
    message_bytes: int

    def mbit_per_s(self) -> dict[str, float]:
        """Return the megabits per second that one neighbour sends at each of ``RATES_HZ``."""
        return {f"{rate}": self.message_bytes * 8 * rate / 1e6 for rate in RATES_HZ}

    def to_json(self) -> dict[str, Any]:
        """Return plain values; rates in Hz are the names of ``mbit_per_s``."""
        return {
            "name": self.name,
            "fusion": self.fusion,
            "device": self.device,
            "agents": self.agents,
            "frames": self.frames,
            "parameters": self.parameters,
            "gflops": {name: count / 1e9 for name, count in self.flops.items()},
            "latency_ms": self.latency_ms,
            "peak_mib": self.peak_mib,
            "message_bytes": self.message_bytes,
            "mbit_per_s": self.mbit_per_s(),
        }

    def table(self) -> str:
        """Return the text the command prints."""
        lines = [
            f"{self.name}: {self.fusion}, {self.agents} agents, {self.frames} frames, "
            f"{self.device}",
            f"{'module':<14}{'parameters':>14}{'GFLOPs':>12}",
        ]
        lines += [
            f"{name:<14}{count:>14,}{self.flops.get(name, 0) / 1e9:>12.3f}"
            for name, count in self.parameters.items()
        ]
        rates = ", ".join(
            f"{value:.3f} Mbit/s at {hz} Hz" for hz, value in self.mbit_per_s().items()
        )
        lines += [
            f"latency {self.latency_ms:.1f} ms, peak memory {self.peak_mib:.1f} MiB",
            f"message of one neighbour per frame: {self.message_bytes:,} bytes; {rates}",
        ]
        return "\n".join(lines)


def profile(
    config: RunConfig, device: torch.device, *, run: Path | None = None, repeats: int = 5
) -> Profile:
    """Measure the network of the last stage.

    The sample is the one with most agents among the first ``LOOKED_AT`` of the training split, as
    evaluation sees it; where scenes would have to be made, a small dense one stands in.

    Args:
        config: The configuration.
        device: Where to compute.
        run: Run folder whose weights are used. What CoBEVFlow and late fusion send depends on what
            the network has learnt; without weights the number means little.
        repeats: Timed passes.

    Raises:
        UserError: When the weights do not fit.
    """
    prepare_torch(config)
    stage = stages_of(config)[-1]
    state = None
    if run is not None:
        weights = checkpoints.find_weights(run)
        state = checkpoints.load(weights)
        stage = stage_behind(state, config, run)
    config = network_config(config, stage)
    if any(root.startswith(SYNTHETIC) for root in config.root_dir):
        config = replace(config, root_dir=(PROBE,))
    dataset = build_dataset(config, "train", "evaluate")
    network = build_network(config, dataset).to(device).eval()
    if state is not None:
        checkpoints.load_weights(network, checkpoints.model_weights(state), weights)
    batch = _batch(dataset).to(device)

    def forward() -> Predictions:
        with torch.no_grad(), autocast(device, config.turbotrain.amp):
            predictions: Predictions = network(batch)
        return predictions

    predictions = forward()  # the first pass loads kernels and is not timed
    return Profile(
        name=config.name,
        fusion=config.model.args.fusion.core_method,
        device=str(device),
        agents=int(batch.record_len[0]),
        frames=batch.frame_valid.shape[1],
        parameters=parameters(network),
        flops=count_flops(network, forward),
        latency_ms=statistics.median(_seconds(forward, device) for _ in range(repeats)) * 1e3,
        peak_mib=peak_tensor_bytes(forward, device) / _MEBIBYTE,
        message_bytes=_message_bytes(predictions, dataset, config),
    )


def profile_run(folder: Path, overrides: list[str], device: torch.device) -> Profile:
    """Measure the network of a run folder with its weights.

    Raises:
        UserError: When the folder holds no run.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: not a run folder, there is no config.yaml.")
    return profile(load_hypes(folder / "config.yaml", overrides), device, run=folder)


def parameters(network: CooperativeNetwork) -> dict[str, int]:
    """Return the parameters of each module of the network, and ``total``."""
    counts = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in network.named_children()
    }
    return {**counts, "total": sum(parameter.numel() for parameter in network.parameters())}


def _batch(dataset: CooperativeDataset) -> Batch:
    keys = [SampleKey(0, index) for index in range(min(LOOKED_AT, len(dataset)))]
    most = max(keys, key=lambda key: len(dataset.sample(key).agent_ids))
    return next(iter(BatchLoader(dataset, [[most]])))


def _seconds(forward: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    forward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _message_bytes(predictions: Predictions, dataset: CooperativeDataset, config: RunConfig) -> int:
    if predictions.rows is None:
        return predictions.message_bytes
    anchors = torch.as_tensor(dataset.anchors, device=predictions.class_logits.device)
    range_m = config.turbotrain.evaluation.range or config.preprocess.cav_lidar_range
    objects = decode(predictions, anchors, postprocess=config.postprocess, range_m=range_m)
    return join_objects(objects, predictions.rows, config.postprocess)[1]
