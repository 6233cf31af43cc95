"""CoBEVFlow (arXiv:2309.16940): send confident cells and objects; move those of late messages.

Sender: its map where it is confident, and its objects of the last two frames. Receiver, per
neighbour that is dt late: match the objects of both frames, v = (c_1 - c_0) / (t_1 - t_0), and
carry the cells around each object v dt further, without changing their features; fuse by the
maximum over agents. The way of an object is the linear one of the released code, not the paper's
transformer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout, visible_maximum
from turbotrain_plugin.models.message import map_bytes
from turbotrain_plugin.structures import FusionContext, FusionOutput, UserError

__all__ = ["CoBEVFlow", "Motion", "carry", "find_objects", "follow"]

PRIOR_PROBABILITY: Final = 0.1
"""Confidence of every cell at the start, well above the default threshold: what is sent narrows
as the head learns."""
_BELL: Final = (0.05449, 0.24420, 0.40262, 0.24420, 0.05449)
"""Gaussian of one cell's deviation over five cells."""
_FOCAL_ALPHA: Final = 0.25
_OBJECT_BYTES: Final = 12
"""x, y and confidence as float32."""
_ROUNDING: Final = 1e-6


class CoBEVFlow(AgentFusion):
    """F = max_j of the agents' confident cells, the objects of late ones carried to now.

    257 parameters at 256 channels: the paper's fusion has none, its objects being detections of
    each agent's own detector. Here a 1x1 convolution gives one confidence per cell, of which the
    mask is made and whose peaks are the objects. Our choices, of which that is the first:

    - Objects have a place and no heading, so two frames' objects match when each is the other's
      nearest; the released code asks for a direction within 45 degrees of the heading.
    - What moves is a square of fixed size around an object, and cells it leaves show nothing.
    - Cells that are not sent are left out of the maximum, as in ``FCooper``; the ego is complete.
    - The head learns from the labels of the batch by a focal loss, on the fused map and the newest
      frame of every agent that is not late, while training only. Where a batch has no labels, as
      in pretraining, nothing is masked.

    Args:
        args: ``model.args.fusion``.
        channels: C.

    Raises:
        UserError: When a key is impossible.
    """

    needs_frames = True

    def __init__(self, args: FusionConfig, channels: int) -> None:
        super().__init__()
        _check(args)
        self._args = args
        self.confidence = nn.Conv2d(channels, 1, 1)
        if self.confidence.bias is not None:
            prior_logit = math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY))
            nn.init.constant_(self.confidence.bias, prior_logit)

    def forward(self, features: Tensor, context: FusionContext) -> FusionOutput:
        """Return the maximum over sent cells of (sum A, C, H, W); loss ``confidence``."""
        layout = AgentLayout.of(context.record_len, features.shape[0])
        is_ego = (layout.slot == 0).view(-1, 1, 1, 1)
        logits = self.confidence(features).float()
        sent = context.roi & self._confident(logits, context) & ~is_ego
        objects = self._objects(context)
        arrived, visible = self._carried(features, sent, objects, context)
        fused = visible_maximum(arrived, visible | is_ego, layout)
        message, side = self._bytes(features, sent, objects, is_ego, context)
        return FusionOutput(fused, self._losses(logits, is_ego, layout, context), message, side)

    def _masks(self, context: FusionContext) -> bool:
        untaught = self.training and context.labels is None
        return self._args.confidence > 0 and not untaught

    @torch.no_grad()
    def _confident(self, logits: Tensor, context: FusionContext) -> Tensor:
        """Return (sum A, 1, H, W) bool: smoothed confidence above the threshold."""
        if not self._masks(context):
            return torch.ones_like(logits, dtype=torch.bool)
        return smooth(logits.sigmoid()) > self._args.confidence

    @torch.no_grad()
    def _objects(self, context: FusionContext) -> tuple[Tensor, Tensor] | None:
        """Return peaks (sum A, 2, H, W) and places (sum A, 2, H, W, 2) of the last two frames."""
        frames = context.frames
        if frames is None or frames.maps.shape[1] < 2:
            return None
        logits = self.confidence(frames.maps[:, -2:].flatten(0, 1)).float()
        peaks, places = find_objects(
            logits.sigmoid().squeeze(1), frames.cell_m, self._args.roi_score, self._args.roi_half_m
        )
        known = frames.valid[:, -2:, None, None] & context.roi
        return peaks.unflatten(0, (-1, 2)) & known, places.unflatten(0, (-1, 2))

    def _carried(
        self,
        features: Tensor,
        sent: Tensor,
        objects: tuple[Tensor, Tensor] | None,
        context: FusionContext,
    ) -> tuple[Tensor, Tensor]:
        """Return late agents' maps and sent cells as they would be now."""
        frames = context.frames
        late = sent.flatten(1).any(1) & (context.time_offset_s > 0)
        if frames is None or objects is None or not bool(late.any()):
            return features, sent
        peaks, places = objects
        arrived, visible = list(features.unbind()), list(sent.unbind())
        for agent in torch.nonzero(late).flatten().tolist():
            older, newer = (places[agent, frame][peaks[agent, frame]] for frame in (0, 1))
            motion = follow(newer, older, self._args.match_m)
            intervals = context.time_offset_s[agent] / frames.interval_s
            arrived[agent], visible[agent] = carry(
                arrived[agent],
                visible[agent],
                replace(motion, step=motion.step * intervals),
                frames.cell_m,
                half_m=self._args.roi_half_m,
                keep_background=self._args.background == "keep",
            )
        return torch.stack(arrived), torch.stack(visible)

    def _losses(
        self, logits: Tensor, is_ego: Tensor, layout: AgentLayout, context: FusionContext
    ) -> dict[str, Tensor]:
        """Return the mean focal loss of the fused maps and of the newest frames."""
        weight = self._args.confidence_weight
        if not self.training or context.labels is None or weight <= 0:
            return {}
        labels = context.labels[layout.sample]
        taught = (context.roi | is_ego) & (context.time_offset_s <= 0).view(-1, 1, 1, 1)
        terms = [_confidence_loss(logits, labels, taught)]
        if context.frames is not None:
            newest = self.confidence(context.frames.maps[:, -1]).float()
            seen = taught & context.frames.valid[:, -1].view(-1, 1, 1, 1)
            terms.append(_confidence_loss(newest, labels, seen))
        return {"confidence": weight * torch.stack(terms).mean()}

    def _bytes(
        self,
        features: Tensor,
        sent: Tensor,
        objects: tuple[Tensor, Tensor] | None,
        is_ego: Tensor,
        context: FusionContext,
    ) -> tuple[int, int]:
        """Return the bytes of the busiest neighbour's cells, and of which cells and what objects.

        A full map needs no list of cells; a sparse one comes with a bit per cell.
        """
        if bool(is_ego.all()):
            return 0, 0
        cells = features.shape[-2] * features.shape[-1]
        message, side = map_bytes(features), 0
        if self._masks(context):
            message = message // cells * int(sent.flatten(1).sum(1).max())
            side = -(-cells // 8)
        if objects is not None:
            side += _OBJECT_BYTES * int((objects[0] & ~is_ego).flatten(1).sum(1).max())
        return message, side


def _check(args: FusionConfig) -> None:
    if args.confidence > 0 and args.confidence_weight <= 0:
        raise UserError(
            "model.args.fusion.confidence_weight must be above 0 while confidence is, or nothing "
            f"teaches what is sent. Found {args.confidence_weight} and {args.confidence}."
        )
    for name in ("roi_half_m", "match_m"):
        if getattr(args, name) <= 0:
            raise UserError(
                f"model.args.fusion.{name} must be above 0. Found {getattr(args, name)}."
            )


def _confidence_loss(logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
    """Return the focal loss (gamma 2) over taught cells, divided by the positive ones.

    A cell is positive when one of its anchors is, negative when all are, else left out.

    Args:
        logits: (sum A, 1, H, W) float32.
        labels: (sum A, H, W, anchors) int8 as in ``Targets``.
        taught: (sum A, 1, H, W) bool.
    """
    positive = (labels == 1).any(-1).unsqueeze(1)
    counted = taught & (positive | (labels == 0).all(-1).unsqueeze(1))
    towards_truth = logits.where(positive, -logits)
    weight = positive.to(logits.dtype) * (2 * _FOCAL_ALPHA - 1) + (1 - _FOCAL_ALPHA)
    loss = -weight * (-towards_truth).sigmoid().square() * F.logsigmoid(towards_truth)
    return (loss * counted).sum() / (positive & counted).sum().clamp_min(1)


@dataclass(frozen=True, slots=True)
class Motion:
    """Where N objects are and where they go.

    Attributes:
        start: (N, 2) x, y in metres from the centre of cell (0, 0).
        step: (N, 2) metres they move; 0 where unknown.
        matched: (N,) bool, whether the way is known.
    """

    start: Tensor
    step: Tensor
    matched: Tensor


def smooth(confidence: Tensor) -> Tensor:
    """Return (N, 1, H, W) after a 5 x 5 Gaussian; the border is repeated outwards."""
    reach = len(_BELL) // 2
    height, width = confidence.shape[-2:]
    padded = F.pad(confidence, (reach, reach, reach, reach), mode="replicate")
    # Sums in place of a convolution, which autocast would bring to half precision.
    rows = torch.stack([w * padded[..., i : i + width] for i, w in enumerate(_BELL)]).sum(0)
    return torch.stack([w * rows[..., i : i + height, :] for i, w in enumerate(_BELL)]).sum(0)


def find_objects(
    confidence: Tensor, cell_m: tuple[float, float], score: float, half_m: float
) -> tuple[Tensor, Tensor]:
    """Return which cells of (N, H, W) confidences are peaks, and the place (N, H, W, 2) of each.

    A peak reaches ``score`` and is, of all cells that do in the square of ``half_m`` around it, the
    one with the most confidence on and about it. Its place, x and y in metres from the centre of
    cell (0, 0), is the mean of those cells weighed by their confidence. Places of cells that are no
    peak mean nothing.
    """
    reach = [int(half_m / side + _ROUNDING) for side in reversed(cell_m)]
    size = [2 * cells + 1 for cells in reach]
    enough = confidence >= score
    about = smooth(confidence.unsqueeze(1)) * enough.unsqueeze(1)
    # Ranks in place of values: of equal cells exactly one, always the last, is the peak.
    order = about.flatten(1).argsort(dim=1, stable=True)
    ticks = torch.arange(order.shape[1], device=order.device, dtype=about.dtype)
    rank = torch.zeros_like(about).flatten(1).scatter(1, order, ticks.expand_as(order))
    highest = F.max_pool2d(rank.view_as(about), size, stride=1, padding=reach)
    weight = (confidence * enough).unsqueeze(1)
    weighed = torch.cat([weight * _places(confidence[0], cell_m).permute(2, 0, 1), weight], dim=1)
    sums = F.avg_pool2d(weighed, size, stride=1, padding=reach)
    peaks = (rank.view_as(about) == highest).squeeze(1) & enough
    return peaks, (sums[:, :2] / sums[:, 2:]).permute(0, 2, 3, 1)


def follow(newer: Tensor, older: Tensor, limit_m: float) -> Motion:
    """Return how objects (N, 2) came from (M, 2): pairs that are each other's nearest."""
    if not len(newer) or not len(older):
        return Motion(newer, torch.zeros_like(newer), newer.new_zeros(len(newer), dtype=torch.bool))
    distance = torch.cdist(newer, older)
    shortest, nearest = distance.min(dim=1)
    mutual = distance.argmin(dim=0)[nearest] == torch.arange(len(newer), device=newer.device)
    matched = mutual & (shortest <= limit_m)
    return Motion(newer, (newer - older[nearest]) * matched.unsqueeze(1), matched)


def carry(
    features: Tensor,
    visible: Tensor,
    motion: Motion,
    cell_m: tuple[float, float],
    *,
    half_m: float,
    keep_background: bool,
) -> tuple[Tensor, Tensor]:
    """Return one agent's map (C, H, W) and visible cells (1, H, W) with its objects moved.

    Every cell within ``half_m`` of an object's new place takes the feature that lay as far from its
    old place (bilinear); of several objects the nearest one rules. Objects without a known way
    stay. Cells that an object left and no other covers show nothing; without ``keep_background``
    only the cells of objects with a known way are left.
    """
    if not len(motion.start):
        return features, visible & keep_background
    places = _places(features[0], cell_m)
    aim = motion.start + motion.step
    distance = _square_distance(places, aim)
    nearest, owner = distance.min(dim=0)
    covered = nearest <= half_m + _ROUNDING
    moves = covered & (motion.step[owner] != 0).any(-1)
    source = places - motion.step[owner]
    taken = _sample(torch.cat([features, visible.to(features.dtype)]), source, cell_m)
    left = (
        _square_distance(places, motion.start).min(dim=0).values <= half_m + _ROUNDING
    ) & ~covered
    shown = torch.where(moves, taken[-1:] > 0.5, visible & ~left)
    if not keep_background:
        shown = shown & covered & motion.matched[owner]
    return torch.where(moves, taken[:-1], features), shown


def _places(like: Tensor, cell_m: tuple[float, float]) -> Tensor:
    """Return (H, W, 2) x, y of the cells in metres from the centre of cell (0, 0)."""
    height, width = like.shape
    x = torch.arange(width, device=like.device) * cell_m[0]
    y = torch.arange(height, device=like.device) * cell_m[1]
    return torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width)], dim=-1)


def _square_distance(places: Tensor, centres: Tensor) -> Tensor:
    """Return (N, H, W) the larger of the distances along x and y."""
    return (places - centres[:, None, None]).abs().amax(-1)


def _sample(maps: Tensor, places: Tensor, cell_m: tuple[float, float]) -> Tensor:
    """Return (C, H, W) bilinear values of (C, H, W) at (H, W, 2) metres; zero outside."""
    height, width = maps.shape[-2:]
    span = places.new_tensor([max(width - 1, 1) * cell_m[0], max(height - 1, 1) * cell_m[1]])
    grid = 2 * places / span - 1
    sampled = F.grid_sample(
        maps.float().unsqueeze(0), grid.unsqueeze(0), align_corners=True, padding_mode="zeros"
    )
    return sampled[0].to(maps.dtype)
