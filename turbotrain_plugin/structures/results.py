"""What networks, losses and decoding return."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(slots=True)
class FrameMaps:
    """Every agent's maps of single frames, as they are before temporal fusion, in the ego grid.

    Attributes:
        maps: (sum A, T, C, H, W), current frame last.
        valid: (sum A, T) bool.
        interval_s: Seconds between two frames.
        cell_m: Size of a cell along x and y.
    """

    maps: Tensor
    valid: Tensor
    interval_s: float
    cell_m: tuple[float, float]


@dataclass(slots=True)
class FusionContext:
    """What an agent-fusion module knows beside the features.

    Attributes:
        record_len: (B,) int64.
        agent_types: (sum A,) int64.
        roi: (sum A, 1, H, W) bool, cells the agent could see (its grid warped to the ego's).
        time_offset_s: (sum A,) float32.
        ego_SE3_agent: (sum A, 4, 4) float32 at the current time.
        frames: The frames behind the features; None unless the fusion asks (``needs_frames``).
        labels: (B, H, W, anchors) int8 as in ``Targets``; None where nothing is supervised.
        sent_points: (B,) int64 as in ``Batch``.
        taught: (B, C, H, W), a teacher's map in place of the fused one; None without teacher.
    """

    record_len: Tensor
    agent_types: Tensor
    roi: Tensor
    time_offset_s: Tensor
    ego_SE3_agent: Tensor
    frames: FrameMaps | None = None
    labels: Tensor | None = None
    sent_points: Tensor | None = None
    taught: Tensor | None = None


@dataclass(slots=True)
class FusionOutput:
    """What agent fusion returns.

    Attributes:
        features: (B, C, H, W); with ``rows``, (sum of rows, C, H, W).
        auxiliary_losses: Extra scalar losses by name.
        message_bytes: Bytes of features one neighbour sends per frame, before ``Compressor``.
        side_bytes: Bytes it sends beside them, which ``Compressor`` does not touch.
        rows: (B,) int64, maps per sample, ego's first, if agents stay apart (late); else None.
    """

    features: Tensor
    auxiliary_losses: dict[str, Tensor]
    message_bytes: int
    side_bytes: int = 0
    rows: Tensor | None = None


@dataclass(slots=True)
class Predictions:
    """Raw head outputs.

    Attributes:
        class_logits: (B, H, W, anchors).
        box_codes: (B, H, W, anchors, 7), residuals x, y, z, h, w, l, yaw.
        trajectories: (B, H, W, anchors, F, 2) metres from the centre, or None.
        auxiliary_losses: Extra scalar losses of fusion modules (they join the detection task).
        message_bytes: Bytes one neighbour sends per frame.
        rows: (B,) int64 as in ``FusionOutput``: the outputs are one per row in place of B.
    """

    class_logits: Tensor
    box_codes: Tensor
    trajectories: Tensor | None
    auxiliary_losses: dict[str, Tensor] = field(default_factory=dict)
    message_bytes: int = 0
    rows: Tensor | None = None


@dataclass(slots=True)
class DetectedObjects:
    """Decoded objects of one sample, by falling score.

    Attributes:
        boxes: (N, 7) float32, ego frame.
        scores: (N,) float32 in [0, 1].
        trajectories: (N, F, 2) float32, absolute x, y in the ego frame; None without prediction.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    trajectories: NDArray[np.float32] | None


@dataclass(slots=True)
class TaskLosses:
    """Ordered task name -> scalar loss, plus named parts for the log.

    Attributes:
        tasks: What is optimised, for instance ``detection`` and ``prediction``.
        parts: Detached components, for instance ``cls``, ``reg``; only logged.
    """

    tasks: dict[str, Tensor]
    parts: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        """Return the plain sum of the tasks."""
        return torch.stack([loss.reshape(()) for loss in self.tasks.values()]).sum()


@dataclass(slots=True)
class Reconstruction:
    """Outputs and targets of masked reconstruction.

    Attributes:
        points: (B, F, H, W, Q, 3) normalised predictions in cell units for the F target frames,
            oldest first, or None when switched off.
        occupancy: (B, F, H, W, bins) logits, or None when switched off.
        region: (B, F, H, W) bool, cells the point loss is taken over.
        masked: (V,) bool, voxels hidden from the encoder.
    """

    points: Tensor | None
    occupancy: Tensor | None
    region: Tensor
    masked: Tensor
