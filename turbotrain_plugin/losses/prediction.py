"""Trajectory loss on positive anchors."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses.pool import Pool
from turbotrain_plugin.losses.precision import full_precision
from turbotrain_plugin.structures import Predictions, Targets, UserError

MOVING_M: Final = 2.0
"""An object counts as moving when a valid step of its future is farther than this from where it is.
Our choice, the same as the default of the evaluation's ``moving_m``."""


class PredictionLoss:
    """Mean displacement error of the trajectories of positive anchors.

    Per anchor the mean over its valid steps, then the mean over the anchors that have one, so that
    an object with a short future counts as much as one with a long future (our choice; V2XPnP
    trains with an L2 loss between predicted and true points).

    Half of the vehicles at a junction are parked or queue. The minimiser of a Euclidean distance
    over a majority that stays and a minority that drives off is to stay, so that a network which
    cannot tell the two apart yet has nothing to gain from any motion; ``moving_weight`` above 1
    moves that balance (our choice; 1, the default, is the plain mean).

    Args:
        args: ``traj_loss``: ``l2`` (Euclidean distance in metres), ``mse`` (its square) or
            ``smooth_l1`` (x and y summed, transition at ``traj_beta_m``); ``traj_decay``: step k
            weighs this to the power k within the mean over steps; ``moving_weight``: weight of the
            anchors of moving objects within the mean over anchors.
        pool: The processes whose anchors are averaged over.

    Raises:
        UserError: When ``traj_beta_m``, ``traj_decay`` or ``moving_weight`` is not positive.
    """

    def __init__(self, args: LossArgs, pool: Pool | None = None) -> None:
        for name in ("traj_beta_m", "traj_decay", "moving_weight"):
            if not getattr(args, name) > 0:
                raise UserError(f"loss.args.{name} must be positive. Found {getattr(args, name)}.")
        self._form = args.traj_loss
        self._beta_m = args.traj_beta_m
        self._decay = args.traj_decay
        self._moving_weight = args.moving_weight
        self._pool = pool or Pool()

    def __call__(self, predictions: Predictions, targets: Targets) -> Tensor:
        """Return the scalar loss; 0 with a gradient path when no step of any positive is valid.

        Raises:
            ValueError: When there are no trajectories, or their steps are not those of the targets.
        """
        if predictions.trajectories is None:
            raise ValueError("`predictions.trajectories` must be (B, H, W, anchors, F, 2).")
        predicted = full_precision(predictions.trajectories[targets.positive_index.unbind(1)])
        if predicted.shape != targets.trajectories.shape:
            raise ValueError(
                "`predictions.trajectories` and `targets.trajectories` must have the same steps. "
                f"Found (N, F, 2) = {tuple(predicted.shape)} and "
                f"{tuple(targets.trajectories.shape)}."
            )
        valid = targets.trajectory_valid
        # Where a step is not valid its target is no number to rely on, so it is replaced, not
        # multiplied by 0.
        unknown = ~valid[..., None]
        true = targets.trajectories.to(predicted.dtype).masked_fill(unknown, 0.0)
        distance = self._distance((predicted - true).masked_fill(unknown, 0.0))
        step = torch.arange(valid.shape[1], device=distance.device, dtype=distance.dtype)
        weight = valid * torch.pow(self._decay, step)
        known = valid.any(dim=1)
        per_anchor = (weight * distance).sum(dim=1) / weight.sum(dim=1).where(known, 1.0)
        moving = (true.square().sum(dim=-1) > MOVING_M**2).any(dim=1)
        share = known * torch.where(moving, self._moving_weight, 1.0)
        total = self._pool.total(share.sum()) / self._pool.parts
        return (share * per_anchor).sum() / total.where(total > 0, 1.0)

    def _distance(self, error: Tensor) -> Tensor:
        if self._form == "mse":
            return error.square().sum(dim=-1)
        if self._form == "smooth_l1":
            zero = torch.zeros_like(error)
            loss = smooth_l1_loss(error, zero, reduction="none", beta=self._beta_m)
            return loss.sum(dim=-1)
        # Its derivative at distance 0 is 0, where that of sqrt and hypot is NaN.
        norm: Tensor = torch.linalg.vector_norm(error, dim=-1)
        return norm
