"""The cooperative network: encode, fuse time, compress, fuse agents, read out.

Every step is public, so that pretraining composes the same steps with other inputs and heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, cast

from torch import Tensor, nn

from turbotrain_plugin.config import ModelArgs
from turbotrain_plugin.geometry.grid import BevGrid, roi_mask
from turbotrain_plugin.models.fusion import FUSIONS, AgentFusion
from turbotrain_plugin.models.heads import DetectionHead, PredictionHead
from turbotrain_plugin.models.layers import ConvNormReLU
from turbotrain_plugin.models.map_encoder import MapFusion
from turbotrain_plugin.models.message import Compressor
from turbotrain_plugin.models.neck import BevNeck
from turbotrain_plugin.models.temporal import TemporalFusion
from turbotrain_plugin.structures import (
    Batch,
    FrameMaps,
    FusionContext,
    FusionOutput,
    MapTokens,
    Predictions,
    UserError,
    Voxels,
)

__all__ = ["CooperativeNetwork", "Encoder"]


class Encoder(Protocol):
    """What a point encoder offers.

    Attributes:
        feature_width: D, the width of ``input_features`` and so of a mask token.
        out_channels: Channels of the maps.
    """

    feature_width: int
    out_channels: int

    def input_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D), one row per voxel."""

    def __call__(self, features: Tensor, coordinates: Tensor, map_count: int) -> Tensor:
        """Return (map_count, out_channels, H, W) from features (V, D), coordinates (V, 4)."""


