"""GradientBalancer with Lightning's manual optimisation; see docs/balancing_lightning.md.

    python docs/examples/lightning_manual.py --steps 60

Without Lightning the same module is driven by a loop that does what its Trainer does here.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from turbotrain_plugin import GradientBalancer

try:
    from lightning import LightningModule, Trainer
except ImportError:
    LightningModule, Trainer = nn.Module, None

Batch = tuple[Tensor, Tensor, Tensor]


class BalancedModule(LightningModule):
    """Two tasks on one trunk, trained by a balancer."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.trunk = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.detection = nn.Linear(32, 4)
        self.prediction = nn.Linear(32, 2)

    def configure_optimizers(self) -> GradientBalancer:
        """Return a balancer, which is an optimiser: Lightning saves and loads it as one."""
        return GradientBalancer(
            torch.optim.Adam(self.parameters(), lr=2e-3),
            free_steps=20,
            balance_steps=10,
            named_parameters=self.named_parameters(),
        )

    def training_step(self, batch: Batch, batch_index: int) -> None:
        """Take one optimiser step."""
        del batch_index
        x, boxes, futures = batch
        feature = self.trunk(x)
        losses = {
            "detection": (self.detection(feature) - boxes).square().mean(),
            "prediction": (self.prediction(feature) - futures).abs().mean(),
        }
        optimizer = self.optimizers()
        optimizer.zero_grad()
        balancer_of(optimizer).backward(losses)
        nn.utils.clip_grad_norm_(self.parameters(), 10.0)
        optimizer.step()


def balancer_of(optimizer: torch.optim.Optimizer) -> GradientBalancer:
    """Return the balancer, which Lightning wraps."""
    return getattr(optimizer, "optimizer", optimizer)


def make_batches(count: int) -> list[Batch]:
    """Return batches of inputs (N, 8) and targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(16, 8, generator=generator) for _ in range(count)]
    return [(x, x[:, :4].abs(), -x[:, 2:4].abs() + x[:, 4:6]) for x in inputs]


def fit_without_lightning(module: BalancedModule, batches: list[Batch]) -> GradientBalancer:
    """Do what the Trainer does with a module that optimises by hand."""
    balancer = module.configure_optimizers()
    module.optimizers = lambda: balancer
    for index, batch in enumerate(batches):
        module.training_step(batch, index)
    return balancer


def fit(module: BalancedModule, batches: list[Batch]) -> GradientBalancer:
    """Train over the batches once."""
    if Trainer is None:
        return fit_without_lightning(module, batches)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))
    assert trainer.global_step == len(batches)
    return balancer_of(module.optimizers())


def main() -> None:
    """Train and say what the balancer saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    balancer = fit(BalancedModule(), make_batches(steps))
    print("with Lightning:", Trainer is not None)
    print(balancer.describe())
    print("optimiser steps:", balancer.steps_taken)
    print("conflict rate:", balancer.window.conflict_rate)


if __name__ == "__main__":
    main()
