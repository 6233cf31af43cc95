"""CooPre (ucla-mobility/CooPre): V2X-Real's data with OpenCOOD's schedule, and a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from turbotrain_plugin.hosts.base import COSINE, HostModules, LoaderKeys
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.v2xreal import V2XReal


class CooPre(V2XReal):
    """Differences of CooPre from V2X-Real. Its train.py seeds with 42 unless told otherwise."""

    name: ClassVar[str] = "coopre"
    title: ClassVar[str] = "CooPre"
    commit: ClassVar[str] = "e506c9acbeb41020c73f6ae2ee01d04bcfca756a"
    loader: ClassVar[LoaderKeys] = LoaderKeys(workers=1)
    has_cosine: ClassVar[bool] = True
    one_scheduler_argument: ClassVar[bool] = False
    draws_egos: ClassVar[bool] = False

    def recognises(self, root: Path) -> bool:
        """Return whether it holds the reconstruction loss."""
        return (root / PACKAGE / "loss" / "chamfer_loss.py").is_file()

    def make_scheduler(
        self,
        modules: HostModules,
        hypes: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        steps_per_epoch: int,
    ) -> Any:  # noqa: ANN401
        """Return the schedule, and make cuDNN repeatable, as train.py does."""
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        return super().make_scheduler(modules, hypes, optimizer, steps_per_epoch)

    def epoch_begins(self, scheduler: Any, hypes: dict[str, Any], epoch: int, steps: int) -> None:  # noqa: ANN401
        """Move the rate once an epoch, the cosine included."""
        if hypes["lr_scheduler"]["core_method"] == COSINE:
            scheduler.step_update(epoch * steps)
        else:
            scheduler.step(epoch)
