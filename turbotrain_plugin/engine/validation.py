"""A network over a data set: decoded objects, metrics, and a few samples for pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.steps import autocast
from turbotrain_plugin.evaluation import EvaluationResult, Evaluator, decode, join_objects
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import DetectedObjects


@dataclass(slots=True)
class Evaluated:
    """Metrics of a pass, and the detections of the samples that will be drawn.

    Attributes:
        result: The metrics.
        message_bytes: Bytes one neighbour sends per frame; the most of any sample.
        drawn: Sample index -> its detections.
    """

    result: EvaluationResult
    message_bytes: int
    drawn: dict[int, DetectedObjects] = field(default_factory=dict)


def sample_indices(dataset: CooperativeDataset, limit: int) -> list[int]:
    """Return the samples of a pass: all, or ``limit`` of them spread evenly."""
    count = len(dataset)
    if limit <= 0 or limit >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)]


def evaluate_network(
    network: CooperativeNetwork,
    dataset: CooperativeDataset,
    config: RunConfig,
    *,
    limit: int = 0,
    draw: int = 0,
    on_sample: Callable[[], None] | None = None,
) -> Evaluated:
    """Evaluate a network; it is in eval mode during the pass, each module as before afterwards.

    In several processes each takes every n-th sample, and all return what one process would: no
    value depends on who saw a sample.

    Args:
        network: On its device.
        dataset: Made with ``purpose="evaluate"``.
        config: The run's configuration.
        limit: Samples at most, spread evenly (0: all).
        draw: Samples whose detections are kept for pictures, spread evenly.
        on_sample: Called after every sample, on all processes equally often.
    """
    indices = sample_indices(dataset, limit)
    kept = {indices[i] for i in _spread(len(indices), draw)}
    device = next(network.parameters()).device
    evaluation_range = config.turbotrain.evaluation.range or config.preprocess.cav_lidar_range
    anchors = torch.as_tensor(dataset.anchors, device=device)
    evaluator = Evaluator(config, range_m=evaluation_range)
    message_bytes = 0
    drawn: dict[int, DetectedObjects] = {}
    modes = [(module, module.training) for module in network.modules()]  # frozen ones differ
    network.eval()
    own = indices[exchange.rank() :: process_count()]
    loader = BatchLoader(dataset, [[raw_key(index)] for index in own])
    with torch.no_grad():
        for index, batch in zip(own, loader, strict=True):
            moved = batch.to(device)
            with autocast(device, config.turbotrain.amp):
                predictions = network(moved)
            detections = decode(
                predictions, anchors, postprocess=config.postprocess, range_m=evaluation_range
            )
            sent = predictions.message_bytes
            if predictions.rows is not None:
                detections, sent = join_objects(detections, predictions.rows, config.postprocess)
            truths = [truth for truth in batch.truth if truth is not None]
            if len(truths) == len(detections):
                evaluator.update(detections, truths, batch.keys)
            message_bytes = max(message_bytes, sent)
            if index in kept:
                drawn[index] = detections[0]
            if on_sample is not None:
                on_sample()
    if on_sample is not None and len(own) * process_count() < len(indices):
        on_sample()
    for module, was_training in modes:
        module.training = was_training
    return _merged(evaluator, message_bytes, drawn)


def _merged(
    evaluator: Evaluator, message_bytes: int, drawn: dict[int, DetectedObjects]
) -> Evaluated:
    """Return what all processes have seen together."""
    (first, *others) = exchange.gathered((evaluator, message_bytes, drawn))
    merged, most, pictures = first
    for other, sent, more in others:
        merged.merge(other)
        most = max(most, sent)
        pictures |= more
    return Evaluated(merged.compute(), most, dict(sorted(pictures.items())))


def _spread(count: int, wanted: int) -> list[int]:
    """Return ``wanted`` positions spread over ``count``, away from the very ends."""
    wanted = min(wanted, count)
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def raw_key(index: int) -> SampleKey:
    """Return the key of a sample as evaluation sees it."""
    return SampleKey(epoch=0, index=index)
