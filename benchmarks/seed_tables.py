"""Tables over seeds: what pretraining, its two losses, the balancer and the fusion model change.

    python -m benchmarks.seed_tables pretraining --seeds 0 1 2 --jobs 2 --out logs/tables
    python -m benchmarks.seed_tables reconstruction balancers fusions fusions_48m ...

Every row is one hypes file with overrides, trained from scratch once per seed on the scenes of the
preset `tiny`, all with the same number of steps, and measured on the training scenes of the same
preset made from another seed: another junction, which no setting was chosen on. ``--known`` adds 24
unseen scenes of the junction that was trained on, since all scenes of one seed lie there. A run
that is complete is not repeated; one that was interrupted goes on. Rows that several tables share
are trained once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import write_result
from turbotrain_plugin.config import load_hypes, to_yaml
from turbotrain_plugin.synthetic import PRESETS, generate

TEST_SEED = 101
KNOWN = "known_junction"
TINY = "turbotrain_v2xpnp_tiny.yaml"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: a label, a hypes file and what differs from it."""

    label: str
    overrides: tuple[str, ...] = ()
    hypes: str = TINY


def _strategy(name: str) -> str:
    return f"turbotrain.strategy={name}"


def _method(name: str) -> Row:
    return Row(name, (_strategy("turbotrain"), f"turbotrain.balance.method={name}"))


PRETRAINED = Row("pretraining on", (_strategy("turbotrain_no_balance"),))
FUSIONS = (
    "no_fusion",
    "late",
    "early",
    "fcooper",
    "attfuse",
    "disconet",
    "v2vnet",
    "v2xvit",
    "ffnet",
    "cobevflow",
    "v2xpnp",
)
# The first row of a table is the one the others are compared with.
TABLES: dict[str, tuple[Row, ...]] = {
    "pretraining": (Row("pretraining off", (_strategy("one_time"),)), PRETRAINED),
    "reconstruction": (
        Row("both", PRETRAINED.overrides),
        Row("points only", (*PRETRAINED.overrides, "turbotrain.pretrain.occ.weight=0")),
        Row("occupancy only", (*PRETRAINED.overrides, "turbotrain.pretrain.points.weight=0")),
    ),
    "balancers": (
        Row("none", PRETRAINED.overrides),  # the plain sum in every step
        *(_method(name) for name in ("conflict_suppression", "cagrad", "gradnorm", "moco")),
    ),
    "fusions": tuple(
        Row(name, (_strategy("turbotrain"),), f"turbotrain_{name}_tiny.yaml") for name in FUSIONS
    ),
}
# Farther than one agent sees: at 48 m the ego has fewer than 10 points of 43 % of the labelled
# objects, all agents together of 12 %; at 32 m of 17 % and 5 %. Cells of 1.5 m cost as much.
WIDE = (
    "preprocess.cav_lidar_range=[-48, -48, -5, 48, 48, 3]",
    "preprocess.args.voxel_size=[1.5, 1.5, 8]",
    "turbotrain.evaluation.range=[-48, -48, -5, 48, 48, 3]",
)
TABLES["fusions_48m"] = tuple(
    Row(row.label, (*row.overrides, *WIDE), row.hypes) for row in TABLES["fusions"]
)
METRICS = {
    "AP@0.5": ("detection", "ap_global", "0.50"),
    "AP@0.7": ("detection", "ap_global", "0.70"),
    "moving FDE (m)": ("prediction", "fde_moving_m"),
    "EPA": ("end_to_end", "epa_unclipped"),
}


def budget(epoches: int, cycle: tuple[int, int]) -> list[str]:
    """Return the overrides that give every row the same length."""
    return [
        f"train_params={{batch_size: 1, epoches: {epoches}, eval_freq: 0, save_freq: 0}}",
        f"turbotrain.balance.free_steps={cycle[0]}",
        f"turbotrain.balance.balance_steps={cycle[1]}",
        "turbotrain.evaluation.pictures=0",
        "turbotrain.logging.tensorboard=false",
        "turbotrain.logging.save_steps=200",
    ]


