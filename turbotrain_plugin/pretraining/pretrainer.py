"""The pretraining network: the fine-tuning network's own steps on masked input, and two heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import PretrainConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import chamfer_loss, occupancy_focal, occupancy_loss
from turbotrain_plugin.pretraining.masking import mask_columns, masked_region
from turbotrain_plugin.pretraining.reconstruction import (
    CellPoints,
    ReconstructionHead,
    cell_points,
    choose_empty,
    choose_points,
    occupied_bins,
)
from turbotrain_plugin.structures import Batch, Reconstruction, TaskLosses, Voxels

if TYPE_CHECKING:
    from turbotrain_plugin.models import CooperativeNetwork, Encoder


class MaskedPretrainer(nn.Module):
    """Hide columns of every agent and frame, rebuild points and occupancy of the current frame.

    encoder -> temporal fusion -> agent fusion -> G (B, C, H, W) -> point head and occupancy head.
    Messages are not compressed, and neither map nor task heads take part. Labels are not needed.

    Args:
        network: The network to pretrain; its modules are trained in place.
        grid: The BEV grid of the network.
        config: ``turbotrain.pretrain``.

    Raises:
        ValueError: When both reconstruction losses are off.
        UserError: When the focal constants are impossible.
    """

    def __init__(self, network: CooperativeNetwork, grid: BevGrid, config: PretrainConfig) -> None:
        super().__init__()
        points, occupancy = config.points, config.occ
        if points.weight <= 0 and occupancy.weight <= 0:
            raise ValueError(
                "`config.points.weight` or `config.occ.weight` must be above 0. Found "
                f"{points.weight} and {occupancy.weight}."
            )
        self.network = network
        self._grid = grid
        self._config = config
        self._focal = occupancy_focal(occupancy)
        # Zero at the start as in CooPre: to the first convolution a hidden site is silent.
        self.mask_token = (
            nn.Parameter(torch.zeros(cast("Encoder", network.encoder).feature_width))
            if config.mask.mode == "token_sites"
            else None
        )
        self.point_head = (
            ReconstructionHead(network.head_channels, points.count * 3)
            if points.weight > 0
            else None
        )
        self.occupancy_head = (
            ReconstructionHead(network.head_channels, occupancy.bins)
            if occupancy.weight > 0
            else None
        )

    def forward(
        self, batch: Batch, generator: torch.Generator
    ) -> tuple[TaskLosses, Reconstruction]:
        """Return the tasks ``points`` and ``occupancy`` (those that are on) and the outputs.

        Args:
            batch: A batch with ``reconstruction`` points; targets and map are not looked at.
            generator: Draws masks, true points and empty cells; seed it per seed, step and rank.

        Raises:
            ValueError: When the batch carries no points to rebuild.
        """
        if batch.reconstruction is None:
            raise ValueError(
                "`batch.reconstruction` must hold the current points. Found None; load the data "
                "with purpose 'pretrain'."
            )
        masked = mask_columns(
            batch.voxels.coordinates,
            self._grid,
            self._config.mask.ratio,
            generator,
            map_count=batch.voxels.map_count,
        )
        features, auxiliary = self.fused_features(batch, masked)
        points = cell_points(batch.reconstruction, self._grid)
        region = masked_region(batch, masked, self._grid, self._config.loss_region)
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
            logits, loss = self._rebuild_occupancy(features, occupied, region, generator)
            losses.tasks["occupancy"] = self._config.occ.weight * loss
            losses.parts["focal"] = loss.detach()
        if auxiliary:
            losses.tasks["auxiliary"] = torch.stack(list(auxiliary.values())).sum()
        return losses, Reconstruction(predicted, logits, region, masked)

    def fused_features(self, batch: Batch, masked: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the heads read, (B, C, H, W), and the auxiliary losses of the fusion.

        Args:
            batch: The batch.
            masked: (V,) bool, voxels to hide; with none hidden the feature is the network's own.
        """
        maps = self._encode(batch.voxels, masked)
        agents = self.network.fuse_time(maps, batch.frame_valid)
        if not self._config.agent_fusion:
            ego_rows = batch.record_len.cumsum(0) - batch.record_len
            return agents[ego_rows], {}
        fused = self.network.fuse_agents(agents, self.network.context(batch, maps))
        return fused.features, fused.auxiliary_losses

    def _encode(self, voxels: Voxels, masked: Tensor) -> Tensor:
        seen = (~masked).nonzero().squeeze(1)
        visible = Voxels(
            points=voxels.points[seen],
            coordinates=voxels.coordinates[seen],
            point_counts=voxels.point_counts[seen],
            map_count=voxels.map_count,
        )
        if self.mask_token is None:
            return self.network.encode(visible)
        # Hidden points never enter the network, not even through a BatchNorm of the point encoder.
        visible_features = self.network.voxel_features(visible)
        token = self.mask_token.to(visible_features.dtype)
        features = token.expand(len(masked), -1).index_copy(0, seen, visible_features)
        return self.network.encode(voxels, features)

    def _rebuild_points(
        self, features: Tensor, points: CellPoints, region: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return (B, H, W, Q, 3) predictions and the Chamfer loss over the region."""
        keys = self._config.points
        head = cast(ReconstructionHead, self.point_head)
        predicted: Tensor = head(features).unflatten(-1, (keys.count, 3))
        targets = choose_points(points, region, keys.max_targets, generator, z_scale=keys.z_scale)
        loss = chamfer_loss(
            predicted.flatten(0, 2)[targets.cell],
            targets.xyz,
            targets.counts,
            distance=keys.chamfer,
            pool=keys.pool,
        )
        return predicted, loss

    def _rebuild_occupancy(
        self, features: Tensor, occupied: Tensor, region: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return (B, H, W, bins) logits and their loss over region and random empty cells."""
        head = cast(ReconstructionHead, self.occupancy_head)
        logits: Tensor = head(features)
        cells = region.view(-1).nonzero().squeeze(1)
        wanted = round(self._config.occ.empty_ratio * len(cells))
        empty = choose_empty(occupied.any(dim=1), wanted, generator)
        supervised = torch.cat([cells, empty])
        loss = occupancy_loss(logits.flatten(0, 2)[supervised], occupied[supervised], self._focal)
        return logits, loss
