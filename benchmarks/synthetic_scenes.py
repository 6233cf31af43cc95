"""How long made-up data sets take, how large they are, and that ``bench`` needs bounded memory.

    python -m benchmarks.synthetic_scenes [--seed 0] [--workers 2] [--out benchmarks/results]

``tiny`` and ``small`` are made whole, as ``opencood data synth`` makes them, each in a process of
its own. Of ``bench`` one scene of each layout is made, and the rest is extrapolated: scenes are
independent and written one by one. That memory does not grow with scenes is measured too: one
process makes one scene, another three. On a busy machine look at the CPU time: it includes all
worker processes, and its share of a core is an upper bound of what an idle machine would need.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import write_result
from turbotrain_plugin.synthetic import PRESETS, SPEC_VERSION, Preset, generate

TARGETS_S = {"tiny": 30.0, "small": 90.0}
"""Wall time on two cores."""


def limited(preset: Preset, layout: str, scenes: int) -> Preset:
    """Return the preset with training scenes of one layout only."""
    return replace(preset, scenes=(scenes, 0, 0), layouts=(layout,))


def make(preset: Preset, seed: int, workers: int) -> dict[str, Any]:
    """Make a data set in a temporary folder; return what it took and what came out."""
    with tempfile.TemporaryDirectory() as folder:
        started, cpu = time.perf_counter(), cpu_seconds()
        root = generate(preset, Path(folder) / "root", seed=seed, workers=workers)
        wall = time.perf_counter() - started
        return {
            "scenes": sum(preset.scenes),
            "workers": workers,
            "wall_s": round(wall, 2),
            "cpu_s": round(cpu_seconds() - cpu, 2),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            **contents(root),
        }


def cpu_seconds() -> float:
    """Return user and system time of this process and of its ended children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def peak_rss_mb() -> float:
    """Return the most memory that this process or the largest of its children held, megabytes."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    per_mb = 1e6 if sys.platform == "darwin" else 1024.0  # bytes on macOS, kilobytes on Linux
    return float(max(usage.ru_maxrss for usage in usages)) / per_mb


def contents(root: Path) -> dict[str, Any]:
    """Return the number of label files and clouds, and megabytes by kind of file."""
    size: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in root.rglob("*"):
        if path.is_file():
            size[path.suffix] += path.stat().st_size
            files[path.suffix] += 1
    return {
        "label_files": files[".yaml"],
        "clouds": files[".bin"],
        "megabytes": {kind.lstrip("."): round(n / 1e6, 2) for kind, n in sorted(size.items())},
        "megabytes_in_all": round(sum(size.values()) / 1e6, 1),
    }


def in_process(name: str, layout: str | None, scenes: int, seed: int, workers: int) -> Any:  # noqa: ANN401 - JSON
    """Run ``make`` in a fresh interpreter, so that memory and imports are its own."""
    arguments = ["--part", name, "--seed", str(seed), "--workers", str(workers)]
    if layout is not None:
        arguments += ["--layout", layout, "--scenes", str(scenes)]
    command = [sys.executable, "-m", "benchmarks.synthetic_scenes", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def extrapolated(preset: Preset, single: dict[str, dict[str, Any]], workers: int) -> dict[str, Any]:
    """Return what all scenes of ``preset`` would take, from one scene of each layout."""
    counts = Counter(preset.layout_of(number) for number in range(sum(preset.scenes)))

    def total(key: str) -> float:
        return float(sum(count * single[name][key] for name, count in counts.items()))

    clouds = sum(count * single[name]["megabytes"]["bin"] for name, count in counts.items())
    frames = len(range(0, preset.frames, preset.cloud_stride))
    every = clouds * preset.frames / frames
    return {
        "scenes": dict(counts),
        "cpu_s": round(total("cpu_s")),
        "wall_s_at_workers": {str(n): round(total("cpu_s") / n) for n in (workers, 16)},
        "gigabytes": round(total("megabytes_in_all") / 1e3, 2),
        "gigabytes_with_all_clouds": round((total("megabytes_in_all") - clouds + every) / 1e3, 2),
        "label_files": round(total("label_files")),
        "clouds": round(total("clouds")),
    }


def run(seed: int, workers: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, target in TARGETS_S.items():
        found = in_process(name, None, 0, seed, workers)
        results[name] = {**found, "target_wall_s": target, "met": found["wall_s"] <= target}
    single = {
        layout: in_process("bench", layout, 1, seed, 1)
        for layout in dict.fromkeys(PRESETS["bench"].layouts)
    }
    results["bench"] = {
        "one_scene": single,
        "three_scenes_in_one_process": in_process("bench", "junction", 3, seed, 1),
        "extrapolated": extrapolated(PRESETS["bench"], single, workers),
    }
    return results


def markdown(report: dict[str, Any]) -> str:
    results, config = report["results"], report["config"]
    bench = results["bench"]
    lines = [
        "# Synthetic scenes",
        "",
        f"{report['date']}, seed {config['seed']}. Wall time depends on what else runs; CPU time "
        "is that of all processes together.",
        "",
        "| what | scenes | workers | wall, s | CPU, s | peak MB of a process | MB written |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = {name: results[name] for name in TARGETS_S}
    rows |= {f"bench, one {layout}": found for layout, found in bench["one_scene"].items()}
    rows["bench, three in one process"] = bench["three_scenes_in_one_process"]
    for name, found in rows.items():
        lines.append(
            f"| {name} | {found['scenes']} | {found['workers']} | {found['wall_s']:.1f} | "
            f"{found['cpu_s']:.1f} | {found['peak_rss_mb']:.0f} | {found['megabytes_in_all']:.0f} |"
        )
    lines.append("")
    for name, target in TARGETS_S.items():
        word = "met" if results[name]["met"] else "missed"
        lines.append(f"Target for {name} on two cores, {target:.0f} s of wall time: {word}.")
    rest = bench["extrapolated"]
    walls = ", ".join(f"{s} s with {n} workers" for n, s in rest["wall_s_at_workers"].items())
    scenes = " and ".join(f"{count} {name}" for name, count in rest["scenes"].items())
    lines += [
        "",
        f"Extrapolated to all of bench ({scenes} scenes): {rest['cpu_s']} s of CPU time ({walls} "
        f"if each has a core), {rest['gigabytes']} GB; with a cloud at every frame "
        f"{rest['gigabytes_with_all_clouds']} GB.",
        "",
    ]
    for part in ("machine", "config"):
        values = ", ".join(f"{key} {value}" for key, value in report[part].items())
        lines.append(f"- {part}: {values}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--layout", help=argparse.SUPPRESS)
    parser.add_argument("--scenes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        preset = PRESETS[options.part]
        if options.layout:
            preset = limited(preset, options.layout, options.scenes)
        sys.stdout.write(json.dumps(make(preset, options.seed, options.workers)))
        return
    config = {
        "seed": options.seed,
        "workers": options.workers,
        "spec_version": SPEC_VERSION,
        "threads_per_process": os.environ.get("OMP_NUM_THREADS", "not set"),
        "presets": {name: asdict(PRESETS[name]) for name in (*TARGETS_S, "bench")},
    }
    path = write_result(options.out, "synthetic_scenes", config, run(options.seed, options.workers))
    report = json.loads(path.read_text(encoding="utf-8"))
    # The table says the sizes of the presets; beams and strides are in the JSON file beside it.
    report["config"] = {key: value for key, value in config.items() if key != "presets"}
    path.with_suffix(".md").write_text(markdown(report), encoding="utf-8")


if __name__ == "__main__":
    main()
