"""Paired timing of step functions, peak tensor memory, and a stamp of the machine."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from turbotrain_plugin.engine.tensor_memory import peak_tensor_bytes

__all__ = ["machine", "measure", "peak_memory", "write_result"]


def measure(step_functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, Any]:
    """Return how long each function takes relative to the first one.

    In every repeat all functions run once, in random order, and each time is divided by that of
    the first function in the same repeat: what slows the machine down meanwhile slows all of them.
    Without a GPU the time is CPU time of this process.

    Args:
        step_functions: Name -> function; the first is the reference. Warm them up before.
        repeats: Times each one runs.

    Returns:
        Name -> ``median_s``, ``ratio`` (median), ``ratio_quartiles``; and ``repeats``.
    """
    reference = next(iter(step_functions))
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in step_functions}
    for _ in range(repeats):
        order = list(step_functions)
        shuffle.shuffle(order)
        for name in order:
            begin = _now()
            step_functions[name]()
            times[name].append(_now() - begin)
    result: dict[str, Any] = {"repeats": repeats}
    for name, values in times.items():
        ratios = [v / r for v, r in zip(values, times[reference], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4) if repeats > 1 else ratios * 3
        result[name] = {
            "median_s": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": [quartiles[0], quartiles[2]],
        }
    return result


def _now() -> float:
    """Return seconds: CPU time, or wall time once a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_memory(step: Callable[[], None]) -> int:
    """Return the most bytes of tensors that ``step`` has allocated at one time, above the start."""
    return peak_tensor_bytes(step, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def machine() -> dict[str, Any]:
    """Return what a number depends on beside the code: hardware, versions, threads, load."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "torch_threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "clock": "wall, synchronised" if gpu else "process CPU time",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_result(out: Path, name: str, config: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write ``<name>_<date>.json`` with machine, configuration and results; return its path."""
    now = datetime.now(timezone.utc)
    document = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "config": config,
        "results": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}_{now.date().isoformat()}.json"
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    sys.stdout.write(f"{path}\n")
    return path
