"""What is logged of a step."""

from __future__ import annotations

import pytest
import torch

from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.engine.position import Position
from turbotrain_plugin.engine.step_lines import step_line, step_scalars
from turbotrain_plugin.engine.steps import StepResult

POSITION = Position(epoch=1, stage_step=7, global_step=19)


def balanced_once() -> GradientBalancer:
    """Return a balancer after one balanced step of two tasks that agree."""
    weight = torch.nn.Parameter(torch.ones(2))
    balancer = GradientBalancer(torch.optim.SGD([weight], lr=0.5), schedule="every_step")
    balancer.backward({"detection": weight.sum(), "prediction": 2 * weight.sum()})
    balancer.step()
    return balancer


@pytest.mark.filterwarnings("ignore::turbotrain_plugin.balancing.ScheduleWarning")
@pytest.mark.parametrize(
    ("seconds", "waited_s", "share"), [(0.5, 0.125, 0.25), (2.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_share_of_waiting(seconds: float, waited_s: float, share: float) -> None:
    line = step_line(
        "balance", POSITION, StepResult(), balanced_once(), seconds=seconds, waited_s=waited_s
    )
    assert line["data_wait"] == share
    assert (line["step"], line["stage_step"], line["epoch"]) == (19, 7, 1)
    assert line["lr"] == 0.5


@pytest.mark.filterwarnings("ignore::turbotrain_plugin.balancing.ScheduleWarning")
def test_a_balanced_step_has_its_cosine_among_the_scalars() -> None:
    balancer = balanced_once()
    result = StepResult({"detection": 1.0}, {"cls": 0.5}, record=balancer.last_record)
    line = step_line("balance", POSITION, result, balancer, seconds=1.0, waited_s=0.0)
    assert line["balanced"]
    assert line["cosine"] == pytest.approx(1.0)
    assert step_scalars(line, result) == {
        "balance/detection": 1.0,
        "balance/cls": 0.5,
        "balance/lr": 0.5,
        "balance/cosine": line["cosine"],
    }


def test_other_steps_have_none() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    balancer = GradientBalancer(torch.optim.SGD([weight], lr=0.5), schedule="never")
    result = StepResult({"detection": 1.0})
    line = step_line("balance", POSITION, result, balancer, seconds=1.0, waited_s=0.0)
    assert not line["balanced"]
    assert "balance/cosine" not in step_scalars(line, result)
