"""Detection and prediction losses: hand values, normalisation, empty targets, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from turbotrain_plugin.config import LossArgs
from turbotrain_plugin.losses import DetectionLoss, PredictionLoss, box_error, task_losses
from turbotrain_plugin.structures import Batch, Predictions, Targets, UserError, Voxels

_SHAPE = (2, 3, 4, 2)
_STEPS = 3


def _targets(positives: list[tuple[int, int, int, int]], seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(_SHAPE, dtype=torch.int8)
    index = torch.tensor(positives, dtype=torch.int64).reshape(-1, 4)
    labels[index.unbind(1)] = 1
    count = len(positives)
    return Targets(
        labels=labels,
        positive_index=index,
        box_codes=torch.randn(count, 7, generator=generator),
        trajectories=torch.randn(count, _STEPS, 2, generator=generator),
        trajectory_valid=torch.ones(count, _STEPS, dtype=torch.bool),
    )


def _predictions(seed: int = 1, dtype: torch.dtype = torch.float32) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return Predictions(made(*_SHAPE), made(*_SHAPE, 7), made(*_SHAPE, _STEPS, 2))


def _batch(targets: Targets | None) -> Batch:
    empty = Voxels(torch.zeros(0, 5, 4), torch.zeros(0, 4), torch.zeros(0), 2)
    return Batch(
        record_len=torch.ones(2, dtype=torch.int64),
        agent_types=torch.zeros(2, dtype=torch.int64),
        frame_valid=torch.ones(2, 1, dtype=torch.bool),
        time_offset_s=torch.zeros(2),
        ego_SE3_agent=torch.eye(4).expand(2, 1, 4, 4),
        voxels=empty,
        map=None,
        targets=targets,
        reconstruction=None,
        truth=[None, None],
        keys=[("a", 0, 1), ("b", 0, 1)],
    )


_POSITIVES = [(0, 1, 2, 0), (1, 0, 3, 1), (1, 2, 0, 0)]


# ---------------------------------------------------------------------------------------- detection


def _focal_by_hand(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def test_classification_is_the_hand_sum_over_all_anchors() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    expected = sum(
        _focal_by_hand(float(logit), bool(label == 1))
        for logit, label in zip(
            predictions.class_logits.detach().flatten(), targets.labels.flatten(), strict=True
        )
    )
    loss = DetectionLoss(LossArgs())(predictions, targets)["cls"]
    assert loss.item() == pytest.approx(expected / 3, rel=1e-5)


def test_anchors_between_thresholds_are_negatives_unless_ignored() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    as_negative = DetectionLoss(LossArgs())(predictions, targets)["cls"]
    targets.labels[0, 0, 0, 0] = -1
    still_negative = DetectionLoss(LossArgs())(predictions, targets)["cls"]
    ignored = DetectionLoss(LossArgs(ignore_band=True))(predictions, targets)["cls"]
    share = _focal_by_hand(predictions.class_logits[0, 0, 0, 0].item(), positive=False) / 3
    torch.testing.assert_close(still_negative, as_negative)
    assert ignored.item() == pytest.approx(as_negative.item() - share, rel=1e-5)


def test_an_ignored_anchor_gets_no_gradient() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    targets.labels[0, 0, 0, 0] = -1
    torch.autograd.backward(DetectionLoss(LossArgs(ignore_band=True))(predictions, targets)["cls"])
    gradient = predictions.class_logits.grad
    assert gradient is not None
    assert gradient[0, 0, 0, 0] == 0
    assert (gradient != 0).sum() == gradient.numel() - 1


def _smooth_l1_by_hand(error: float, beta: float = 1 / 9) -> float:
    return error**2 / (2 * beta) if abs(error) < beta else abs(error) - beta / 2


def test_regression_is_the_hand_sum_over_positives() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    expected = 0.0
    for row, index in enumerate(_POSITIVES):
        error = predictions.box_codes.detach()[index] - targets.box_codes[row]
        codes = [*error[:6].tolist(), math.sin(float(error[6]))]
        expected += sum(_smooth_l1_by_hand(code) for code in codes)
    loss = DetectionLoss(LossArgs())(predictions, targets)["reg"]
    assert loss.item() == pytest.approx(expected / 3, rel=1e-5)


def test_only_positive_anchors_get_a_box_gradient() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    torch.autograd.backward(DetectionLoss(LossArgs())(predictions, targets)["reg"])
    gradient = predictions.box_codes.grad
    assert gradient is not None
    touched = {tuple(row) for row in gradient.any(-1).nonzero().tolist()}
    assert touched == set(_POSITIVES)


def test_a_box_turned_by_half_a_turn_costs_nothing() -> None:
    target = torch.zeros(1, 7)
    turned = target.clone()
    turned[0, 6] = math.pi
    assert box_error(turned, target).abs().max() < 1e-6
    quarter = target.clone()
    quarter[0, 6] = math.pi / 2
    assert box_error(quarter, target)[0, 6] == 1


def test_sine_form_equals_the_difference_of_products() -> None:
    predicted, target = torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(3))
    products = (
        predicted[:, 6].sin() * target[:, 6].cos() - predicted[:, 6].cos() * target[:, 6].sin()
    )
    torch.testing.assert_close(box_error(predicted, target)[:, 6], products, atol=1e-6, rtol=1e-5)


def test_without_objects_the_losses_are_defined_and_keep_their_graph() -> None:
    predictions, targets = _predictions(), _targets([])
    losses = DetectionLoss(LossArgs())(predictions, targets)
    torch.autograd.backward(losses["reg"])
    assert losses["reg"] == 0
    assert predictions.box_codes.grad is not None
    assert not predictions.box_codes.grad.any()
    expected = sum(
        _focal_by_hand(float(z), False) for z in predictions.class_logits.detach().flatten()
    )
    assert losses["cls"].item() == pytest.approx(expected, rel=1e-5)


def test_detection_gradcheck() -> None:
    predictions, targets = _predictions(dtype=torch.float64), _targets(_POSITIVES)
    loss = DetectionLoss(LossArgs(smooth_l1_beta=1.0))

    def total(logits: Tensor, codes: Tensor) -> Tensor:
        return torch.stack(list(loss(Predictions(logits, codes, None), targets).values()))

    assert torch.autograd.gradcheck(total, (predictions.class_logits, predictions.box_codes))


def test_labels_of_another_grid_are_refused() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    targets.labels = targets.labels[:, :2]
    with pytest.raises(ValueError, match=r"Found \(2, 3, 4, 2\) and \(2, 2, 4, 2\)"):
        DetectionLoss(LossArgs())(predictions, targets)


@pytest.mark.parametrize(
    "args", [LossArgs(focal_alpha=2.0), LossArgs(focal_gamma=-1.0), LossArgs(focal_alpha=0.0)]
)
def test_impossible_focal_constants_are_a_user_error(args: LossArgs) -> None:
    with pytest.raises(UserError, match=r"loss\.args\.focal_alpha"):
        DetectionLoss(args)


def test_negative_beta_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"loss\.args\.smooth_l1_beta"):
        DetectionLoss(LossArgs(smooth_l1_beta=-0.1))


# --------------------------------------------------------------------------------------- prediction


def _straight(offsets: list[list[float]], valid: list[list[bool]]) -> tuple[Predictions, Targets]:
    """Predictions that miss the target of positive n at step k by offsets[n][k] along x."""
    positives = _POSITIVES[: len(offsets)]
    targets = _targets(positives)
    targets.trajectory_valid = torch.tensor(valid)
    predictions = _predictions()
    assert predictions.trajectories is not None
    trajectories = predictions.trajectories.detach().clone()
    for row, index in enumerate(positives):
        trajectories[index] = targets.trajectories[row]
        trajectories[index][:, 0] += torch.tensor(offsets[row])
    predictions.trajectories = trajectories.requires_grad_()
    return predictions, targets


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("l2", ((1 + 2 + 3) / 3 + 4.0) / 2),
        ("mse", ((1 + 4 + 9) / 3 + 16.0) / 2),
        ("smooth_l1", ((0.5 + 1.5 + 2.5) / 3 + 3.5) / 2),
    ],
)
def test_mean_over_valid_steps_then_over_objects_with_one(form: str, expected: float) -> None:
    predictions, targets = _straight(
        [[1.0, -2.0, 3.0], [4.0, 50.0, 60.0], [70.0, 80.0, 90.0]],
        [[True, True, True], [True, False, False], [False, False, False]],
    )
    loss = PredictionLoss(LossArgs(traj_loss=form))(predictions, targets)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_transition_of_smooth_l1() -> None:
    """Below it the square over twice the transition, above it the distance less half of it."""
    predictions, targets = _straight([[1.0, -4.0, 6.0]], [[True, True, True]])
    loss = PredictionLoss(LossArgs(traj_loss="smooth_l1", traj_beta_m=4.0))(predictions, targets)
    assert loss.item() == pytest.approx((1 / 8 + 2 + 4) / 3, rel=1e-5)


def test_distance_is_euclidean() -> None:
    predictions, targets = _straight([[0.0, 0.0, 0.0]], [[False, True, False]])
    assert predictions.trajectories is not None
    moved = predictions.trajectories.detach().clone()
    moved[_POSITIVES[0]][1] += torch.tensor([3.0, 4.0])
    predictions.trajectories = moved
    assert PredictionLoss(LossArgs())(predictions, targets).item() == pytest.approx(5.0, rel=1e-5)


def test_decay_weighs_later_steps_less() -> None:
    predictions, targets = _straight([[1.0, 2.0, 4.0]], [[True, True, True]])
    loss = PredictionLoss(LossArgs(traj_decay=0.5))(predictions, targets)
    assert loss.item() == pytest.approx((1 + 0.5 * 2 + 0.25 * 4) / 1.75, rel=1e-5)


def test_moving_objects_weigh_what_the_key_says() -> None:
    """Two anchors, 1 m and 3 m off; the second one's object drives 9 m, the first one's 1.9 m."""
    predictions, targets = _straight([[1.0] * 3, [3.0] * 3], [[True] * 3] * 2)
    assert predictions.trajectories is not None
    moved = predictions.trajectories.detach().clone()
    for row, end in enumerate((1.9, 9.0)):
        way = torch.tensor([[0.0, 0.0], [end / 2, 0.0], [end, 0.0]]) - targets.trajectories[row]
        targets.trajectories[row] += way
        moved[_POSITIVES[row]] += way
    predictions.trajectories = moved
    plain = PredictionLoss(LossArgs())(predictions, targets)
    weighted = PredictionLoss(LossArgs(moving_weight=4.0))(predictions, targets)
    assert plain.item() == pytest.approx((1 + 3) / 2, rel=1e-5)
    assert weighted.item() == pytest.approx((1 + 4 * 3) / 5, rel=1e-5)
    # What is not valid makes nobody move, and nobody without a valid step weighs anything.
    targets.trajectory_valid[1] = torch.tensor([True, False, False])
    still = PredictionLoss(LossArgs(moving_weight=4.0))(predictions, targets)
    assert still.item() == pytest.approx((1 + 3) / 2, rel=1e-5)
    targets.trajectory_valid[1] = False
    alone = PredictionLoss(LossArgs(moving_weight=4.0))(predictions, targets)
    assert alone.item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("form", ["l2", "mse", "smooth_l1"])
def test_a_perfect_prediction_has_zero_loss_and_a_finite_gradient(form: str) -> None:
    predictions, targets = _straight([[0.0, 0.0, 0.0]], [[True, True, False]])
    loss = PredictionLoss(LossArgs(traj_loss=form))(predictions, targets)
    torch.autograd.backward(loss)
    assert loss == 0
    assert predictions.trajectories is not None
    assert predictions.trajectories.grad is not None
    assert torch.isfinite(predictions.trajectories.grad).all()


@pytest.mark.parametrize("form", ["l2", "mse", "smooth_l1"])
def test_targets_of_invalid_steps_are_never_read(form: str) -> None:
    predictions, targets = _straight([[1.0, 1.0, 1.0]], [[True, True, False]])
    targets.trajectories[0, 2] = math.nan
    loss = PredictionLoss(LossArgs(traj_loss=form))(predictions, targets)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert predictions.trajectories is not None
    assert predictions.trajectories.grad is not None
    assert torch.isfinite(predictions.trajectories.grad).all()


@pytest.mark.parametrize("positives", [[], _POSITIVES])
def test_without_a_valid_step_the_loss_is_zero_and_keeps_its_graph(
    positives: list[tuple[int, int, int, int]],
) -> None:
    predictions, targets = _predictions(), _targets(positives)
    targets.trajectory_valid[:] = False
    loss = PredictionLoss(LossArgs())(predictions, targets)
    torch.autograd.backward(loss)
    assert loss == 0
    assert predictions.trajectories is not None
    assert predictions.trajectories.grad is not None
    assert not predictions.trajectories.grad.any()


@pytest.mark.parametrize("form", ["l2", "mse", "smooth_l1"])
def test_prediction_gradcheck(form: str) -> None:
    predictions, targets = _predictions(dtype=torch.float64), _targets(_POSITIVES)
    targets.trajectory_valid[1, 1:] = False
    loss = PredictionLoss(LossArgs(traj_loss=form, traj_decay=0.9))
    assert predictions.trajectories is not None

    def of(trajectories: Tensor) -> Tensor:
        return loss(
            Predictions(predictions.class_logits, predictions.box_codes, trajectories), targets
        )

    assert torch.autograd.gradcheck(of, (predictions.trajectories,))


def test_missing_trajectories_are_refused() -> None:
    predictions = _predictions()
    predictions.trajectories = None
    with pytest.raises(ValueError, match=r"predictions\.trajectories"):
        PredictionLoss(LossArgs())(predictions, _targets(_POSITIVES))


def test_another_number_of_steps_is_refused() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    targets.trajectories = targets.trajectories[:, :2]
    with pytest.raises(ValueError, match=r"the same steps.*\(3, 3, 2\) and \(3, 2, 2\)"):
        PredictionLoss(LossArgs())(predictions, targets)


@pytest.mark.parametrize("key", ["traj_beta_m", "traj_decay", "moving_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_keys_of_the_trajectory_loss_must_be_positive(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"loss\.args\.{key} must be positive"):
        PredictionLoss(LossArgs(**{key: value}))  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- tasks


def test_tasks_weigh_and_group_the_parts() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    predictions.auxiliary_losses = {"flow": torch.tensor(0.5)}
    args = LossArgs(cls_weight=3.0, reg_weight=5.0, prediction_weight=7.0)
    losses = task_losses(predictions, _batch(targets), args)
    detection = DetectionLoss(args)(predictions, targets)
    traj = PredictionLoss(args)(predictions, targets)
    assert list(losses.tasks) == ["detection", "prediction"]
    torch.testing.assert_close(
        losses.tasks["detection"], 3 * detection["cls"] + 5 * detection["reg"] + 0.5
    )
    torch.testing.assert_close(losses.tasks["prediction"], 7 * traj)
    assert set(losses.parts) == {"cls", "reg", "flow", "traj"}
    assert not any(part.requires_grad for part in losses.parts.values())
    torch.testing.assert_close(losses.parts["cls"], detection["cls"].detach())


def test_default_weights_are_one_two_one() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    losses = task_losses(predictions, _batch(targets), LossArgs())
    parts = losses.parts
    torch.testing.assert_close(losses.total(), parts["cls"] + 2 * parts["reg"] + parts["traj"])


def test_no_prediction_task_without_trajectories() -> None:
    predictions = _predictions()
    predictions.trajectories = None
    losses = task_losses(predictions, _batch(_targets(_POSITIVES)), LossArgs())
    assert list(losses.tasks) == ["detection"]


def test_an_unlabelled_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`batch\.targets` must be given"):
        task_losses(_predictions(), _batch(None), LossArgs())


def test_losses_are_float32_under_autocast() -> None:
    predictions, targets = _predictions(), _targets(_POSITIVES)
    assert predictions.trajectories is not None
    half = Predictions(
        predictions.class_logits.bfloat16(),
        predictions.box_codes.bfloat16(),
        predictions.trajectories.bfloat16(),
    )
    single = Predictions(
        half.class_logits.float(), half.box_codes.float(), predictions.trajectories.bfloat16()
    )
    assert half.trajectories is not None
    single.trajectories = half.trajectories.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = task_losses(half, _batch(targets), LossArgs())
    expected = task_losses(single, _batch(targets), LossArgs())
    for name, loss in losses.tasks.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected.tasks[name])
