"""FFNet (arXiv:2311.01682): send a feature and its flow, extrapolate to now, concatenate, convolve.

Sender: f_1 at t_1 and f' = G(f_0, f_1) from its last two frames, both through a codec. Receiver:

    f(t_2) = f_1 + f' (t_2 - t_1) / (t_1 - t_0), rescaled to the mean of f_1,
    F = ReLU(BN(conv3x3([F_ego ; f(t_2)]))).

G learns without labels: (1 - cos(f(t), true f(t)))^2 on frames the sender has.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout, visible_maximum
from turbotrain_plugin.models.layers import ConvNormReLU, batch_norm
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FrameMaps, FusionContext, FusionOutput, UserError

__all__ = ["FFNet", "FlowNetwork", "MapCodec", "extrapolate", "flow_loss"]

_SIDE_FACTOR: Final = 8
_CHANNEL_FACTOR: Final = 32
_CORRECTION_STD: Final = 1e-3
"""The flow starts as the difference of the frames; see ``FlowNetwork``."""


class FFNet(AgentFusion):
    """Feature flow for late messages; with punctual ones codec and convolution are what remains.

    At 256 channels 0.748 M (codec) + 1.180 M (fusion) + 2.361 M (flow) parameters. Our choices,
    where the paper has one vehicle and one roadside unit:

    - The maximum over the pairs with every neighbour that sees the cell; where none does, the ego
      is paired with its own map. All maps pass the codec, the ego's too, as in ``Compressor``.
    - The flow is taken from the maps of single frames and moves the temporally fused map.
    - Feature and flow share one codec, whose last layer has no ReLU: our maps are signed.
    - The flow loss predicts the newest frame from the two before it. It needs T >= 3, is computed
      while training only, and reaches flow network and codec, never the encoder.

    Without past frames (T = 1) there is no flow, and a late map is taken as it is.

    Args:
        args: ``model.args.fusion``.
        channels: C.

    Raises:
        UserError: When ``flow_weight`` is negative.
    """

    needs_frames = True

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        if args.flow_weight < 0:
            raise UserError(
                f"model.args.fusion.flow_weight must not be negative. Found {args.flow_weight}."
            )
        self._flow_weight = args.flow_weight
        self.codec = MapCodec(channels) if args.codec else None
        self.flow = FlowNetwork(channels)
        self.join = ConvNormReLU(2 * channels, channels)

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the joined maps of (sum A, C, H, W); auxiliary loss ``flow`` while training."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        frames = context.frames
        sent = {"map": features, **self._flows(context)}
        decoded = self._decoded(sent, {"map", "flow"})
        received, losses = decoded["map"], {}
        if frames is not None and "flow" in decoded:
            known = frames.valid[:, -2:].all(1)
            steps = context.time_offset_s * known / frames.interval_s
            received = extrapolate(received, decoded["flow"], steps)
        if frames is not None and "past_flow" in sent:
            past_flow = self._decoded(sent, {"past_flow"})["past_flow"]
            losses["flow"] = self._flow_weight * flow_loss(frames, past_flow)
        fused = self._joined(features, received, context, layout)
        message, side = self._bytes(features, frames)
        return FusionOutput(fused, losses, message, side)

    def _flows(self, context: FusionContext) -> dict[str, Tensor]:
        """Return (sum A, C, H, W) changes per interval: what is sent, and what is learned from.

        ``flow`` is left out when nobody is late, ``past_flow`` when it would train nothing.
        """
        flows: dict[str, Tensor] = {}
        if context.frames is None:
            return flows
        maps = context.frames.maps
        if maps.shape[1] > 1 and bool(context.time_offset_s.any()):
            flows["flow"] = self.flow(maps[:, -2], maps[:, -1])
        if maps.shape[1] > 2 and self.training and self._flow_weight > 0:
            flows["past_flow"] = self.flow(maps[:, -3].detach(), maps[:, -2].detach())
        return flows

    def _decoded(self, sent: dict[str, Tensor], trained: set[str]) -> dict[str, Tensor]:
        """Return every map as the receiver decodes it; gradients reach those in ``trained`` only.

        All pass the codec together, whoever is asked for, so that its batch statistics are those
        of everything it carries.
        """
        maps = [given if name in trained else given.detach() for name, given in sent.items()]
        decoded = maps if self.codec is None else self.codec(torch.cat(maps)).chunk(len(maps))
        return dict(zip(sent, decoded, strict=True))

    def _joined(
        self, features: Tensor, received: Tensor, context: FusionContext, layout: AgentLayout
    ) -> Tensor:
        is_ego = (layout.slot == 0).view(-1, 1, 1, 1)
        neighbour_sees = context.roi & ~is_ego
        covered = torch.stack([neighbour_sees[part].any(dim=0) for part in layout.parts])
        covered = covered[layout.sample]
        ego = layout.ego[layout.sample]
        # Beyond its view a neighbour's map is the ego's own, so that the convolution, which looks
        # one cell past the border, meets no artificial edge.
        other = torch.where(context.roi, received, received[ego])
        pairs = self.join(torch.cat([features[ego], other], dim=1))
        seen = neighbour_sees | (is_ego & ~covered)
        return visible_maximum(pairs, seen, layout)

    def _bytes(self, features: Tensor, frames: FrameMaps | None) -> tuple[int, int]:
        """Return the bytes of what ``Compressor`` squeezes and of what it does not.

        The flow is sent whether or not the message will be late.
        """
        flows = int(frames is not None and frames.maps.shape[1] > 1)
        if self.codec is not None:
            return 0, self.codec.code_bytes(features) * (1 + flows)
        return map_bytes(features), map_bytes(features) * flows


class FlowNetwork(nn.Module):
    """f' = f_1 - f_0 + G([f_0 ; f_1]): two 3x3 convolutions with ReLU and one without.

    The difference is our addition, and G starts near zero, so that the flow is the linear one from
    the first step and G learns what a difference of maps cannot say.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            ConvNormReLU(2 * channels, channels), ConvNormReLU(channels, channels)
        )
        self.correction = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.normal_(self.correction.weight, std=_CORRECTION_STD)
        if self.correction.bias is not None:
            nn.init.zeros_(self.correction.bias)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        """Return (N, C, H, W) change per interval from two frames (N, C, H, W)."""
        correction: Tensor = self.correction(self.hidden(torch.cat([older, newer], dim=1)))
        return newer - older + correction


