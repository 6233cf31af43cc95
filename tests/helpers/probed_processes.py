"""Probed free steps in several processes: what each process runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.made_tasks import TinyTasks, made_inputs
from turbotrain_plugin.balancing import GradientBalancer

STEPS = 3


def probed(rank: int, world: int, probe_every: int) -> dict[str, Any]:
    """Train free steps on one rank's share; the last rank has no samples in the last step."""
    model = TinyTasks()
    balancer = GradientBalancer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        named_parameters=list(model.named_parameters()),
        probe_every=probe_every,
    )
    records = []
    for step in range(STEPS):
        balancer.zero_grad()
        balancer.backward(_losses(model, rank, world, step))
        balancer.step()
        record = balancer.last_record
        assert record is not None
        modules = {name: part.norms for name, part in record.modules.items()}
        records.append({"cosine": record.cosine, "norms": record.norms, "modules": modules})
    return {"weights": model.state_dict(), "records": records}


def _losses(model: TinyTasks, rank: int, world: int, step: int) -> dict[str, torch.Tensor]:
    rows = made_inputs(seed=step)
    if world == 1:  # the mean over two processes, the second one empty in the last step
        parts = [_one(model, chunk, step, rank) for rank, chunk in enumerate(rows.chunk(2))]
        return {task: torch.stack([part[task] for part in parts]).mean() for task in parts[0]}
    return _one(model, rows.chunk(world)[rank], step, rank)


def _one(model: TinyTasks, rows: torch.Tensor, step: int, rank: int) -> dict[str, torch.Tensor]:
    if rank == 1 and step == STEPS - 1:
        return {task: torch.zeros((), dtype=rows.dtype) for task in ("detection", "prediction")}
    losses: dict[str, torch.Tensor] = model(rows)
    return losses


def one_rank(rank: int, world: int, folder: str) -> None:
    """Run with and without probing, save what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    found = {every: probed(rank, world, every) for every in (0, 1)}
    torch.distributed.destroy_process_group()
    torch.save(found, Path(folder) / f"{rank}.pt")
