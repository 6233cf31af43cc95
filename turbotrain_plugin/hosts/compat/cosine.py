"""The cosine learning-rate schedule with warm-up that the hosts take from timm.

At update u of ``t_initial``, with w warm-up updates: linear from ``warmup_lr_init`` to the base
rate while ``u < w``, then ``lr_min + (base - lr_min) (1 + cos(pi u / t_initial)) / 2`` (SGDR,
Loshchilov and Hutter, 2017; one cycle, and the warm-up counts as part of it), ``lr_min`` after it.
"""

from __future__ import annotations

import math
from typing import Any

import torch


class CosineSchedule:
    """Sets the rates when told which update comes next.

    Args:
        optimizer: Its parameter groups hold ``lr``, the base rates.
        t_initial: Updates of the cycle.
        lr_min: Final rate.
        warmup_lr_init: Rate at the start of the warm-up.
        warmup_t: Updates of the warm-up.
        cycle_limit: One cycle is all that the hosts use.
        t_in_epochs: Whether ``step`` moves it, or ``step_update``.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        t_initial: int,
        lr_min: float = 0.0,
        warmup_lr_init: float = 0.0,
        warmup_t: int = 0,
        cycle_limit: int = 1,
        t_in_epochs: bool = True,
    ) -> None:
        del cycle_limit
        self.optimizer = optimizer
        self._length = t_initial
        self._least = lr_min
        self._warmup_start = warmup_lr_init
        self._warmup = warmup_t
        self._in_epochs = t_in_epochs
        self._base = [float(group["lr"]) for group in optimizer.param_groups]
        if warmup_t:
            self._set([warmup_lr_init for _ in self._base])

    def step(self, epoch: int) -> None:
        """Move to an epoch, when counted in epochs."""
        if self._in_epochs:
            self._set([self._rate(epoch, base) for base in self._base])

    def step_update(self, num_updates: int) -> None:
        """Move to an update, when counted in updates."""
        if not self._in_epochs:
            self._set([self._rate(num_updates, base) for base in self._base])

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the rate follows from the number of the update."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing up."""

    def _rate(self, at: int, base: float) -> float:
        if at < self._warmup:
            return self._warmup_start + at * (base - self._warmup_start) / self._warmup
        if at >= self._length:
            return self._least
        share = 0.5 * (1.0 + math.cos(math.pi * at / self._length))
        return self._least + (base - self._least) * share

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
