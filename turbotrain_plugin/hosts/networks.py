"""Our detection network as a host's model: single-frame, several agents, any of our fusions.

In a host's hypes file::

    model:
      core_method: turbotrain_detector
      args:
        anchor_number: *anchor_num
        feature_stride: 2
        lidar_range: *cav_lidar
        voxel_size: *voxel_size
        network: {channels: 64, encoder: {core_method: pillars}, fusion: {core_method: fcooper}}

``network`` holds the keys of our ``model.args``. The heads speak the host's language: ``psm``
(B, A, H, W) logits and ``rm`` (B, 7 A, H, W) residuals, so labels, loss and decoding are the
host's. With ``num_class`` the heads are those of V2X-Real: anchors of every class, each with a
logit for every class. HEAL reads the same maps under its own names, and with ``dir_args`` a third
one; it needs ``fusion.args.proj_first: true``, because our network fuses in the ego's frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import yaml
from torch import Tensor, nn

from turbotrain_plugin.config import ModelArgs
from turbotrain_plugin.config.build import build
from turbotrain_plugin.config.yaml_tree import parse_text
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.hosts.batches import to_batch
from turbotrain_plugin.models import build_model
from turbotrain_plugin.models.heads import DetectionHead
from turbotrain_plugin.structures import UserError

_NEEDED: Final = ("voxel_size", "lidar_range", "anchor_number")


class TurbotrainDetector(nn.Module):
    """``CooperativeNetwork`` with one frame, no map and no prediction.

    Args:
        args: ``model.args`` of the host's hypes.

    Raises:
        UserError: When a key is missing or wrong.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        missing = [key for key in _NEEDED if key not in args]
        if missing:
            raise UserError(f"turbotrain_detector needs model.args.{', '.join(missing)}.")
        text = yaml.safe_dump(args.get("network") or {})
        keys = build(ModelArgs, parse_text(text, "model.args.network"), "model.args.network")
        keys = replace(keys, prediction=False, map=replace(keys.map, enabled=False))
        x, y, z = args["voxel_size"]
        low_x, low_y, low_z, high_x, high_y, high_z = args["lidar_range"]
        grid = BevGrid(
            range_m=(low_x, low_y, low_z, high_x, high_y, high_z),
            voxel_m=(x, y, z),
            stride=int(args.get("feature_stride", 2)),
        )
        anchors, classes = int(args["anchor_number"]), int(args.get("num_class", 1))
        self.network = build_model(
            keys, grid, hist_frames=1, future_steps=1, anchors_per_cell=anchors * classes
        )
        read = self.network.head_channels
        if classes > 1:  # anchors of every class, each with a logit for every class
            self.network.detection.classes = DetectionHead(read, anchors * classes**2).classes
        bins = int(args["dir_args"]["num_bins"]) if args.get("dir_args") else 0
        self.direction = nn.Conv2d(read, anchors * bins, 1) if bins else None

    def forward(self, data_dict: dict[str, Any]) -> dict[str, Tensor]:
        """Return the heads' maps under the hosts' names."""
        batch = to_batch(data_dict)
        features = self.network.fused_features(batch).features
        predictions = self.network.heads(features, None)
        logits = predictions.class_logits.permute(0, 3, 1, 2).contiguous()
        codes = predictions.box_codes.flatten(3).permute(0, 3, 1, 2).contiguous()
        found = {"psm": logits, "rm": codes, "cls_preds": logits, "reg_preds": codes}
        if self.direction is not None:
            found["dir_preds"] = self.direction(features)
        return found
