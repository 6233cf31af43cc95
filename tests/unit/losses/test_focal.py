"""Focal loss: hand values, finiteness, derivatives, refusals."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from turbotrain_plugin.config import OccupancyHeadConfig
from turbotrain_plugin.losses import (
    PRINTED,
    STANDARD,
    FocalShape,
    focal_from_logits,
    occupancy_focal,
    occupancy_loss,
)
from turbotrain_plugin.structures import UserError

_LOGITS = torch.tensor([-3.0, -0.5, 0.0, 1.5, 4.0], dtype=torch.float64)
_POSITIVE = torch.tensor([True, False, True, False, True])


def _direct(logit: float, positive: bool, alpha: float, gamma: float) -> float:
    """Equation S1 written down literally in double precision."""
    probability = 1 / (1 + math.exp(-logit))
    towards_truth = probability if positive else 1 - probability
    return -alpha * math.pow(1 - towards_truth, gamma) * math.log(towards_truth)


@pytest.mark.parametrize(("shape", "alpha", "gamma"), [(PRINTED, 2.0, 0.25), (STANDARD, 0.25, 2.0)])
def test_presets_are_equation_s1(shape: FocalShape, alpha: float, gamma: float) -> None:
    expected = [
        _direct(float(z), bool(t), alpha, gamma) for z, t in zip(_LOGITS, _POSITIVE, strict=True)
    ]
    loss = focal_from_logits(_LOGITS, _POSITIVE, shape)
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_hand_value_at_even_odds() -> None:
    zero = torch.zeros(1)
    printed = focal_from_logits(zero, torch.tensor([True]), PRINTED)
    standard = focal_from_logits(zero, torch.tensor([False]), STANDARD)
    assert printed.item() == pytest.approx(2 * 0.5**0.25 * math.log(2))
    assert standard.item() == pytest.approx(0.25 * 0.25 * math.log(2))


def test_balanced_weighs_positives_by_alpha_and_negatives_by_the_rest() -> None:
    plain = focal_from_logits(_LOGITS, _POSITIVE, FocalShape(1.0, 2.0))
    balanced = focal_from_logits(_LOGITS, _POSITIVE, FocalShape(0.25, 2.0, alpha_balanced=True))
    weight = torch.where(_POSITIVE, 0.25, 0.75).double()
    torch.testing.assert_close(balanced, weight * plain)


def test_gamma_zero_is_cross_entropy() -> None:
    loss = focal_from_logits(_LOGITS, _POSITIVE, FocalShape(1.0, 0.0))
    expected = binary_cross_entropy_with_logits(_LOGITS, _POSITIVE.double(), reduction="none")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("shape", [PRINTED, STANDARD, FocalShape(0.25, 2.0, alpha_balanced=True)])
@pytest.mark.parametrize("positive", [True, False])
def test_values_and_gradients_are_finite_at_extreme_logits(
    shape: FocalShape, positive: bool
) -> None:
    logits = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0], requires_grad=True)
    loss = focal_from_logits(logits, torch.full((5,), positive), shape)
    torch.autograd.backward(loss.sum())
    assert torch.isfinite(loss).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    # The confidently wrong end keeps a gradient of full size towards the truth.
    wrong = 0 if positive else 4
    weight = shape.alpha if positive or not shape.alpha_balanced else 1 - shape.alpha
    assert logits.grad[wrong].item() == pytest.approx(-weight if positive else weight, rel=1e-3)


def _presets() -> list[str]:
    declared = {item.name: item for item in fields(OccupancyHeadConfig)}["focal"]
    return list(declared.metadata["choices"])


@pytest.mark.parametrize("focal", _presets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_preset_of_the_key_is_finite_at_logits_of_200(focal: str, dtype: torch.dtype) -> None:
    """As the pretrainer calls it: the mean over bins, in the precision of the autocast."""
    shape = occupancy_focal(OccupancyHeadConfig(focal=focal, alpha=2.0, gamma=0.25))
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], dtype=dtype, requires_grad=True)
    occupied = torch.tensor([[True, True], [False, False]])
    loss = occupancy_loss(logits, occupied, shape)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert loss.item() == pytest.approx(shape.alpha * 200 / 2, rel=1e-2)  # half of them wrong


def test_the_direct_form_would_fail_where_ours_does_not() -> None:
    logits = torch.tensor([20.0], requires_grad=True)
    probability = logits.sigmoid()
    direct = -2.0 * (1 - probability) ** 0.25 * probability.log()
    torch.autograd.backward(direct.sum())
    assert logits.grad is not None
    assert not torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", [PRINTED, STANDARD, FocalShape(0.25, 2.0, alpha_balanced=True)])
def test_gradcheck(shape: FocalShape) -> None:
    logits = _LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal_from_logits(z, _POSITIVE, shape), (logits,))


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits = _LOGITS.to(torch.bfloat16)
    loss = focal_from_logits(logits, _POSITIVE, PRINTED)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, focal_from_logits(logits.float(), _POSITIVE, PRINTED))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"same shape.*Found \(5,\) and \(4,\)"):
        focal_from_logits(_LOGITS, _POSITIVE[:4], PRINTED)


@pytest.mark.parametrize("alpha", [2.0, 1.0, 0.0, -0.5])
def test_balanced_alpha_outside_the_unit_interval_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        FocalShape(alpha, 2.0, alpha_balanced=True)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 2.0), (-1.0, 2.0), (0.25, -0.1)])
def test_impossible_constants_are_refused(alpha: float, gamma: float) -> None:
    with pytest.raises(ValueError, match="`alpha` must be positive and `gamma` not negative"):
        FocalShape(alpha, gamma)


def test_presets_of_the_configuration() -> None:
    assert occupancy_focal(OccupancyHeadConfig()) == PRINTED
    assert occupancy_focal(OccupancyHeadConfig(focal="standard", alpha=9.0)) == STANDARD
    custom = OccupancyHeadConfig(focal="custom", alpha=0.7, gamma=1.5, alpha_balanced=True)
    assert occupancy_focal(custom) == FocalShape(0.7, 1.5, alpha_balanced=True)


def test_printed_constants_cannot_be_balanced() -> None:
    with pytest.raises(UserError, match=r"turbotrain\.pretrain\.occ .*alpha_balanced: false"):
        occupancy_focal(OccupancyHeadConfig(alpha_balanced=True))
