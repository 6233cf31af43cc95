"""Strategies are lists of stages; the choices of the key and the table are the same."""

from __future__ import annotations

import dataclasses

import pytest

from turbotrain_plugin.config import RunConfig, TurboTrainBlock, difference, load_hypes
from turbotrain_plugin.config.check import check
from turbotrain_plugin.engine.stages import (
    FINETUNE,
    PRETRAIN,
    STRATEGIES,
    Stage,
    network_config,
    stages_of,
    training_config,
)

BACKBONE = ("encoder", "projection", "neck")
DETECTOR = (*BACKBONE, "detection")
SINGLE_AGENT = (*DETECTOR, "temporal", "map_fusion", "prediction")


def config_for(strategy: str, *overrides: str) -> RunConfig:
    return load_hypes("turbotrain_v2xpnp.yaml", [f"turbotrain.strategy={strategy}", *overrides])


def manual(*overrides: str) -> tuple[Stage, ...]:
    return stages_of(config_for("manual", *overrides))


def test_table_and_choices_agree() -> None:
    declared = {f.name: f for f in dataclasses.fields(TurboTrainBlock)}["strategy"]
    assert set(declared.metadata["choices"]) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (
            "turbotrain",
            [("pretrain", PRETRAIN, False, None), ("balance", FINETUNE, True, "pretrain")],
        ),
        (
            "turbotrain_no_balance",
            [("pretrain", PRETRAIN, False, None), ("finetune", FINETUNE, False, "pretrain")],
        ),
        ("pretrain_only", [("pretrain", PRETRAIN, False, None)]),
        ("one_time", [("one_time", FINETUNE, False, None)]),
        ("one_time_single_agent", [("one_time", FINETUNE, False, None)]),
        (
            "manual",
            [
                ("detection", FINETUNE, False, None),
                ("prediction", FINETUNE, False, "detection"),
                ("joint", FINETUNE, False, "prediction"),
                ("cooperation", FINETUNE, True, "joint"),
            ],
        ),
    ],
)
def test_stages(strategy: str, expected: list[tuple[str, str, bool, str | None]]) -> None:
    stages = stages_of(config_for(strategy))
    assert [(s.name, s.kind, s.balance is not None, s.starts_from) for s in stages] == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_stage_starts_from_exists_and_hands_something_on(strategy: str) -> None:
    earlier: set[str] = set()
    for stage in stages_of(config_for(strategy)):
        assert stage.name not in earlier
        assert stage.starts_from is None or stage.starts_from in earlier
        assert bool(stage.carries) == (stage.starts_from is not None)
        assert set(stage.frozen) <= set(stage.carries)  # fresh weights are not worth keeping
        earlier.add(stage.name)


def test_stages_carry_their_own_optimiser() -> None:
    pretrain, balance = stages_of(load_hypes("turbotrain_v2xpnp.yaml"))
    assert (pretrain.optimizer.core_method, pretrain.epoches) == ("AdamW", 15)
    assert (balance.optimizer.core_method, balance.epoches) == ("Adam", 20)


@pytest.mark.parametrize(
    ("overrides", "carried"),
    [
        ([], (*BACKBONE, "temporal", "fusion")),
        (["turbotrain.pretrain.agent_fusion=false"], (*BACKBONE, "temporal")),
        (
            ["turbotrain.pretrain.agent_fusion=false", "model.args.neck.position=post_fusion"],
            ("encoder", "projection", "temporal"),
        ),
        (
            ["turbotrain.pretrain.compression=true"],
            (*BACKBONE, "temporal", "compressor", "fusion"),
        ),
        (
            ["turbotrain.pretrain={compression: true, agent_fusion: false}"],
            (*BACKBONE, "temporal"),
        ),
    ],
)
def test_what_pretraining_reached_is_carried_over(
    overrides: list[str], carried: tuple[str, ...]
) -> None:
    """A neck behind a fusion that is left out has seen nothing either."""
    for strategy in ("turbotrain", "turbotrain_no_balance"):
        assert stages_of(config_for(strategy, *overrides))[1].carries == carried


@pytest.mark.parametrize("strategy", ["turbotrain", "turbotrain_no_balance"])
def test_somebody_s_weights_start_the_first_stage_there_is(strategy: str) -> None:
    first, second = stages_of(config_for(strategy, "turbotrain.pretrain.init=run"))
    assert (first.init, second.init, second.starts_from) == ("run", "", "pretrain")
    assert first.carries == (*BACKBONE, "temporal", "compressor", "fusion")
    (only,) = stages_of(config_for(strategy, "turbotrain.pretrain={init: run, epoches: 0}"))
    assert (only.kind, only.init, only.starts_from) == (FINETUNE, "run", None)
    assert only.carries == second.carries
    assert (only.balance is not None) == (strategy == "turbotrain")


