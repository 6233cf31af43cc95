"""Everything an evaluation chose, written beside its numbers: two results compare when it agrees.

Ranges, sort order, ego rule, score threshold and split differ silently between the code bases of
this field, and any of them moves AP by points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from turbotrain_plugin.config import RunConfig, to_plain, to_yaml
from turbotrain_plugin.evaluation.average_precision import DISTANCE_BINS_M, distance_threshold
from turbotrain_plugin.evaluation.metric import SampleKey

RECORDING_HZ: Final = 10.0
"""Rate of the frame grid of a recording."""

EGO_RULES: Final = {
    "vc": ("the vehicle of smallest number that has points", "all agents cooperate"),
    "ic": ("the roadside unit of smallest number that has points", "all agents cooperate"),
    "v2v": ("the vehicle of smallest number that has points", "vehicles only"),
    "i2i": ("the roadside unit of smallest number that has points", "roadside units only"),
}
"""Who is the ego in evaluation and whom it hears, by ``dataset_mode``; the sign of a number does
not count."""
_ALONE: Final = "it hears nobody, objects are those that all agents have labelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationProtocol:
    """The choices behind a result; names carry units, fractions are not per cent.

    Attributes:
        evaluation_range_m: x, y, z min, then max; z is not tested.
        range_rule: What of a box must lie inside, for detections and objects alike.
        point_range_m: Range of the points the model sees.
        dataset_mode: Which agents take part.
        ego_rule: Who of them is the ego.
        comm_range_m: Distance from the ego beyond which agents are dropped.
        max_agents: Agents kept, the ego included.
        classes: Raw class names that are objects; one class in the metrics.
        min_points: Current points an object needs.
        hist_frames: Frames the model sees, the current one included.
        future_steps: Predicted steps.
        step_s: Seconds between steps.
        sample_stride_s: Seconds between the current times of two samples.
        require_history: Whether samples with missing history are left out.
        require_future: Whether samples with missing future are left out.
        future_fill: How missing future positions are filled.
        score_threshold: Score a detection must exceed.
        nms_iou: Overlap above which the lower score is suppressed.
        nms_candidates: Highest scores that enter suppression.
        max_box_extent_m: Detections longer than this along x or y are dropped; 0 keeps all.
        iou_kind: What the IoU of AP is taken over.
        iou_thresholds: Thresholds of AP.
        ap_area: How AP is taken from precision and recall.
        ap_global_order: Order of the detections in ``ap_global``.
        ap_opencood_order: Order of the detections in ``ap_opencood``.
        distance_bins_m: Bins of ``ap_global_by_distance``.
        distance_iou: Its IoU threshold.
        match: How detections meet objects for displacement and EPA.
        miss_m: FDE above which a prediction misses.
        moving_m: Net displacement that makes an object moving.
        epa_alpha: Weight of a false positive in EPA.
        epa_gt: Objects EPA counts.
        count_empty_frames: Whether false positives of samples without objects count.
        disturbances: Latency, pose noise and losses of neighbours' messages, if any.
        label_repairs: Flaws of the labels that were mended, if any.
        n_samples: Samples evaluated.
        split_sha256: Hash of their sorted keys, see `split_hash`.
    """

    evaluation_range_m: tuple[float, ...]
    range_rule: str = "all four BEV corners inside x, y"
    point_range_m: tuple[float, ...]
    dataset_mode: str
    ego_rule: str
    comm_range_m: float
    max_agents: int
    classes: tuple[str, ...]
    min_points: int
    hist_frames: int
    future_steps: int
    step_s: float
    sample_stride_s: float
    require_history: bool
    require_future: bool
    future_fill: str
    score_threshold: float
    nms_iou: float
    nms_candidates: int
    max_box_extent_m: float
    iou_kind: str = "BEV polygon, no height"
    iou_thresholds: tuple[float, ...]
    ap_area: str = "all points under the monotone precision envelope (VOC 2010)"
    ap_global_order: str = "falling score over all samples"
    ap_opencood_order: str = "samples by key (scene, frame, ego), falling score within a sample"
    distance_bins_m: tuple[tuple[float, float], ...] = DISTANCE_BINS_M
    distance_iou: float
    match: str
    miss_m: float
    moving_m: float
    epa_alpha: float
    epa_gt: str
    count_empty_frames: bool
    disturbances: str | None = None
    label_repairs: str | None = None
    n_samples: int = 0
    split_sha256: str = ""

    def with_samples(self, keys: Iterable[SampleKey]) -> EvaluationProtocol:
        """Return the protocol with the samples it was applied to."""
        unique = set(keys)
        return replace(self, n_samples=len(unique), split_sha256=split_hash(unique))

    def to_json(self) -> dict[str, Any]:
        """Return plain values under the names of the fields."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    def to_yaml(self) -> str:
        """Return the text of ``protocol.yaml``."""
        return to_yaml(self)