class CooperativeNetwork(nn.Module):
    """Detection and prediction from the point clouds of several agents over several frames.

    Args:
        args: ``model.args``.
        grid: The BEV grid.
        encoder: The point encoder, built for ``grid``.
        hist_frames: T.
        head_shape: Anchors per cell and future steps F.
        frame_interval_s: Seconds between two past frames.

    Attributes:
        head_channels: Channels of what the heads read; C unless the neck behind fusion gives
            another number.

    Raises:
        UserError: When a neck before temporal fusion gives another number of channels.
    """

    def __init__(
        self,
        args: ModelArgs,
        grid: BevGrid,
        encoder: nn.Module,
        *,
        hist_frames: int,
        head_shape: tuple[int, int],
        frame_interval_s: float = 0.5,
    ) -> None:
        super().__init__()
        channels = args.channels
        anchors, future_steps = head_shape
        self.grid = grid
        self.hist_frames = hist_frames
        self.frame_interval_s = frame_interval_s
        self._neck_first = args.neck.position == "pre_temporal"
        self.head_channels = _head_channels(args)
        self._map_feeds_detection = args.map.feed == "both"
        self.encoder = encoder
        encoded = cast(Encoder, encoder).out_channels
        self.neck = BevNeck(
            args.neck, encoded if self._neck_first else channels, self.head_channels
        )
        # With the neck behind fusion, the encoder's maps still have to come to C channels.
        self.projection = None if self._neck_first else ConvNormReLU(encoded, channels)
        self.temporal = TemporalFusion(args.temporal, channels, hist_frames)
        ratio = args.compression.ratio
        self.compressor = Compressor(channels, ratio) if ratio else None
        self.fusion: AgentFusion = FUSIONS[args.fusion.core_method](args.fusion, channels)
        read = self.head_channels
        self.map_fusion = MapFusion(args.map, read, grid) if args.map.enabled else None
        self.detection = DetectionHead(read, anchors)
        self.prediction = (
            PredictionHead(args.prediction_head, read, anchors, future_steps)
            if args.prediction
            else None
        )

    def forward(self, batch: Batch, taught: Tensor | None = None) -> Predictions:
        """Return the raw head outputs for a batch; ``taught`` is a teacher's ``agent_maps``."""
        fused = self.fused_features(batch, taught=taught)
        predictions = self.heads(fused.features, _tokens_of(batch.map, fused.rows))
        return replace(
            predictions,
            auxiliary_losses=fused.auxiliary_losses,
            message_bytes=fused.message_bytes,
            rows=fused.rows,
        )

    def fused_features(
        self,
        batch: Batch,
        voxel_features: Tensor | None = None,
        taught: Tensor | None = None,
    ) -> FusionOutput:
        """Return what the heads read, (B, C, H, W), from points to the end of agent fusion.

        Late fusion leaves one map per agent in place of B.

        Args:
            batch: The batch.
            voxel_features: (V, D) to use in place of ``voxel_features(batch.voxels)``.
            taught: (B, C, H, W) that a fusion which learns from a teacher shall resemble.
        """
        maps = self.encode(batch.voxels, voxel_features)
        current = self.fuse_time(maps, batch.frame_valid)
        context = replace(self.context(batch, maps), taught=taught)
        if batch.targets is not None:
            context = replace(context, labels=batch.targets.labels)
        return self.fuse_agents(self.compress(current), context)

    def agent_maps(self, batch: Batch) -> Tensor:
        """Return (sum A, C, H, W), what temporal fusion makes of each agent's frames."""
        return self.fuse_time(self.encode(batch.voxels), batch.frame_valid)

    def voxel_features(self, voxels: Voxels) -> Tensor:
        """Return (V, D) inputs of the encoder, D = ``encoder.feature_width``."""
        return cast(Encoder, self.encoder).input_features(voxels)

    def encode(self, voxels: Voxels, voxel_features: Tensor | None = None) -> Tensor:
        """Return one map per (agent, frame), (sum A * T, C, H, W)."""
        if voxel_features is None:
            voxel_features = self.voxel_features(voxels)
        maps = self.encoder(voxel_features, voxels.coordinates, voxels.map_count)
        after = self.neck if self.projection is None else self.projection
        encoded: Tensor = after(maps)
        return encoded

    def fuse_time(self, features: Tensor, frame_valid: Tensor) -> Tensor:
        """Return (sum A, C, H, W) from (sum A * T, C, H, W) and the valid frames (sum A, T)."""
        fused: Tensor = self.temporal(features, frame_valid)
        return fused

    def compress(self, features: Tensor) -> Tensor:
        """Return the maps as the receiver decodes them; the same without compression."""
        return features if self.compressor is None else self.compressor(features)

    def fuse_agents(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return (B, C, H, W), auxiliary losses and the bytes one neighbour sends per frame."""
        fused: FusionOutput = self.fusion(features, context)
        ratio = 1 if self.compressor is None else self.compressor.ratio
        return FusionOutput(
            features=fused.features if self._neck_first else self.neck(fused.features),
            auxiliary_losses=fused.auxiliary_losses,
            message_bytes=fused.message_bytes // ratio + fused.side_bytes,
            rows=fused.rows,
        )

    def heads(self, features: Tensor, map_tokens: MapTokens | None) -> Predictions:
        """Return raw outputs for fused features (B, C, H, W); without map, no map step."""
        with_map = features
        needs_map = self.prediction is not None or self._map_feeds_detection
        if self.map_fusion is not None and map_tokens is not None and needs_map:
            with_map = self.map_fusion(features, map_tokens)
        logits, codes = self.detection(with_map if self._map_feeds_detection else features)
        trajectories = None if self.prediction is None else self.prediction(with_map)
        return Predictions(logits, codes, trajectories)

    def context(self, batch: Batch, maps: Tensor | None = None) -> FusionContext:
        """Return what agent fusion knows of the batch, without its labels.

        Agents without any frame see nothing.

        Args:
            batch: The batch.
            maps: (sum A * T, C, H, W) what ``encode`` returned; kept for fusions that ask for the
                frames, which without it know of none.
        """
        present = batch.frame_valid.any(1).view(-1, 1, 1, 1)
        ego_SE3_agent = batch.ego_SE3_agent[:, -1]
        frames = None
        if maps is not None and self.fusion.needs_frames:
            by_agent = maps.unflatten(0, (len(batch.frame_valid), -1))
            frames = FrameMaps(by_agent, batch.frame_valid, self.frame_interval_s, self.grid.cell_m)
        return FusionContext(
            record_len=batch.record_len,
            agent_types=batch.agent_types,
            roi=roi_mask(ego_SE3_agent, self.grid) & present,
            time_offset_s=batch.time_offset_s,
            ego_SE3_agent=ego_SE3_agent,
            frames=frames,
            sent_points=batch.sent_points,
        )

    def shared_modules(self) -> dict[str, nn.Module]:
        """Return the modules both tasks pass through, which pretraining hands on."""
        shared: dict[str, nn.Module | None] = {
            "encoder": self.encoder,
            "projection": self.projection,
            "neck": self.neck,
            "temporal": self.temporal,
            "compressor": self.compressor,
            "fusion": self.fusion,
        }
        return {name: module for name, module in shared.items() if module is not None}


def _tokens_of(tokens: MapTokens | None, rows: Tensor | None) -> MapTokens | None:
    """Return the map once for every output of a sample; all of them are in the ego frame."""
    if tokens is None or rows is None:
        return tokens
    return replace(tokens, nearest=tokens.nearest.repeat_interleave(rows, dim=0))


def _head_channels(args: ModelArgs) -> int:
    asked = args.neck.out_channels or args.channels
    if asked < 1 or (asked != args.channels and args.neck.position == "pre_temporal"):
        raise UserError(
            "model.args.neck.out_channels must be 0 or model.args.channels where the neck comes "
            f"before temporal fusion, and never negative. Found {args.neck.out_channels}."
        )
    return asked
