from __future__ import annotations

import json
import math

import pytest
import torch

from turbotrain_plugin.balancing import BalanceRecord, BalanceWindow
from turbotrain_plugin.balancing.records import Decision


def decision(a: float, b: float, c: float) -> Decision:
    gramian = torch.tensor([[a, c], [c, b]], dtype=torch.float64)
    return Decision(("det", "pred"), gramian, {"det": 1.5, "pred": 3.0})


def test_record_of_a_conflict() -> None:
    record = decision(4.0, 1.0, -1.0).record(7)
    assert record == BalanceRecord(
        step=7,
        balanced=True,
        cosine={"det/pred": -0.5},
        conflict={"det/pred": True},
        norms={"det": 2.0, "pred": 1.0},
        weights={"det": 1.5, "pred": 3.0},
    )


def test_records_are_plain_enough_for_json() -> None:
    record = decision(4.0, 1.0, 1.0).record(0)
    text = json.dumps([record.cosine, record.conflict, record.norms, record.weights])
    assert json.loads(text)[0] == {"det/pred": 0.5}


def test_a_zero_gradient_has_a_norm_but_no_pair() -> None:
    record = decision(4.0, 0.0, 0.0).record(0)
    assert record.norms == {"det": 2.0, "pred": 0.0}
    assert record.cosine == {}
    assert record.conflict == {}


def test_cosine_of_tiny_gradients() -> None:
    record = decision(1e-300, 1e-300, -0.5e-300).record(0)
    assert record.cosine["det/pred"] == pytest.approx(-0.5)


def test_three_tasks_have_three_pairs() -> None:
    gramian = torch.eye(3, dtype=torch.float64)
    record = Decision(("a", "b", "c"), gramian, {}).record(0)
    assert list(record.cosine) == ["a/b", "a/c", "b/c"]


def test_window_pools_and_starts_anew_with_a_cycle() -> None:
    window = BalanceWindow()
    window.add(0, decision(4.0, 1.0, -1.0))
    window.add(0, decision(1.0, 1.0, 0.5))
    window.add(0, decision(1.0, 4.0, 1.0))
    assert window.steps == 3
    assert window.conflict_rate == {"det/pred": pytest.approx(1 / 3)}
    assert window.pooled_cosine == {"det/pred": pytest.approx(0.5 / math.sqrt(6.0 * 6.0))}
    window.add(1, decision(1.0, 1.0, -0.25))
    assert window.steps == 1
    assert window.conflict_rate == {"det/pred": 1.0}
    assert window.pooled_cosine == {"det/pred": pytest.approx(-0.25)}


def test_window_skips_pairs_without_a_gradient() -> None:
    window = BalanceWindow()
    window.add(0, decision(4.0, 0.0, 0.0))
    assert window.steps == 1
    assert window.conflict_rate == {}
    window.add(0, decision(4.0, 1.0, -2.0))
    assert window.conflict_rate == {"det/pred": 1.0}


def test_window_state_goes_round() -> None:
    window = BalanceWindow()
    window.add(2, decision(4.0, 1.0, -1.0))
    again = BalanceWindow.from_state_dict(json.loads(json.dumps(window.state_dict())))
    assert again == window
    again.add(2, decision(1.0, 1.0, 0.5))
    assert window.steps == 1
