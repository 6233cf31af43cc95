"""Peak memory of every agent fusion over the number of agents: a map per agent, not per pair.

    python -m benchmarks.fusion_memory --out benchmarks/results

Measured on tensors alone (weights and input left out), in evaluation and in a training step
(forward and backward), on random maps; every agent sees everything and neighbours are late, so that
FFNet and CoBEVFlow have something to do. The growth is what the fifth agent adds over what the
fourth one adds (the first ones may stay below what one agent needs anyway): 1 when it is linear,
9 / 7 with A x A maps.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import peak_memory, write_result
from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion import FUSIONS
from turbotrain_plugin.structures import FrameMaps, FusionContext

METHODS = tuple(sorted(set(FUSIONS) - {"early", "late"}))
"""Early and late fusion fuse no maps."""


@dataclass(frozen=True)
class Setup:
    """Sizes of the maps and settings of the fusions."""

    channels: int = 64
    height: int = 48
    width: int = 96
    frames: int = 3
    max_agents: int = 5
    windows: tuple[int, ...] = (4, 8, 16)
    window_heads: tuple[int, ...] = (16, 8, 4)
    heads: int = 8
    ffn: int = 128
    threads: int = 1


def context_of(setup: Setup, agents: int, maps: torch.Tensor) -> FusionContext:
    """Return what a fusion knows of one sample; vehicles and roadside units take turns."""
    size = (setup.height, setup.width)
    frames = maps.unsqueeze(1).expand(-1, setup.frames, -1, -1, -1)
    late = torch.full((agents,), 0.1)
    late[0] = 0.0
    return FusionContext(
        record_len=torch.tensor([agents], device=maps.device),
        agent_types=torch.arange(agents, device=maps.device) % 2,
        roi=torch.ones(agents, 1, *size, dtype=torch.bool, device=maps.device),
        time_offset_s=late.to(maps.device),
        ego_SE3_agent=torch.eye(4, device=maps.device).repeat(agents, 1, 1),
        frames=FrameMaps(
            frames,
            torch.ones(agents, setup.frames, dtype=torch.bool, device=maps.device),
            0.5,
            (0.8, 0.8),
        ),
    )


def pass_of(setup: Setup, method: str, agents: int, *, training: bool) -> Callable[[], None]:
    """Return a forward pass, in training with its backward pass."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    args = FusionConfig(
        core_method=method,
        windows=setup.windows,
        window_heads=setup.window_heads,
        heads=setup.heads,
        ffn=setup.ffn,
        dropout=0.0,
    )
    fusion = FUSIONS[method](args, setup.channels).to(device).train(training)
    maps = torch.randn(agents, setup.channels, setup.height, setup.width, device=device)
    context = context_of(setup, agents, maps)

    def step() -> None:
        with torch.set_grad_enabled(training):
            fused = fusion(maps.requires_grad_(training), context)
            if training:
                losses = [fused.features.square().mean(), *fused.auxiliary_losses.values()]
                torch.stack(losses).sum().backward()
        fusion.zero_grad(set_to_none=True)
        maps.grad = None

    return step


def peaks(setup: Setup, method: str, *, training: bool) -> list[int]:
    """Return the peak bytes for 1 to ``max_agents`` agents."""
    found = []
    for agents in range(1, setup.max_agents + 1):
        step = pass_of(setup, method, agents, training=training)
        step()
        found.append(peak_memory(step))
    return found


def growth(found: list[int]) -> float:
    """Return what the last agent adds over what the one before adds: 1 where growth is linear."""
    last, before = found[-1] - found[-2], found[-2] - found[-3]
    return last / before if before > 0 else 1.0


def run(setup: Setup) -> dict[str, Any]:
    """Return peaks in bytes and in maps, and the growth, of every fusion."""
    torch.set_num_threads(setup.threads)
    one_map = setup.channels * setup.height * setup.width * 4
    results: dict[str, Any] = {"one_map_bytes": one_map}
    for method in METHODS:
        for training in (False, True):
            found = peaks(setup, method, training=training)
            results.setdefault(method, {})["training" if training else "evaluation"] = {
                "peak_bytes": found,
                "peak_maps": [round(value / one_map, 2) for value in found],
                "growth": round(growth(found), 3),
            }
    return results


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file")
    for name in ("channels", "height", "width", "max_agents"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Setup, name))
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    setup = replace(Setup(), **arguments)
    results = run(setup)
    write_result(out, "fusion_memory", asdict(setup), results)
    for method in METHODS:
        for mode, values in results[method].items():
            row = " ".join(f"{maps:7.1f}" for maps in values["peak_maps"])
            print(f"{method:10} {mode:10} maps {row}   growth {values['growth']:.2f}")


if __name__ == "__main__":
    main()
