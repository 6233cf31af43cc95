from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.made_detections import (
    STEPS,
    car,
    detected_of,
    random_sample,
    run_config,
    truth_of,
)
from turbotrain_plugin.evaluation import METRICS, Evaluator, SampleKey, split_hash
from turbotrain_plugin.structures import DetectedObjects, GroundTruth, UserError

RANGE = (-50.0, -40.0, -5.0, 50.0, 40.0, 3.0)
Made = tuple[DetectedObjects, GroundTruth, SampleKey]


def made_samples(count: int = 10, seed: int = 0) -> list[Made]:
    rng = np.random.default_rng(seed)
    return [
        (*random_sample(rng, objects=7, false_positives=2), (f"scene{i % 3}", 5 * i, 1))
        for i in range(count)
    ]


def evaluator_of(samples: Sequence[Made], **settings: Any) -> Evaluator:  # noqa: ANN401
    evaluator = Evaluator(run_config(**settings), range_m=RANGE)
    for detected, truth, key in samples:
        evaluator.update([detected], [truth], [key])
    return evaluator


def one(detected: DetectedObjects, truth: GroundTruth) -> dict[str, Any]:
    return evaluator_of([(detected, truth, ("s", 0, 0))]).compute().to_json()


# ------------------------------------------------------------------------------------- results.json


