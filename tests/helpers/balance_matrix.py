"""Precision x accumulation x kind of step x clipping x source: one step, and the same by hand."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.made_tasks import TinyTasks
from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning

SOURCES = ("exact", "exact_low_memory", "cut", "feature")
TASKS = ("detection", "prediction")
ROWS = 16
RATE = 0.1
CLIP = 0.05
"""Below the gradient norms here, so that clipping bites."""

PRECISIONS: dict[str, dict[str, Any]] = {
    "float64": {"dtype": torch.float64, "rtol": 1e-9},
    "fp32": {"dtype": torch.float32, "rtol": 2e-5},
    "bf16": {"dtype": torch.float32, "amp": torch.bfloat16, "rtol": 2e-2},
    "fp16": {"dtype": torch.float32, "amp": torch.float16, "scale": 2.0**12, "rtol": 5e-3},
}

Gradient = dict[str, Tensor]


def autocast(keys: Mapping[str, Any]) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=keys.get("amp", torch.bfloat16), enabled="amp" in keys)


def is_shared(name: str) -> bool:
    return "head" not in name


def is_encoder(name: str) -> bool:
    return name.startswith("encoder")


def is_above(name: str) -> bool:
    return is_shared(name) and not is_encoder(name)


def per_task(model: TinyTasks, x: Tensor, keys: Mapping[str, Any], share: float) -> Any:  # noqa: ANN401
    """Return each task's gradients and its gradient at the feature, a forward pass for each."""
    gradients: list[Gradient] = []
    features: list[Tensor] = []
    names = [name for name, _ in model.named_parameters()]
    for task in TASKS:
        with autocast(keys):
            loss = model(x)[task] * (share * keys.get("scale", 1.0))
        model.feature.retain_grad()
        model.zero_grad()
        loss.backward()
        unscale = 1.0 / keys.get("scale", 1.0)
        gradients.append(
            {n: g * unscale for n in names if (g := model.get_parameter(n).grad) is not None}
        )
        assert model.feature.grad is not None
        features.append(model.feature.grad.double() * unscale)
    model.zero_grad()
    return gradients, features


def projected(first: Tensor, second: Tensor) -> list[float]:
    """Return the weights of mutual projection."""
    product = float(first @ second)
    return [1.0 - min(product, 0.0) / float(g @ g) for g in (first, second)]


def flat(gradient: Gradient) -> Tensor:
    return torch.cat([gradient[name].flatten().double() for name in sorted(gradient)])


def add(total: Gradient, more: Mapping[str, Tensor], weight: float = 1.0) -> None:
    for name, value in more.items():
        total[name] = total[name] + weight * value if name in total else weight * value


def only(gradient: Gradient, wanted: Any) -> Gradient:  # noqa: ANN401
    return {name: value for name, value in gradient.items() if wanted(name)}


def slow(
    model: TinyTasks, x: Tensor, keys: Mapping[str, Any], n: int, source: str, *, balanced: bool
) -> Gradient:
    """Return the gradient of one step, computed task by task and micro-batch by micro-batch."""
    parts = [per_task(model, chunk, keys, 1.0 / n) for chunk in x.chunk(n)]
    total: Gradient = {}
    # What is weighed before the next micro-batch comes, and what when all are known.
    early = {"cut": is_encoder, "feature": is_shared}.get(source, lambda _: False)
    sums: list[Gradient] = [{}, {}]
    features: list[Tensor] = [torch.empty(0), torch.empty(0)]
    weights = [1.0, 1.0]
    for gradients, arrived in parts:
        for k in (0, 1):
            add(sums[k], gradients[k])
            features[k] = torch.cat([features[k], arrived[k].flatten()])
        if balanced and source == "feature":
            weights = projected(*features)
        elif balanced:
            over = is_above if source == "cut" else is_shared
            weights = projected(*(flat(only(gradient, over)) for gradient in sums))
        for k in (0, 1):
            add(total, only(gradients[k], early), weights[k])
    for k in (0, 1):
        add(total, only(sums[k], lambda name: not is_shared(name)))
        add(total, only(sums[k], lambda name: is_shared(name) and not early(name)), weights[k])
    return total


def ours(
    model: TinyTasks,
    x: Tensor,
    keys: Mapping[str, Any],
    n: int,
    source: str,
    *,
    balanced: bool,
    clip: bool,
) -> tuple[Gradient, GradientBalancer]:
    """Take one step; return the gradient it used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        balancer = GradientBalancer(
            torch.optim.SGD(model.parameters(), lr=RATE),
            free_steps=0 if balanced else 5,
            balance_steps=1,
            named_parameters=list(model.named_parameters()),
            source=source,
        )
    scaler = torch.amp.GradScaler("cpu", init_scale=keys["scale"]) if "scale" in keys else None
    balancer.zero_grad()
    for chunk in x.chunk(n):
        with autocast(keys):
            losses = model(chunk)
        balancer.backward({task: loss / n for task, loss in losses.items()}, scaler=scaler)
    if scaler is not None:
        scaler.unscale_(balancer)
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    used = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if scaler is not None:
        scaler.step(balancer)
        scaler.update()
    else:
        balancer.step()
    assert balancer.steps_taken == 1
    return used, balancer


def clipped(gradient: Gradient) -> Gradient:
    norm = float(flat(gradient).norm())
    assert norm > CLIP
    return {name: value * CLIP / (norm + 1e-6) for name, value in gradient.items()}


def assert_close(found: Gradient, expected: Gradient, rtol: float) -> None:
    """Compare tensor by tensor, relative to the length of each."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        gap = float((found[name] - value).double().norm())
        assert gap <= rtol * float(value.double().norm()), (name, gap)
