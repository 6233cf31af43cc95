"""What a run logs of one optimiser step: a line of metrics.jsonl and TensorBoard's scalars."""

from __future__ import annotations

from typing import Any

from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.engine.position import Position
from turbotrain_plugin.engine.records import balance_line, finite
from turbotrain_plugin.engine.steps import StepResult


def step_line(
    stage: str,
    position: Position,
    result: StepResult,
    balancer: GradientBalancer,
    *,
    seconds: float,
    waited_s: float,
) -> dict[str, Any]:
    """Return the line of a step; ``data_wait`` is the share of its time spent waiting for data."""
    line: dict[str, Any] = {
        "stage": stage,
        "step": position.global_step,
        "stage_step": position.stage_step,
        "epoch": position.epoch,
        "losses": finite(result.tasks),
        "parts": finite(result.parts),
        "lr": balancer.param_groups[0]["lr"],
        "gradient_norm": finite({"": result.gradient_norm}).get(""),
        "balanced": bool(result.record is not None and result.record.balanced),
        "taken": result.taken,
        "seconds": round(seconds, 4),
        "data_wait": round(waited_s / max(seconds, 1e-9), 4),
    }
    if result.record is not None and result.record.measured:
        line |= balance_line(result.record, balancer.window_of(result.record))
    return line


def step_scalars(line: dict[str, Any], result: StepResult) -> dict[str, float]:
    """Return the scalars of a step under ``<stage>/``."""
    shown = result.tasks | result.parts | {"lr": line["lr"]}
    if "cosine" in line:
        shown["cosine"] = line["cosine"]
    return {f"{line['stage']}/{name}": value for name, value in shown.items()}