def test_json_has_the_agreed_keys() -> None:
    result = evaluator_of(made_samples()).compute().to_json()
    assert list(result) == ["schema", "protocol", "detection", "prediction", "end_to_end"]
    assert result["schema"] == 1
    thresholds = ["0.30", "0.50", "0.70"]
    detection = result["detection"]
    assert list(detection["ap_global"]) == list(detection["ap_opencood"]) == thresholds
    assert list(detection["ap_global_by_distance"]) == ["0-30", "30-50", "50-100"]
    assert {"n_gt", "n_det"} <= set(detection)
    agreed = {"ade_m", "fde_m", "mr", "fde_static_m", "n_matched"}
    extra = {"fde_moving_m", "fde_moving_static_m", "n_matched_moving", "n_matched_final"}
    assert set(result["prediction"]) == agreed | extra
    assert list(result["end_to_end"]) == ["epa", "epa_unclipped", "n_hit", "n_fp", "n_gt"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_protocol_names_the_samples() -> None:
    samples = made_samples()
    protocol = evaluator_of(samples).compute().protocol
    assert protocol.n_samples == len(samples)
    assert protocol.split_sha256 == split_hash(key for _, _, key in samples)
    assert protocol.evaluation_range_m == RANGE


def test_scalars_are_flat_and_measured() -> None:
    result = evaluator_of(made_samples()).compute()
    scalars = result.scalars()
    assert {"ap_0.50", "ap_opencood_0.50", "epa", "ade_m", "fde_m", "mr"} <= set(scalars)
    assert all(isinstance(value, float) for value in scalars.values())
    json_value = result.to_json()
    assert scalars["ap_0.50"] == json_value["detection"]["ap_global"]["0.50"]
    assert scalars["epa"] == json_value["end_to_end"]["epa"]


def test_every_part_is_a_metric_of_the_table() -> None:
    assert list(evaluator_of([]).compute().values) == list(METRICS)


# ------------------------------------------------------------------------------------ known answers


def test_self_comparison_is_perfect() -> None:
    boxes = [car(10.0 * i, yaw=0.2 * i) for i in range(-3, 4)]
    result = one(detected_of(boxes, np.linspace(0.9, 0.3, 7).tolist()), truth_of(boxes))
    assert set(result["detection"]["ap_global"].values()) == {1.0}
    assert set(result["detection"]["ap_opencood"].values()) == {1.0}
    assert (result["prediction"]["ade_m"], result["prediction"]["mr"]) == (0.0, 0.0)
    assert result["end_to_end"]["epa"] == 1.0


@pytest.mark.parametrize("samples", [[], [(detected_of([], []), truth_of([]), ("s", 0, 0))]])
def test_nothing_at_all(samples: list[Made]) -> None:
    result = evaluator_of(samples).compute()
    assert result.scalars() == {}
    assert result.to_json()["detection"]["n_gt"] == 0
    assert "NaN" not in json.dumps(result.to_json())
    assert result.protocol.n_samples == len(samples)


def test_no_detections_score_nothing_but_are_measured() -> None:
    result = one(detected_of([], []), truth_of([car(0)]))
    assert result["detection"]["ap_global"]["0.50"] == 0.0
    assert result["end_to_end"]["epa"] == 0.0
    assert result["prediction"]["fde_m"] is None


def test_objects_and_detections_are_cut_by_the_same_rule() -> None:
    # The rear corners of the car at 49 m are inside, the front ones at 51 m are not.
    boxes = [car(0), car(47), car(49), car(0, 39.5)]
    result = one(detected_of(boxes, [0.9, 0.8, 0.7, 0.6]), truth_of(boxes))
    assert (result["detection"]["n_gt"], result["detection"]["n_det"]) == (2, 2)
    only_truth = one(detected_of([], []), truth_of(boxes))
    only_detected = one(detected_of(boxes, [0.9, 0.8, 0.7, 0.6]), truth_of([]))
    assert only_truth["detection"]["n_gt"] == only_detected["detection"]["n_det"] == 2


def test_cutting_keeps_trajectories_and_futures_with_their_boxes() -> None:
    boxes = [car(70), car(0), car(20)]
    futures = np.cumsum(np.full((3, STEPS, 2), 1.0), axis=1) * np.array([1, 2, 3])[:, None, None]
    futures += np.asarray(boxes)[:, None, :2]
    detected = detected_of(boxes, [0.9, 0.8, 0.7], paths=futures)
    result = one(detected, truth_of(boxes, futures=futures))
    assert result["prediction"]["n_matched"] == 2
    assert result["prediction"]["ade_m"] == 0.0


def test_range_comes_from_the_argument_then_the_key_then_the_points() -> None:
    point_range = run_config().preprocess.cav_lidar_range
    assert Evaluator(run_config()).compute().protocol.evaluation_range_m == point_range
    by_key = Evaluator(run_config(range=RANGE)).compute().protocol
    assert by_key.evaluation_range_m == RANGE
    given = Evaluator(run_config(range=RANGE), range_m=point_range).compute().protocol
    assert given.evaluation_range_m == point_range
    with pytest.raises(ValueError, match="`range_m` must hold x, y, z min, then max"):
        Evaluator(run_config(), range_m=(0.0, 1.0))


def test_settings_reach_the_metrics() -> None:
    boxes = [car(0), car(20)]
    sample = (detected_of(boxes, [0.9, 0.8], end_error_m=[0, 3]), truth_of(boxes), ("s", 0, 0))
    assert evaluator_of([sample]).compute().scalars()["epa"] == 0.5
    assert evaluator_of([sample], miss_m=4.0).compute().scalars()["epa"] == 1.0
    near = (detected_of([car(1.5)], [0.9]), truth_of([car(0)]), ("s", 0, 0))
    assert evaluator_of([near]).compute().to_json()["prediction"]["n_matched"] == 1
    strict = evaluator_of([near], match="center_1m").compute().to_json()
    assert strict["prediction"]["n_matched"] == 0


# ------------------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_merged_are_the_whole(parts: int) -> None:
    samples = made_samples(14)
    whole = evaluator_of(samples).compute()
    merged = evaluator_of(samples[0::parts])
    for rank in range(1, parts):
        # As it comes from another process.
        merged.merge(pickle.loads(pickle.dumps(evaluator_of(samples[rank::parts]))))
    assert merged.compute() == whole


def test_order_of_samples_and_batches_changes_nothing() -> None:
    samples = made_samples(9)
    shuffled = [samples[i] for i in np.random.default_rng(4).permutation(9)]
    batched = Evaluator(run_config(), range_m=RANGE)
    for start in range(0, 9, 4):
        detected, truth, keys = zip(*shuffled[start : start + 4], strict=True)
        batched.update(detected, truth, keys)
    assert batched.compute() == evaluator_of(samples).compute()


def test_merging_an_empty_one_changes_nothing() -> None:
    evaluator = evaluator_of(made_samples(3))
    before = evaluator.compute()
    evaluator.merge(evaluator_of([]))
    assert evaluator.compute() == before


def test_more_may_come_after_compute() -> None:
    samples = made_samples(6)
    evaluator = evaluator_of(samples[:3])
    evaluator.compute()
    for detected, truth, key in samples[3:]:
        evaluator.update([detected], [truth], [key])
    assert evaluator.compute() == evaluator_of(samples).compute()


def test_merge_refuses_another_protocol() -> None:
    with pytest.raises(ValueError, match="`other` must have been made with the same configuration"):
        evaluator_of([]).merge(evaluator_of([], miss_m=3.0))
    other_range = Evaluator(run_config(), range_m=(-10.0, -10.0, -5.0, 10.0, 10.0, 3.0))
    with pytest.raises(ValueError, match="same configuration and range"):
        evaluator_of([]).merge(other_range)


# --------------------------------------------------------------------------------------- bad inputs


def test_samples_are_evaluated_once() -> None:
    detected, truth, key = made_samples(1)[0]
    evaluator = evaluator_of([(detected, truth, key)])
    before = evaluator.compute()
    with pytest.raises(ValueError, match=r"`keys` must name every sample once. Found \('scene0'"):
        evaluator.update([detected], [truth], [key])
    with pytest.raises(ValueError, match="every sample once"):
        evaluator.update([detected] * 2, [truth] * 2, [("new", 0, 0)] * 2)
    with pytest.raises(ValueError, match="every sample once"):
        evaluator.merge(evaluator_of([(detected, truth, key)]))
    assert evaluator.compute() == before


def test_unlabelled_sample_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="Scene 's', frame 5, ego 1 has no labels"):
        evaluator_of([]).update([detected_of([], [])], [None], [("s", 5, 1)])


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"equally many\. Found 1, 0 and 1"):
        evaluator_of([]).update([detected_of([], [])], [], [("s", 0, 0)])


