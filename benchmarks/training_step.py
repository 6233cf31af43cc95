"""Cost of a pretraining step and of a balanced step of the real network, relative to a plain step.

    python -m benchmarks.training_step --out benchmarks/results

The network, the losses and the data are those of a hypes file (the demo's by default), one batch,
data loading left out. A step is forward, backward and the optimiser.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import measure, peak_memory, write_result
from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.config import RunConfig, load_hypes, to_plain
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.optim import build_optimizer
from turbotrain_plugin.engine.steps import (
    FinetuneLearner,
    Learner,
    PretrainLearner,
    optimiser_step,
)
from turbotrain_plugin.structures import Batch


def first_batch(dataset: CooperativeDataset, samples: int) -> Batch:
    keys = [SampleKey(0, index % len(dataset)) for index in range(samples)]
    return next(iter(BatchLoader(dataset, [keys])))


def step_of(learner: Learner, batch: Batch, config: RunConfig, kind: str) -> Callable[[], None]:
    """Return one optimiser step: plain, free, balanced."""
    learner.module.train()
    parameters = list(learner.module.parameters())
    generator = torch.Generator().manual_seed(0)
    inner = build_optimizer(config.optimizer, parameters)
    if kind == "plain":

        def plain() -> None:
            inner.zero_grad()
            losses = learner.losses(batch, generator).tasks.values()
            torch.stack(list(losses)).sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm or 1e9)
            inner.step()

        return plain
    balanced = kind == "balanced"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balancer = GradientBalancer(
            inner,
            method="conflict_suppression" if balanced else "none",
            free_steps=0 if balanced else 1,
            balance_steps=1 if balanced else 0,
        )

    def step() -> None:
        optimiser_step(
            learner,
            [batch],
            balancer,
            None,
            amp="off",
            clip_norm=config.optimizer.clip_norm,
            generator=generator,
        )

    return step


def run(config: RunConfig, repeats: int, samples: int) -> dict[str, Any]:
    """Return times and peak memory of all kinds of steps."""
    tuned = build_dataset(config, "train", "train")
    masked = build_dataset(config, "train", "pretrain")
    batch = first_batch(tuned, samples)

    def finetune() -> FinetuneLearner:
        return FinetuneLearner(build_network(config, tuned), config.loss.args)

    pretrainer = PretrainLearner(
        build_network(config, masked), masked.grid, config.turbotrain.pretrain
    )
    steps = {
        "plain": step_of(finetune(), batch, config, "plain"),
        "free": step_of(finetune(), batch, config, "free"),
        "balanced": step_of(finetune(), batch, config, "balanced"),
        "pretraining": step_of(pretrainer, first_batch(masked, samples), config, "free"),
    }
    for step in steps.values():
        step()
        step()
    memory = {name: peak_memory(step) for name, step in steps.items()}
    return {
        "time": measure(steps, repeats),
        "peak_bytes": memory,
        "peak_ratio": {name: value / memory["plain"] for name, value in memory.items()},
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file")
    parser.add_argument("--hypes", default="turbotrain_v2xpnp_tiny.yaml")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--samples", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_hypes(arguments.hypes)
    data = replace(config.turbotrain.data, num_workers=0, require_history=True)
    config = replace(config, turbotrain=replace(config.turbotrain, data=data))
    results = run(config, arguments.repeats, arguments.samples)
    setup = {"hypes": to_plain(config), "repeats": arguments.repeats, "samples": arguments.samples}
    write_result(arguments.out, "training_step", setup, results)
    for name, ratio in results["peak_ratio"].items():
        print(f"{name:12} time x{results['time'][name]['ratio']:.3f}  peak memory x{ratio:.3f}")


if __name__ == "__main__":
    main()
