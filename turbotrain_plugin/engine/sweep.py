"""The robustness sweep of ``evaluate``: one disturbance at a time, the weights loaded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from turbotrain_plugin.balancing.processes import process_count
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.config.check import check
from turbotrain_plugin.engine import exchange
from turbotrain_plugin.engine.assembly import build_dataset
from turbotrain_plugin.engine.evaluate import OpenedRun, open_run, output_folder
from turbotrain_plugin.engine.records import LOG, Progress, emit, write_json, write_text
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.reporting.sweeps import draw_sweeps, sweep_csv, sweep_table

SCHEMA: Final = 1


class Axis(NamedTuple):
    """A disturbance that can be swept.

    Attributes:
        label: What tables and pictures call it.
        unit: Unit of its values.
        disturb: (configuration, value) to the configuration of that value.
    """

    label: str
    unit: str
    disturb: Callable[[RunConfig, float], RunConfig]


def _latency(config: RunConfig, value: float) -> RunConfig:
    wild = replace(config.wild_setting, async_=True, async_mode="sim", async_overhead=value)
    return replace(config, wild_setting=wild)


def _position(config: RunConfig, value: float) -> RunConfig:
    wild = config.wild_setting
    yaw = wild.ryp_std if wild.loc_err else 0.0  # a switched-off value stays off
    return replace(config, wild_setting=replace(wild, loc_err=True, xyz_std=value, ryp_std=yaw))


def _yaw(config: RunConfig, value: float) -> RunConfig:
    wild = config.wild_setting
    position = wild.xyz_std if wild.loc_err else 0.0
    return replace(
        config, wild_setting=replace(wild, loc_err=True, xyz_std=position, ryp_std=value)
    )


def _drop_out(config: RunConfig, value: float) -> RunConfig:
    data = replace(config.turbotrain.data, drop_out=value)
    return replace(config, turbotrain=replace(config.turbotrain, data=data))


AXES: Final[dict[str, Axis]] = {
    "latency": Axis("latency", "ms", _latency),
    "xyz_std": Axis("position noise", "m", _position),
    "ryp_std": Axis("yaw noise", "deg", _yaw),
    "drop_out": Axis("messages lost", "share", _drop_out),
}
"""Name on the command line to axis; what is not swept stays as the run's file has it."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """One ``--sweep``: the name of an axis and its values, in the order they were given."""

    axis: str
    values: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Sweep:
        """Read ``latency=0,100,200``.

        Raises:
            UserError: On an unknown axis, no values, or values that are no numbers.
        """
        name, equals, listed = text.partition("=")
        if name not in AXES or not equals:
            raise UserError(
                f"--sweep must read AXIS=VALUE,VALUE,... with AXIS one of {', '.join(AXES)}. "
                f"Found {text!r}."
            )
        try:
            values = tuple(float(entry) for entry in listed.split(","))
        except ValueError:
            values = ()
        if not values or not all(math.isfinite(value) for value in values):
            raise UserError(
                f"--sweep {name} must list numbers, such as {name}=0,1. Found {text!r}."
            )
        return cls(name, tuple(dict.fromkeys(values)))


def sweep_run(
    folder: Path,
    sweeps: Sequence[str],
    *,
    device: torch.device,
    split: str = "test",
    epoch: int | None = None,
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run under every value; write sweep.json, sweep.csv and sweep.png.

    Args:
        folder: Run folder.
        sweeps: ``latency=0,100,200`` and the like; each is a table of its own.
        device: Where to compute.
        split: ``train``, ``validate`` or ``test``.
        epoch: Which ``net_epoch{N}.pth``; the best checkpoint without it.
        overrides: ``key=value`` entries, in force for every value.
        out: Where to write, as for ``evaluate_run``.

    Returns:
        What sweep.json holds: ``protocol`` is what those of all rows agree on.

    Raises:
        UserError: On impossible sweeps, before anything is computed, and as ``evaluate_run``.
    """
    wanted = [Sweep.parse(text) for text in sweeps]
    run = open_run(folder, device=device, split=split, epoch=epoch, overrides=overrides)
    configs = {s: [AXES[s.axis].disturb(run.measured, v) for v in s.values] for s in wanted}
    for config in (config for listed in configs.values() for config in listed):
        check(config)
    out = exchange.shared(lambda: output_folder(folder, split, out))
    LOG.info("sweeping %s on %d samples of %s", run.weights, len(run.dataset), run.dataset.split)
    own = -(-len(run.dataset) // process_count())
    total = own * sum(len(sweep.values) for sweep in wanted)
    with Progress("sweep", total) as progress:
        measured = [_measured(run, sweep, configs[sweep], split, progress) for sweep in wanted]
    document = {
        "schema": SCHEMA,
        "name": run.config.name,
        "weights": run.weights.name,
        "split": run.dataset.split,
        "protocol": _shared([row["protocol"] for sweep in measured for row in sweep["rows"]]),
        "sweeps": measured,
    }
    if not exchange.is_main():
        return document
    write_json(out / "sweep.json", document)
    write_text(out / "sweep.csv", sweep_csv(document))
    emit(sweep_table(document))
    picture = draw_sweeps(document, out / "sweep.png")
    emit(f"\nresults:\n  {out / 'sweep.json'}\n  {out / 'sweep.csv'}\n  {picture}")
    return document


def _measured(
    run: OpenedRun, sweep: Sweep, configs: Sequence[RunConfig], split: str, progress: Progress
) -> dict[str, Any]:
    axis, rows = AXES[sweep.axis], []
    for value, config in zip(sweep.values, configs, strict=True):
        dataset = exchange.main_first(partial(build_dataset, config, split, "evaluate"))
        evaluated = evaluate_network(
            run.network, dataset, config, on_sample=lambda: progress.advance(sweep.axis)
        )
        result = evaluated.result.to_json()
        rows.append({"value": value, **result, "message_bytes": evaluated.message_bytes})
    return {"axis": sweep.axis, "label": axis.label, "unit": axis.unit, "rows": rows}


def _shared(protocols: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries that all protocols agree on."""
    first = protocols[0]
    return {name: first[name] for name in first if all(p[name] == first[name] for p in protocols)}
