"""Strategies are lists of stages; the choices of the key and the table are the same."""

from __future__ import annotations

import dataclasses

import pytest

from turbotrain_plugin.config import TurboTrainBlock, load_hypes
from turbotrain_plugin.engine.stages import FINETUNE, PRETRAIN, STRATEGIES, stages_of


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
        ("one_time", [("one_time", FINETUNE, False, None)]),
    ],
)
def test_stages(strategy: str, expected: list[tuple[str, str, bool, str | None]]) -> None:
    config = load_hypes("turbotrain_v2xpnp.yaml", [f"turbotrain.strategy={strategy}"])
    stages = stages_of(config)
    assert [(s.name, s.kind, s.balanced, s.starts_from) for s in stages] == expected


def test_stages_carry_their_own_optimiser() -> None:
    pretrain, balance = stages_of(load_hypes("turbotrain_v2xpnp.yaml"))
    assert (pretrain.optimizer.core_method, pretrain.epoches) == ("AdamW", 15)
    assert (balance.optimizer.core_method, balance.epoches) == ("Adam", 20)
