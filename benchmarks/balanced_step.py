"""Cost of free and balanced steps of GradientBalancer relative to a plain optimiser step.

    python -m benchmarks.balanced_step --out benchmarks/results

The model is a small pillar-like bird's-eye-view network on random maps: a convolutional trunk over
the maps of all agents and frames, mean over frames, maximum over agents, two heads. A step is
forward, backward and Adam. Random data, so nothing is said about conflicts here.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import measure, peak_memory, write_result
from turbotrain_plugin.balancing import GradientBalancer, ScheduleWarning


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    agents: int = 3
    frames: int = 4
    channels: int = 32
    height: int = 64
    width: int = 128
    repeats: int = 15
    threads: int = 1
    seed: int = 0


class PillarLike(nn.Module):
    """Trunk and two heads; about 98 % of the parameters are shared."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        c = setup.channels
        self.setup = setup
        self.trunk = nn.Sequential(
            *self._block(c, c, 1),
            *self._block(c, c, 1),
            *self._block(c, 2 * c, 2),
            *self._block(2 * c, 2 * c, 1),
            *self._block(2 * c, 4 * c, 2),
            *self._block(4 * c, 4 * c, 1),
            nn.ConvTranspose2d(4 * c, 4 * c, 2, stride=2),
        )
        self.fusion = nn.Conv2d(4 * c, 2 * c, 1)
        self.detection = nn.Conv2d(2 * c, 16, 1)
        self.prediction = nn.Conv2d(2 * c, 24, 1)

    @staticmethod
    def _block(inside: int, outside: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outside), nn.ReLU()]

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        """Return the losses for maps (agents * frames, C, H, W)."""
        features = self.trunk(maps)
        over_time = features.unflatten(0, (self.setup.agents, self.setup.frames)).mean(dim=1)
        fused = self.fusion(over_time).amax(dim=0, keepdim=True)
        return {
            "detection": (self.detection(fused) - 1.0).square().mean(),
            "prediction": (self.prediction(fused) + 1.0).abs().mean(),
        }


def _fresh(setup: Setup) -> tuple[PillarLike, torch.optim.Adam]:
    torch.manual_seed(setup.seed)
    model = PillarLike(setup)
    return model, torch.optim.Adam(model.parameters(), lr=1e-4)


def plain_step(setup: Setup, maps: Tensor) -> Callable[[], None]:
    """Return an ordinary training step."""
    model, adam = _fresh(setup)

    def step() -> None:
        adam.zero_grad()
        losses = model(maps)
        (losses["detection"] + losses["prediction"]).backward()
        adam.step()

    return step


def balancer_step(
    setup: Setup, maps: Tensor, *, balanced: bool, source: str = "exact"
) -> Callable[[], None]:
    """Return a step of the balancer, all of one kind."""
    model, adam = _fresh(setup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        balancer = GradientBalancer(adam, free_steps=0 if balanced else 10**9, balance_steps=1)
    balancer.source = source

    def step() -> None:
        balancer.zero_grad()
        balancer.backward(model(maps))
        balancer.step()

    return step


def run(setup: Setup) -> dict[str, Any]:
    """Return times and peak memory of all kinds of steps."""
    torch.set_num_threads(setup.threads)
    generator = torch.Generator().manual_seed(setup.seed)
    shape = (setup.agents * setup.frames, setup.channels, setup.height, setup.width)
    maps = torch.randn(shape, generator=generator)
    make = functools.partial(balancer_step, setup, maps)
    steps = {
        "plain": plain_step(setup, maps),
        "plain_again": plain_step(setup, maps),  # how far from 1 a ratio is by chance
        "free": make(balanced=False),
        "balanced": make(balanced=True),
        "balanced_low_memory": make(balanced=True, source="exact_low_memory"),
    }
    for step in steps.values():
        for _ in range(2):  # the first balanced step also checks itself
            step()
    memory = {name: peak_memory(step) for name, step in steps.items()}
    return {
        "time": measure(steps, setup.repeats),
        "peak_bytes": memory,
        "peak_ratio": {name: value / memory["plain"] for name, value in memory.items()},
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file")
    parser.add_argument("--repeats", type=int, default=Setup.repeats)
    arguments = parser.parse_args()
    setup = Setup(repeats=arguments.repeats)
    results = run(setup)
    write_result(arguments.out, "balanced_step", asdict(setup), results)
    for name, ratio in results["peak_ratio"].items():
        print(f"{name:22} time x{results['time'][name]['ratio']:.3f}  peak memory x{ratio:.3f}")


if __name__ == "__main__":
    main()