def prepare(row: Row, seed: int, common: Sequence[str], out: Path) -> Path:
    """Return the run folder of a row and seed, named by its resolved settings."""
    config = load_hypes(row.hypes, [*common, *row.overrides, f"seed={seed}"])
    text = to_yaml(config)
    folder = out / "runs" / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not (folder / "config.yaml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    return folder


def train(folder: Path) -> None:
    """Train a prepared run in a process of its own, with one thread, unless it is complete."""
    if (folder / "results.json").is_file():
        return
    command = [sys.executable, "-m", "turbotrain_plugin", "train", "--device", "cpu"]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        subprocess.run(
            [*command, "--model_dir", str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=True,
        )


def known_junction(out: Path) -> Path:
    """Return 24 test scenes after the training and validation scenes of `tiny`."""
    root, name = out / "tiny_more", "tiny_more"
    PRESETS[name] = replace(PRESETS["tiny"], name=name, scenes=(*PRESETS["tiny"].scenes[:2], 24))
    generate(name, root, seed=0, workers=1)
    return root / "test"


def evaluate_known(folder: Path, scenes: Path) -> None:
    """Evaluate a finished run on the known junction, into a folder of its own."""
    out = folder / KNOWN
    if (out / "results.json").is_file():
        return
    command = [sys.executable, "-m", "turbotrain_plugin", "evaluate", "--model_dir", str(folder)]
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        subprocess.run(
            [*command, "--device", "cpu", "--out", str(out), "-o", f"test_dir={scenes}"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            check=True,
        )


def test_scenes(out: Path) -> Path:
    """Return scenes that no setting was chosen on, made on first use."""
    root = out / f"tiny_seed_{TEST_SEED}"
    command = [sys.executable, "-m", "turbotrain_plugin", "data", "synth", "--preset", "tiny"]
    command += ["--seed", str(TEST_SEED), "--out", str(root), "--resume"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / "train"


def value_of(results: dict[str, Any], path: Sequence[str]) -> float | None:
    """Return one number of ``results.json``; None where it was not measured."""
    found: Any = results
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean and sample standard deviation over seeds, with the single values."""
    known = [value for value in values if value is not None]
    return {
        "values": list(values),
        "mean": statistics.fmean(known) if known else None,
        "sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def table(rows: Sequence[Row], results: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one entry per row: every metric, and its difference from the first row per seed."""
    reference = results[rows[0].label]
    lines = []
    for row in rows:
        line: dict[str, Any] = {"label": row.label}
        for name, path in METRICS.items():
            own = [value_of(result, path) for result in results[row.label]]
            base = [value_of(result, path) for result in reference]
            line[name] = summary(own)
            line[name]["difference"] = summary(
                [
                    a - b if a is not None and b is not None else None
                    for a, b in zip(own, base, strict=True)
                ]
            )
        lines.append(line)
    return lines


def markdown(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table of means, standard deviations and paired differences."""
    header = "| |" + "|".join(f" {name} | +- first row " for name in METRICS) + "|"
    text = [header, "|---|" + "---:|" * (2 * len(METRICS))]
    for line in lines:
        cells = [f" {line['label']} "]
        for name in METRICS:
            cells += [_cell(line[name]), _cell(line[name]["difference"], signed=True)]
        text.append("|" + "|".join(cells) + "|")
    return "\n".join(text) + "\n"


def _cell(entry: dict[str, Any], *, signed: bool = False) -> str:
    if entry["mean"] is None:
        return " - "
    spread = "" if entry["sd"] is None else f" ± {entry['sd']:.3f}"
    return f" {entry['mean']:{'+' if signed else ''}.3f}{spread} "


def main() -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", choices=[*TABLES])
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="these rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epoches", type=int, default=2, help="fine-tuning, 360 steps each")
    parser.add_argument("--cycle", type=int, nargs=2, default=(120, 60), metavar=("FREE", "BAL"))
    parser.add_argument("--known", action="store_true", help="measure on the known junction too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("logs/seed_tables"))
    parser.add_argument("--results", type=Path, help="folder of the result files (default: OUT)")
    options = parser.parse_args()
    length = budget(options.epoches, tuple(options.cycle))
    if options.rows:
        for name, rows in TABLES.items():
            TABLES[name] = tuple(row for row in rows if row.label in options.rows)
    common = [*length, f"test_dir={test_scenes(options.out)}"]
    folders = {
        (name, row.label, seed): prepare(row, seed, common, options.out)
        for seed in options.seeds
        for name in options.tables
        for row in TABLES[name]
    }
    runs = list(dict.fromkeys(folders.values()))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(train, runs))
    places = [""]
    if options.known:
        scenes = known_junction(options.out)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda folder: evaluate_known(folder, scenes), runs))
        places.append(KNOWN)
    for name in options.tables:
        for place in places:
            config = {"seeds": options.seeds, "common": length, "test_seed": TEST_SEED}
            config["rows"] = {r.label: [r.hypes, *r.overrides] for r in TABLES[name]}
            config["measured on"] = place or "another junction"
            results = {
                row.label: [
                    json.loads(
                        (folders[name, row.label, seed] / place / "results.json").read_text()
                    )
                    for seed in options.seeds
                ]
                for row in TABLES[name]
            }
            lines = table(TABLES[name], results)
            title = f"seeds_{name}_{place}".rstrip("_")
            path = write_result(options.results or options.out, title, config, {"rows": lines})
            text = markdown(lines)
            path.with_suffix(".md").write_text(text, encoding="utf-8")
            sys.stdout.write(f"{name}, {place or 'another junction'}\n{text}")


if __name__ == "__main__":
    main()
