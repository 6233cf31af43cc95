from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import replace

import pytest
import yaml

from tests.helpers.made_detections import run_config
from turbotrain_plugin.config import (
    EvaluationConfig,
    FusionConfig,
    ModelArgs,
    ModelConfig,
    RunConfig,
)
from turbotrain_plugin.evaluation import EvaluationProtocol, protocol_of, split_hash

RANGE = (-102.4, -40.0, -5.0, 102.4, 40.0, 3.0)
KEYS = [("b", 5, 1), ("a", 10, 2), ("a", 5, 2)]


def protocol(config: RunConfig | None = None) -> EvaluationProtocol:
    return protocol_of(config or run_config(), RANGE)


def test_hash_is_that_of_the_sorted_keys() -> None:
    text = '["a", 5, 2]\n["a", 10, 2]\n["b", 5, 1]\n'
    assert split_hash(KEYS) == hashlib.sha256(text.encode()).hexdigest()
    assert split_hash(KEYS[::-1]) == split_hash(KEYS)


@pytest.mark.parametrize("other", [("b", 5, 2), ("b", 6, 1), ("c", 5, 1), ("b,5", 5, 1)])
def test_hash_sees_every_part_of_a_key(other: tuple[str, int, int]) -> None:
    assert split_hash([other, *KEYS[1:]]) != split_hash(KEYS)


def test_hash_of_nothing_is_a_hash() -> None:
    assert split_hash([]) == hashlib.sha256(b"").hexdigest()


def test_samples_are_counted_once() -> None:
    applied = protocol().with_samples([*KEYS, KEYS[0]])
    assert applied.n_samples == 3
    assert applied.split_sha256 == split_hash(KEYS)


def test_json_and_yaml_hold_the_same_plain_values() -> None:
    applied = protocol().with_samples(KEYS)
    plain = applied.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert yaml.safe_load(applied.to_yaml()) == plain
    assert list(plain) == [field.name for field in dataclasses.fields(EvaluationProtocol)]


def test_defaults_are_the_published_ones() -> None:
    plain = protocol().to_json()
    assert plain["evaluation_range_m"] == list(RANGE)
    assert plain["comm_range_m"] == 50.0
    assert plain["step_s"] == 0.5
    assert plain["sample_stride_s"] == 0.1
    assert plain["iou_thresholds"] == [0.3, 0.5, 0.7]
    assert plain["distance_iou"] == 0.5
    assert (plain["score_threshold"], plain["nms_iou"]) == (0.2, 0.15)
    assert (plain["match"], plain["miss_m"], plain["epa_alpha"]) == ("center_2m", 2.0, 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iou", (0.5,)),
        ("match", "iou_0.5"),
        ("miss_m", 1.0),
        ("epa_alpha", 1.0),
        ("epa_gt", "all"),
        ("count_empty_frames", False),
        ("moving_m", 1.0),
    ],
)
def test_every_metric_setting_shows(name: str, value: object) -> None:
    assert protocol(run_config(**{name: value})) != protocol()


def test_no_metric_setting_is_forgotten() -> None:
    """A new key of the block must be written into the protocol, or be named here as harmless."""
    shown_as = {"range": "evaluation_range_m", "iou": "iou_thresholds"}
    harmless = {"max_samples", "pictures"}  # the first shows in n_samples and the hash
    names = {field.name for field in dataclasses.fields(EvaluationConfig)} - harmless
    written = {field.name for field in dataclasses.fields(EvaluationProtocol)}
    assert {shown_as.get(name, name) for name in names} <= written


@pytest.mark.parametrize("mode", ["vc", "ic", "v2v", "i2i"])
def test_every_mode_has_an_ego_rule(mode: str) -> None:
    kind = "vehicle" if mode in ("vc", "v2v") else "roadside unit"
    rule = protocol(replace(RunConfig(), dataset_mode=mode)).ego_rule
    assert rule.startswith(f"the {kind} of smallest number")


def test_a_network_without_fusion_hears_nobody() -> None:
    args = replace(ModelArgs(), fusion=FusionConfig(core_method="no_fusion"))
    alone = replace(RunConfig(), model=ModelConfig(args=args))
    assert "hears nobody" in protocol(alone).ego_rule
    assert "all agents cooperate" in protocol(RunConfig()).ego_rule


def test_protocol_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        protocol().miss_m = 1.0  # type: ignore[misc]
