"""Pure geometry: poses, boxes, anchors, overlaps and the BEV grid. No files, no weights.

The public names are resolved on first use, so that poses and boxes, which are numpy, load no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from turbotrain_plugin.geometry.anchors import (
        assign_anchors,
        decode_boxes,
        encode_boxes,
        make_anchors,
    )
    from turbotrain_plugin.geometry.boxes import (
        bev_corners,
        bev_hulls,
        contains_origin,
        corners_3d,
        count_points,
        inside_range,
        points_in_boxes,
        transform_boxes,
        wrap_angle,
    )
    from turbotrain_plugin.geometry.grid import BevGrid, roi_mask
    from turbotrain_plugin.geometry.iou import (
        hull_iou,
        nms_bev,
        paired_iou_bev,
        rotated_iou_bev,
    )
    from turbotrain_plugin.geometry.poses import (
        invert_rigid,
        is_rigid,
        matrix_to_pose,
        pose_to_matrix,
        transform_points,
        transform_xy,
        yaw_of,
    )

__all__ = [
    "BevGrid",
    "assign_anchors",
    "bev_corners",
    "bev_hulls",
    "contains_origin",
    "corners_3d",
    "count_points",
    "decode_boxes",
    "encode_boxes",
    "hull_iou",
    "inside_range",
    "invert_rigid",
    "is_rigid",
    "make_anchors",
    "matrix_to_pose",
    "nms_bev",
    "paired_iou_bev",
    "points_in_boxes",
    "pose_to_matrix",
    "roi_mask",
    "rotated_iou_bev",
    "transform_boxes",
    "transform_points",
    "transform_xy",
    "wrap_angle",
    "yaw_of",
]

_MODULES: Final[dict[str, tuple[str, ...]]] = {
    "anchors": ("assign_anchors", "decode_boxes", "encode_boxes", "make_anchors"),
    "boxes": (
        "bev_corners",
        "bev_hulls",
        "contains_origin",
        "corners_3d",
        "count_points",
        "inside_range",
        "points_in_boxes",
        "transform_boxes",
        "wrap_angle",
    ),
    "grid": ("BevGrid", "roi_mask"),
    "iou": ("hull_iou", "nms_bev", "paired_iou_bev", "rotated_iou_bev"),
    "poses": (
        "invert_rigid",
        "is_rigid",
        "matrix_to_pose",
        "pose_to_matrix",
        "transform_points",
        "transform_xy",
        "yaw_of",
    ),
}
_DOORS: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_DOORS[name]}"), name)
