"""Samples per second of fine-tuning steps in one process and in several, free and balanced.

    python -m benchmarks.distributed_step --out benchmarks/results

Every process has a batch of its own, as in a run; on a CPU they are gloo processes of one thread
each, on GPUs one takes each GPU. The exchange of gradients is in the time, data loading is not.
Rounds of all numbers of processes follow one another, so that what slows the machine down
meanwhile slows all of them; the time is wall time, and the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from benchmarks.measure import write_result
from benchmarks.training_step import first_batch, step_of
from turbotrain_plugin.config import RunConfig, load_hypes, to_plain
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.distributed import run_together
from turbotrain_plugin.engine.steps import FinetuneLearner

KINDS = ("free", "balanced")


def configured(hypes: str) -> RunConfig:
    config = load_hypes(hypes)
    data = replace(config.turbotrain.data, num_workers=0, require_history=True)
    return replace(config, turbotrain=replace(config.turbotrain, data=data))


def as_process(rank: int, world: int, port: int, hypes: str, samples: int, file: str) -> None:
    """Join the others and measure; the first process leaves seconds a step in ``file``."""
    places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"

    def work(device: torch.device) -> int:
        torch.set_num_threads(1)
        found = seconds_a_step(configured(hypes), device, samples)
        if rank == 0:
            Path(file).write_text(json.dumps(found))
        return 0

    run_together(work, "auto")


def seconds_a_step(config: RunConfig, device: torch.device, samples: int) -> dict[str, float]:
    """Return the median of five steps of each kind, after two to warm up."""
    dataset = build_dataset(config, "train", "train")
    batch = first_batch(dataset, samples).to(device)
    found = {}
    for kind in KINDS:
        learner = FinetuneLearner(build_network(config, dataset), config.loss.args)
        learner.module.to(device)
        step = step_of(learner, batch, config, kind)
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        found[kind] = statistics.median(times[2:])
    return found


def run(hypes: str, worlds: list[int], rounds: int, samples: int) -> dict[str, Any]:
    """Return the samples per second of each number of processes, and their ratio to the first."""
    build_dataset(configured(hypes), "train", "train")  # made-up scenes are made here, once
    speeds: dict[str, list[float]] = {f"{w} {kind}": [] for w in worlds for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for world in worlds:
                file = f"{folder}/{number}_{world}.json"
                port = 29600 + number * len(worlds) + worlds.index(world)
                spawn(as_process, args=(world, port, hypes, samples, file), nprocs=world)
                for kind, seconds in json.loads(Path(file).read_text()).items():
                    speeds[f"{world} {kind}"].append(world * samples / seconds)
    found = {}
    for name, values in speeds.items():
        first = speeds[f"{worlds[0]} {name.split()[1]}"]
        ratios = [value / one for value, one in zip(values, first, strict=True)]
        found[name] = {"samples_per_s": values, "speedup": statistics.median(ratios)}
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file")
    parser.add_argument("--hypes", default="turbotrain_v2xpnp_tiny.yaml")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1, help="per process")
    arguments = parser.parse_args()
    results = run(arguments.hypes, arguments.processes, arguments.rounds, arguments.samples)
    setup = {
        "hypes": to_plain(configured(arguments.hypes)),
        "processes": arguments.processes,
        "rounds": arguments.rounds,
        "samples": arguments.samples,
    }
    write_result(arguments.out, "distributed_step", setup, results)
    for name, values in results.items():
        print(f"{name:12} x{values['speedup']:.2f}  {max(values['samples_per_s']):.2f} samples/s")


if __name__ == "__main__":
    main()