@pytest.mark.parametrize("name", ["boxes", "scores", "trajectories"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(name: str, value: float) -> None:
    detected = detected_of([car(0)], [0.9])
    getattr(detected, name)[0] = value
    evaluator = evaluator_of([])
    with pytest.raises(ValueError, match=rf"`detections.{name}` must be finite"):
        evaluator.update([detected], [truth_of([car(0)])], [("s", 0, 0)])
    assert evaluator.compute().protocol.n_samples == 0


def test_truth_must_be_finite_where_it_is_valid() -> None:
    broken = truth_of([car(0)])
    broken.boxes[0, 6] = np.nan
    with pytest.raises(ValueError, match=r"`truths\.boxes` must be finite"):
        one(detected_of([], []), broken)
    broken = truth_of([car(0)])
    broken.futures[0, 2] = np.nan
    with pytest.raises(ValueError, match=r"`truths\.futures` must be finite"):
        one(detected_of([], []), broken)
    broken.future_valid[0, 2] = False
    found = one(detected_of([car(0)], [0.9]), broken)
    assert found["prediction"]["ade_m"] == 0.0


def test_a_bad_sample_leaves_nothing_of_its_batch() -> None:
    good, bad = made_samples(2)
    bad[0].scores[0] = np.nan
    evaluator = evaluator_of([])
    with pytest.raises(ValueError, match="must be finite"):
        evaluator.update([good[0], bad[0]], [good[1], bad[1]], [good[2], bad[2]])
    assert evaluator.compute() == evaluator_of([]).compute()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"scores": np.zeros(2, np.float32)}, r"`detections.boxes` must have shape \(2, 7\)"),
        ({"boxes": np.zeros((1, 8), np.float32)}, r"`detections.boxes` must have shape \(1, 7\)"),
        (
            {"trajectories": np.zeros((1, STEPS + 1, 2), np.float32)},
            r"`detections.trajectories` must have shape \(1, 6, 2\). Found \(1, 7, 2\)",
        ),
    ],
)
def test_shapes_must_fit(broken: dict[str, Any], message: str) -> None:
    detected = replace(detected_of([car(0)], [0.9]), **broken)
    with pytest.raises(ValueError, match=message):
        one(detected, truth_of([car(0)]))


def test_truth_shapes_must_fit() -> None:
    truth = truth_of([car(0)])
    short = replace(truth, futures=truth.futures[:, :2])
    with pytest.raises(ValueError, match=r"`truths.futures` must have shape \(1, 6, 2\)"):
        one(detected_of([], []), short)
    none = replace(truth, futures=truth.futures[:, :0], future_valid=truth.future_valid[:, :0])
    with pytest.raises(ValueError, match="at least one step"):
        one(detected_of([], []), none)