def protocol_of(config: RunConfig, range_m: tuple[float, ...]) -> EvaluationProtocol:
    """Return the protocol of a configuration, before any sample.

    Args:
        config: The resolved hypes.
        range_m: Evaluation range, x, y, z min, then max.
    """
    data, settings = config.turbotrain.data, config.turbotrain.evaluation
    post = config.postprocess
    ego, heard = EGO_RULES[config.dataset_mode]
    alone = config.model.args.fusion.core_method == "no_fusion"
    return EvaluationProtocol(
        evaluation_range_m=range_m,
        point_range_m=config.preprocess.cav_lidar_range,
        dataset_mode=config.dataset_mode,
        ego_rule=f"{ego}; {_ALONE if alone else heard}",
        comm_range_m=config.comm_range,
        max_agents=config.train_params.max_cav,
        classes=data.classes,
        min_points=data.min_points,
        hist_frames=data.hist_frames,
        future_steps=data.future_steps,
        step_s=data.step_frames / RECORDING_HZ,
        sample_stride_s=data.sample_stride / RECORDING_HZ,
        require_history=data.require_history,
        require_future=data.require_future,
        future_fill=data.future_fill,
        score_threshold=post.target_args.score_threshold,
        nms_iou=post.nms_thresh,
        nms_candidates=post.nms_candidates,
        max_box_extent_m=post.max_box_extent,
        iou_thresholds=settings.iou,
        distance_iou=settings.iou[distance_threshold(settings.iou)],
        match=settings.match,
        miss_m=settings.miss_m,
        moving_m=settings.moving_m,
        epa_alpha=settings.epa_alpha,
        epa_gt=settings.epa_gt,
        count_empty_frames=settings.count_empty_frames,
        disturbances=_disturbances(config),
        label_repairs=_repairs(config),
    )


def _disturbances(config: RunConfig) -> str | None:
    wild, drop_out = config.wild_setting, config.turbotrain.data.drop_out
    parts = []
    if wild.async_ and wild.async_mode == "sim" and wild.async_overhead:
        parts.append(f"latency {wild.async_overhead:g} ms, whole frames of 100 ms")
    if wild.async_ and wild.async_mode == "real":
        sent_ms = 1000 * wild.data_size / wild.transmission_speed + wild.backbone_delay
        parts.append(
            f"latency {sent_ms:g} ms and up to {wild.async_overhead:g} ms more, whole frames of "
            "100 ms"
        )
    if wild.loc_err and (wild.xyz_std or wild.ryp_std):
        parts.append(f"pose noise {wild.xyz_std:g} m, yaw {wild.ryp_std:g} deg")
    if drop_out:
        parts.append(f"{drop_out:g} of the messages lost")
    return "; ".join([*parts, f"seed {wild.seed}"]) if parts else None


def _repairs(config: RunConfig) -> str | None:
    repair = config.turbotrain.data.repair
    parts = ["reversed tracks turned"] * repair.heading_flips
    parts += ["ids of one object merged"] * repair.duplicate_ids
    if repair.fill_gaps_s:
        parts.append(f"gaps up to {repair.fill_gaps_s:g} s filled")
    return "; ".join(parts) or None


def split_hash(keys: Iterable[SampleKey]) -> str:
    """Return the SHA-256 of the sorted sample keys, one JSON array a line.

    Equal exactly when the same samples were evaluated from the same egos, in whatever order.
    """
    digest = hashlib.sha256()
    for scene, frame, ego in sorted(keys):
        digest.update(json.dumps([scene, frame, ego]).encode() + b"\n")
    return digest.hexdigest()
