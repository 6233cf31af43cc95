"""Who moves the learning rate of a stage: the host's schedule in its own order, or ours."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from turbotrain_plugin.config import SchedulerConfig
from turbotrain_plugin.engine.optim import learning_rate, set_learning_rate
from turbotrain_plugin.hosts.base import COSINE, Host


class Rates(Protocol):
    """What a stage calls on its way."""

    def epoch_begins(self, epoch: int) -> None:
        """Come before the first step of an epoch."""

    def step_begins(self, epoch: int, step: int) -> None:
        """Come before a step."""

    def step_done(self, epoch: int, step: int) -> None:
        """Come after a step."""

    def epoch_ends(self, epoch: int) -> None:
        """Come after an epoch and its validation."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on with."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""


class HostRates:
    """The host's schedule, moved when its train.py moves it.

    Args:
        host: The host.
        scheduler: What its ``setup_lr_schedular`` returned.
        hypes: Parsed.
        steps: Steps of an epoch.
    """

    def __init__(self, host: Host, scheduler: Any, hypes: dict[str, Any], steps: int) -> None:  # noqa: ANN401
        self._host = host
        self._scheduler = scheduler
        self._hypes = hypes
        self._steps = steps

    def epoch_begins(self, epoch: int) -> None:
        """Move as the host does."""
        self._host.epoch_begins(self._scheduler, self._hypes, epoch, self._steps)

    def step_begins(self, epoch: int, step: int) -> None:
        """Do nothing: no host moves the rate here."""

    def step_done(self, epoch: int, step: int) -> None:
        """Move as the host does."""
        self._host.step_done(self._scheduler, self._hypes, epoch, step, self._steps)

    def epoch_ends(self, epoch: int) -> None:
        """Move as the host does."""
        self._host.epoch_ends(self._scheduler, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the plain numbers of the schedule; the rest is made from the hypes.

        Nothing of a cosine: its rate follows from the number of the update, and its length from
        the number of processes.
        """
        if self._hypes["lr_scheduler"]["core_method"] == COSINE:
            return {}
        state = self._scheduler.state_dict()
        return {key: value for key, value in state.items() if isinstance(value, int | float | list)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
        if state:
            self._scheduler.load_state_dict(state)


class OurRates:
    """The rate of ``turbotrain.pretrain.lr_scheduler``, a function of the step.

    Args:
        optimizer: Whose rate.
        keys: The schedule.
        base_lr: ``optimizer.lr``.
        epoches: Epochs of the stage.
        steps: Steps of an epoch.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        keys: SchedulerConfig,
        base_lr: float,
        epoches: int,
        steps: int,
    ) -> None:
        self._optimizer = optimizer
        self._keys = keys
        self._base_lr = base_lr
        self._epoches = epoches
        self._steps = steps

    def epoch_begins(self, epoch: int) -> None:
        """Do nothing."""

    def step_begins(self, epoch: int, step: int) -> None:
        """Set the rate of a step."""
        at = epoch + step / self._steps
        rate = learning_rate(self._keys, self._base_lr, at, self._epoches)
        set_learning_rate(self._optimizer, rate)

    def step_done(self, epoch: int, step: int) -> None:
        """Do nothing."""

    def epoch_ends(self, epoch: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the rate follows from the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing up."""