def test_the_balance_block_is_the_balance_stage_s() -> None:
    config = config_for("turbotrain", "turbotrain.balance.method=moco")
    assert stages_of(config)[1].balance == config.turbotrain.balance


def test_pretraining_may_see_fewer_frames_than_fine_tuning() -> None:
    keys = ["turbotrain.pretrain.hist_frames=3", "turbotrain.pretrain.min_coverage=0.9"]
    config = config_for("turbotrain", *keys)
    pretrain, balance = stages_of(config)
    assert training_config(config, pretrain).turbotrain.data.hist_frames == 3
    assert network_config(config, balance) == config
    assert stages_of(config_for("turbotrain"))[0].frames is None


# ------------------------------------------------------------------------------------------- manual


def test_the_manual_stages_of_the_supplement() -> None:
    detection, prediction, joint, cooperation = manual()
    alone = [stage.single_agent for stage in (detection, prediction, joint, cooperation)]
    assert alone == [True, True, True, False]
    assert (detection.frames, detection.detection_only) == (1, True)
    for later in (prediction, joint, cooperation):
        assert (later.frames, later.detection_only) == (None, False)
    assert prediction.carries == prediction.frozen == DETECTOR
    assert (joint.carries, joint.frozen) == (SINGLE_AGENT, ())
    assert (cooperation.carries, cooperation.frozen) == (SINGLE_AGENT, ())


def test_the_detection_head_may_learn_in_the_second_stage() -> None:
    second = manual("turbotrain.manual.freeze_head=false")[1]
    assert second.frozen == BACKBONE
    assert second.carries == DETECTOR


@pytest.mark.parametrize("method", ["dwa", "uncertainty"])
def test_loss_weighting_runs_in_every_step_of_the_fourth_stage(method: str) -> None:
    keys = [f"turbotrain.manual.weighting={method}", "turbotrain.balance.args.dwa.window=7"]
    balance = manual(*keys)[3].balance
    assert balance is not None
    assert (balance.method, balance.schedule) == (method, "every_step")
    assert balance.args.dwa.window == 7


def test_loss_weighting_can_be_left_out() -> None:
    assert manual("turbotrain.manual.weighting=none")[3].balance is None


def test_epochs_of_the_manual_stages() -> None:
    assert [stage.epoches for stage in manual()] == [20] * 4
    assert [stage.epoches for stage in manual("train_params.epoches=3")] == [3] * 4
    assert [s.epoches for s in manual("turbotrain.manual.epoches=[4, 3, 2, 1]")] == [4, 3, 2, 1]


# ----------------------------------------------------------------------------- settings of a stage


def changed(config: RunConfig, other: RunConfig) -> dict[str, object]:
    return {name: value for name, _, value in difference(config, other)}


def test_a_single_agent_neither_fuses_nor_compresses_but_is_measured_against_all() -> None:
    config = config_for("manual", "model.args.compression.ratio=4")
    joint = manual()[2]
    network = {"model.args.fusion.core_method": "no_fusion", "model.args.compression.ratio": 0}
    assert changed(config, network_config(config, joint)) == network
    own = network | {"train_params.max_cav": 1}
    assert changed(config, training_config(config, joint)) == own


def test_single_agent_detection_has_one_frame_and_no_prediction() -> None:
    config = config_for("manual")
    assert changed(config, training_config(config, manual()[0])) == {
        "model.args.fusion.core_method": "no_fusion",
        "model.args.prediction": False,
        "model.args.map.enabled": False,
        "turbotrain.data.hist_frames": 1,
        "train_params.max_cav": 1,
    }


@pytest.mark.parametrize("strategy", ["turbotrain", "turbotrain_no_balance", "one_time"])
def test_other_stages_are_what_the_file_says(strategy: str) -> None:
    config = config_for(strategy)
    for stage in (*stages_of(config), manual()[3]):
        assert network_config(config, stage) == training_config(config, stage) == config


@pytest.mark.parametrize("strategy", [*STRATEGIES])
def test_stages_without_balancing_can_be_probed(strategy: str) -> None:
    plain = stages_of(config_for(strategy))
    probed = stages_of(config_for(strategy, "turbotrain.balance.probe_every=10"))
    for before, after in zip(plain, probed, strict=True):
        if before.kind != FINETUNE:
            assert after == before
            continue
        assert after.balance is not None
        assert after.balance.probe_every == 10
        if before.balance is None:
            assert (after.balance.method, after.balance.schedule) == ("none", "never")
        else:
            assert after.balance.method == before.balance.method


def test_a_stage_of_one_agent_has_no_teacher() -> None:
    keys = (
        "model.args.fusion.core_method=disconet",
        "model.args.fusion.distill={teacher: a_run, weight: 1}",
    )
    config = config_for("manual", *keys)
    first, *_, last = stages_of(config)
    assert network_config(config, first).model.args.fusion.distill.teacher == ""
    assert network_config(config, last).model.args.fusion.distill.teacher == "a_run"
    check(network_config(config, first))