class MapCodec(nn.Module):
    """(N, C, H, W) -> same through a code of (C / 32, H / 8, W / 8).

    Three 3x3 convolutions of stride 2 (C to C/2, C/4, C/32) and three transposed ones back, each
    with batch normalisation. Sides are rounded up to whole code cells; what is too much is cropped.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        self._code_channels = max(1, channels // _CHANNEL_FACTOR)
        self.encoder = nn.Sequential(
            ConvNormReLU(channels, half, stride=2),
            ConvNormReLU(half, quarter, stride=2),
            ConvNormReLU(quarter, self._code_channels, stride=2),
        )
        self.decoder = nn.Sequential(
            *_bring_up(self._code_channels, quarter),
            nn.ReLU(inplace=True),
            *_bring_up(quarter, half),
            nn.ReLU(inplace=True),
            *_bring_up(half, channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return what the receiver decodes."""
        height, width = maps.shape[-2:]
        decoded: Tensor = self.decoder(self.encoder(maps))
        return decoded[..., :height, :width]

    def code_bytes(self, maps: Tensor) -> int:
        """Return the bytes of the float32 code of one of (N, C, H, W) maps."""
        rows, columns = (-(-side // _SIDE_FACTOR) for side in maps.shape[-2:])
        return map_bytes(maps.new_empty(0, self._code_channels, rows, columns))


def _bring_up(in_channels: int, out_channels: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(
        in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=False
    )
    return [up, batch_norm(out_channels)]


def extrapolate(latest: Tensor, flow: Tensor, steps: Tensor) -> Tensor:
    """Return latest + steps x flow, rescaled per map to the mean magnitude of ``latest``.

    The paper rescales to the mean, of maps that are nowhere negative; the mean magnitude is the
    same there and does not vanish on signed maps. The factor is a constant to the gradient, so
    that no step is the identity in both directions (the paper lets its numerator learn).

    Args:
        latest: (N, C, H, W).
        flow: (N, C, H, W) change per interval.
        steps: (N,) intervals to go on.
    """
    moved = latest + steps.to(latest.dtype).view(-1, 1, 1, 1) * flow
    before, after = (_magnitude(maps) for maps in (latest, moved))
    scale = before / after.clamp_min(torch.finfo(after.dtype).tiny)
    return moved * scale.to(moved.dtype).view(-1, 1, 1, 1)


def flow_loss(frames: FrameMaps, past_flow: Tensor) -> Tensor:
    """Return the mean (1 - cos(predicted, true))^2 over agents with three valid frames.

    Args:
        frames: T >= 3 frames; the maps are targets and starting points, never trained.
        past_flow: (sum A, C, H, W) flow from frame T - 3 to T - 2.
    """
    start, target = (frames.maps[:, frame].detach() for frame in (-2, -1))
    predicted = extrapolate(start, past_flow, start.new_ones(len(start)))
    cosine = F.cosine_similarity(predicted.float().flatten(1), target.float().flatten(1), dim=1)
    known = frames.valid[:, -3:].all(1)
    return ((1 - cosine).square() * known).sum() / known.sum().clamp_min(1)


@torch.no_grad()
def _magnitude(maps: Tensor) -> Tensor:
    """Return (N,) float32 mean magnitudes of (N, C, H, W)."""
    return maps.float().abs().mean(dim=(1, 2, 3))
