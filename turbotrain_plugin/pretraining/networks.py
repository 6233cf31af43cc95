"""What ``MaskedPretrainer`` asks of a network, and how it runs the cooperative one.

A module of one's own needs ``head_channels`` and a ``forward`` that makes one BEV map per sample
of a batch; masking then takes voxels away from it (``mask.mode: drop``). A learned token in their
place (``token_sites``) needs to know where voxel features enter, hence the wider protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import PretrainConfig
from turbotrain_plugin.models import CooperativeNetwork, Encoder
from turbotrain_plugin.structures import Batch, Voxels

__all__ = ["BevModule", "MapSource", "Shown", "TokenModule", "map_source", "shown_part"]


class BevModule(Protocol):
    """A module of the user's own.

    Attributes:
        head_channels: C of the maps it makes.
        hist_frames: T; needed for ``target_frames: all`` only.
    """

    head_channels: int

    def __call__(self, batch: Batch) -> Tensor:
        """Return (B, C, H, W), H x W being the grid's; ``batch.voxels`` are the visible ones."""


class TokenModule(Protocol):
    """A module of the user's own that takes tokens in place of hidden voxels' features.

    Attributes:
        head_channels: C of the maps it makes.
        feature_width: D of its voxel features, and so of the token.
    """

    head_channels: int
    feature_width: int

    def voxel_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D), each row from its own voxel alone."""

    def __call__(self, batch: Batch, voxel_features: Tensor | None = None) -> Tensor:
        """Return (B, C, H, W) from ``voxel_features`` at the places of ``batch.voxels``.

        In pretraining they are given and ``batch.voxels`` holds no points; None: make them.
        """


@dataclass(frozen=True, slots=True)
class Shown:
    """What is left of a batch.

    Attributes:
        batch: With the visible voxels, or with the sites of all and no points.
        voxel_features: (V, D), tokens at the hidden sites; None without tokens.
    """

    batch: Batch
    voxel_features: Tensor | None


class MapSource(Protocol):
    """Either kind of network, as ``MaskedPretrainer`` calls it.

    Attributes:
        head_channels: C.
        feature_width: D.
        hist_frames: T.
    """

    head_channels: int
    feature_width: int
    hist_frames: int

    def voxel_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D)."""

    def fused(
        self, batch: Batch, voxel_features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, C, H, W) and auxiliary losses."""


class _CooperativeSource:
    """The cooperative network without labels, map and task heads.

    encoder -> temporal fusion (-> compressor) -> agent fusion, without labels, map and task heads.

    Args:
        network: The network.
        agent_fusion: Whether agents are fused; else the ego's temporal feature is returned.
        compression: Whether maps go through the compressor.
    """

    def __init__(
        self, network: CooperativeNetwork, *, agent_fusion: bool, compression: bool
    ) -> None:
        self._network = network
        self._agent_fusion = agent_fusion
        self._compression = compression
        self.head_channels = network.head_channels
        self.feature_width = cast(Encoder, network.encoder).feature_width
        self.hist_frames = network.hist_frames

    def voxel_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D)."""
        return self._network.voxel_features(voxels)

    def fused(
        self, batch: Batch, voxel_features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, C, H, W) and the auxiliary losses of the fusion."""
        network = self._network
        maps = network.encode(batch.voxels, voxel_features)
        agents = network.fuse_time(maps, batch.frame_valid)
        if not self._agent_fusion:
            return agents[batch.record_len.cumsum(0) - batch.record_len], {}
        sent = network.compress(agents) if self._compression else agents
        fused = network.fuse_agents(sent, network.context(batch, maps))
        return fused.features, fused.auxiliary_losses


class _OwnSource:
    """A ``BevModule`` or ``TokenModule``."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.head_channels = cast(BevModule, module).head_channels
        self.feature_width = int(getattr(module, "feature_width", 0))
        self.hist_frames = int(getattr(module, "hist_frames", 1))

    def voxel_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D)."""
        return cast(TokenModule, self._module).voxel_features(voxels)

    def fused(
        self, batch: Batch, voxel_features: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (B, C, H, W) and no auxiliary loss."""
        if voxel_features is None:
            return cast(BevModule, self._module)(batch), {}
        return cast(TokenModule, self._module)(batch, voxel_features), {}


def map_source(network: nn.Module, config: PretrainConfig) -> MapSource:
    """Return how to get maps from a network.

    Raises:
        TypeError: When a module of one's own lacks what the keys ask of it.
    """
    if isinstance(network, CooperativeNetwork):
        return _CooperativeSource(
            network, agent_fusion=config.agent_fusion, compression=config.compression
        )
    needed = ["head_channels"]
    if config.mask.mode == "token_sites":
        needed += ["feature_width", "voxel_features"]
    if config.target_frames == "all":
        needed.append("hist_frames")
    missing = [name for name in needed if not hasattr(network, name)]
    if missing:
        raise TypeError(
            f"`network` must have {', '.join(needed)} for mask.mode {config.mask.mode} and "
            f"target_frames {config.target_frames}. {type(network).__name__} lacks "
            f"{', '.join(missing)}; mask.mode drop and target_frames current need head_channels "
            "alone."
        )
    return _OwnSource(network)


def shown_part(batch: Batch, masked: Tensor, source: MapSource, token: Tensor | None) -> Shown:
    """Return what a network is given of a batch; nothing of it holds a hidden point or a target.

    Args:
        batch: The batch.
        masked: (V,) bool, hidden voxels.
        source: Makes the features of the visible voxels.
        token: (D,) the feature at hidden sites; None: the sites are left out.
    """
    voxels = batch.voxels
    seen = (~masked).nonzero().squeeze(1)
    visible = replace(
        voxels,
        points=voxels.points[seen],
        coordinates=voxels.coordinates[seen],
        point_counts=voxels.point_counts[seen],
    )
    bare = replace(batch, targets=None, reconstruction=None, truth=[None] * len(batch.truth))
    if token is None:
        return Shown(replace(bare, voxels=visible), None)
    # Hidden points never enter the network, not even through a BatchNorm of the point encoder.
    visible_features = source.voxel_features(visible)
    features = token.to(visible_features.dtype).expand(len(masked), -1)
    sites = replace(
        voxels, points=voxels.points[:, :0], point_counts=torch.zeros_like(voxels.point_counts)
    )
    return Shown(replace(bare, voxels=sites), features.index_copy(0, seen, visible_features))
