"""Masked pretraining: a network's own steps on what masking leaves, and two heads behind them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import PretrainConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import chamfer_loss, occupancy_focal, occupancy_loss
from turbotrain_plugin.pretraining.leaks import prior_loss, sites_iou
from turbotrain_plugin.pretraining.masking import mask_columns, masked_region, shared_orders
from turbotrain_plugin.pretraining.networks import map_source, shown_part
from turbotrain_plugin.pretraining.reconstruction import (
    CellPoints,
    ReconstructionHead,
    cell_points,
    choose_empty,
    choose_points,
    occupied_bins,
)
from turbotrain_plugin.structures import Batch, Reconstruction, TaskLosses


class MaskedPretrainer(nn.Module):
    """Hide columns of every agent and frame, rebuild points and occupancy.

    encoder -> temporal fusion -> agent fusion -> G (B, C, H, W) -> point head and occupancy head.
    Neither map nor task heads take part, and labels are not needed. Of the frames, the current one
    is rebuilt, or with ``target_frames: all`` every one, each by outputs of its own.

    Args:
        network: The ``CooperativeNetwork`` to pretrain, or any module that follows ``BevModule``
            or ``TokenModule``; trained in place.
        grid: The BEV grid of the network.
        config: ``turbotrain.pretrain``.

    Raises:
        TypeError: When a module of one's own lacks what the keys ask of it.
        ValueError: When both reconstruction losses are off.
        UserError: When the focal constants are impossible.
    """

    def __init__(self, network: nn.Module, grid: BevGrid, config: PretrainConfig) -> None:
        super().__init__()
        points, occupancy = config.points, config.occ
        if points.weight <= 0 and occupancy.weight <= 0:
            raise ValueError(
                "`config.points.weight` or `config.occ.weight` must be above 0. Found "
                f"{points.weight} and {occupancy.weight}."
            )
        self.network = network
        self._source = map_source(network, config)
        self._grid = grid
        self._config = config
        self._focal = occupancy_focal(occupancy)
        self.target_frames = self._source.hist_frames if config.target_frames == "all" else 1
        # Zero at the start as in CooPre: to the first convolution a hidden site is silent.
        self.mask_token = (
            nn.Parameter(torch.zeros(self._source.feature_width))
            if config.mask.mode == "token_sites"
            else None
        )
        self.point_head = self._head(points.count * 3) if points.weight > 0 else None
        self.occupancy_head = self._head(occupancy.bins) if occupancy.weight > 0 else None

    def _head(self, outputs: int) -> ReconstructionHead:
        return ReconstructionHead(self._source.head_channels, outputs, self.target_frames)

    def forward(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[TaskLosses, Reconstruction]:
        """Return the tasks ``points`` and ``occupancy`` (those that are on) and the outputs.

        The parts say how hard the task is: ``prior`` is the occupancy loss of somebody who knows
        how often each height bin is taken and nothing else, ``sites_iou`` how much of the answer
        the places of the input's voxels give away.

        Args:
            batch: A batch with ``reconstruction`` points; targets and map are not looked at.
            generator: Draws masks, true points and empty cells; seed it per seed, step and rank.

        Raises:
            ValueError: When the batch carries no points to rebuild, or the network's maps do not
                fit the grid.
        """
        if batch.reconstruction is None:
            raise ValueError(
                "`batch.reconstruction` must hold the current points. Found None; load the data "
                "with purpose 'pretrain'."
            )
        masked = self.draw_mask(batch, generator)
        features, auxiliary = self.fused_features(batch, masked)
        points = cell_points(batch.reconstruction, self._grid, self.target_frames)
        region = masked_region(
            batch, masked, self._grid, self._config.loss_region, target_frames=self.target_frames
        )
        occupied = occupied_bins(points, region.numel(), self._config.occ.bins)
        # A cell whose points all lie outside the range has nothing to rebuild.
        region &= occupied.any(dim=1).view_as(region)
        losses = TaskLosses({}, {"region_cells": region.sum()})
        predicted = logits = None
        if self.point_head is not None:
            predicted, loss = self._rebuild_points(features, points, region, generator)
            losses.tasks["points"] = self._config.points.weight * loss
            losses.parts["chamfer"] = loss.detach()
        if self.occupancy_head is not None:
            taken = occupied.any(dim=1) | ~self._recorded(batch, region)
            cells = _supervised(region, taken, self._config.occ.empty_ratio, generator)
            logits = self.occupancy_head(features)
            truth = occupied[cells]
            loss = occupancy_loss(logits.flatten(0, 3)[cells], truth, self._focal)
            losses.tasks["occupancy"] = self._config.occ.weight * loss
            losses.parts["focal"] = loss.detach()
            losses.parts["prior"] = prior_loss(truth, self._focal)
            given = torch.ones_like(masked) if self.mask_token is not None else ~masked
            losses.parts["sites_iou"] = sites_iou(batch, given, self._grid, region, occupied)
        if auxiliary:
            losses.tasks["auxiliary"] = torch.stack(list(auxiliary.values())).sum()
        return losses, Reconstruction(predicted, logits, region, masked)

    def draw_mask(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return (V,) bool, the voxels to hide by the keys of ``config.mask``."""
        keys = self._config.mask
        frames = batch.frame_valid.shape[1]
        return mask_columns(
            batch.voxels.coordinates,
            self._grid,
            keys.ratio,
            generator,
            map_count=batch.voxels.map_count,
            order_of_map=shared_orders(batch.record_len, frames, keys.scope),
        )

    def fused_features(self, batch: Batch, masked: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the heads read, (B, C, H, W), and the auxiliary losses of the fusion.

        Args:
            batch: The batch.
            masked: (V,) bool, voxels to hide; with none hidden the feature is the network's own.

        Raises:
            ValueError: When the network's maps do not fit the grid.
        """
        shown = shown_part(batch, masked, self._source, self.mask_token)
        features, auxiliary = self._source.fused(shown.batch, shown.voxel_features)
        size = (len(batch.record_len), self._source.head_channels)
        expected = (*size, self._grid.height, self._grid.width)
        if features.shape != expected:
            raise ValueError(
                f"`network` must return maps of shape {expected} (samples, head_channels and the "
                f"grid's cells). Found {tuple(features.shape)}."
            )
        return features, auxiliary

    def _recorded(self, batch: Batch, region: Tensor) -> Tensor:
        """Return (B * F * H * W,) bool, cells of the frames that some agent recorded."""
        sample = torch.arange(len(batch.record_len), device=region.device)
        sample = sample.repeat_interleave(batch.record_len)
        valid = batch.frame_valid[:, -self.target_frames :].long()
        agents = valid.new_zeros(region.shape[:2]).index_add(0, sample, valid)
        # A window without a current frame is none: what is empty now is empty.
        agents[:, -1] = 1
        return (agents > 0)[:, :, None, None].expand_as(region).reshape(-1)

    def _rebuild_points(
        self, features: Tensor, points: CellPoints, region: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return (B, F, H, W, Q, 3) predictions and the Chamfer loss over the region."""
        keys = self._config.points
        head = cast(ReconstructionHead, self.point_head)
        predicted: Tensor = head(features).unflatten(-1, (keys.count, 3))
        targets = choose_points(points, region, keys.max_targets, generator, z_scale=keys.z_scale)
        loss = chamfer_loss(
            predicted.flatten(0, 3)[targets.cell],
            targets.xyz,
            targets.counts,
            distance=keys.chamfer,
            pool=keys.pool,
        )
        return predicted, loss


def _supervised(
    region: Tensor, taken: Tensor, empty_ratio: float, generator: torch.Generator
) -> Tensor:
    """Return flat cells of the region and as many random empty ones as asked for."""
    cells = region.view(-1).nonzero().squeeze(1)
    empty = choose_empty(taken, round(empty_ratio * len(cells)), generator)
    return torch.cat([cells, empty])
