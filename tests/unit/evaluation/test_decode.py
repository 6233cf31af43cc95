from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from turbotrain_plugin.config import Postprocess, TargetArgs
from turbotrain_plugin.evaluation import decode
from turbotrain_plugin.geometry.anchors import encode_boxes, make_anchors
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.structures import DetectedObjects, Predictions, move_tensors

GRID = BevGrid((-32.0, -16.0, -5.0, 32.0, 16.0, 3.0), (0.4, 0.4, 8.0), 2)
ANCHORS = torch.from_numpy(
    make_anchors(GRID, length=3.9, width=1.6, height=1.56, z=-1.0, yaws_rad=(0.0, math.pi / 2))
)
STEPS = 3
SILENT = -20.0


def empty(samples: int = 1) -> Predictions:
    shape = (samples, GRID.height, GRID.width, 2)
    return Predictions(
        class_logits=torch.full(shape, SILENT),
        box_codes=torch.zeros(*shape, 7),
        trajectories=torch.zeros(*shape, STEPS, 2),
    )


def place(
    predictions: Predictions,
    box: tuple[float, ...],
    score: float,
    *,
    cell: tuple[int, int, int] = (20, 40, 0),
    sample: int = 0,
    offset: float = 0.0,
) -> None:
    """Make one anchor claim a box, wherever the anchor stands."""
    anchor = ANCHORS[cell].numpy()[None].astype(np.float64)
    codes = encode_boxes(np.asarray([box], dtype=np.float64), anchor)[0]
    where = (sample, *cell)
    predictions.class_logits[where] = math.log(score / (1 - score))
    predictions.box_codes[where] = torch.from_numpy(np.asarray(codes, dtype=np.float32))
    assert predictions.trajectories is not None
    predictions.trajectories[where] = offset * torch.arange(1, STEPS + 1)[:, None]


def run(
    predictions: Predictions,
    range_m: tuple[float, ...] = GRID.range_m,
    score_threshold: float = 0.2,
    **post: Any,  # noqa: ANN401
) -> list[DetectedObjects]:
    postprocess = replace(
        Postprocess(target_args=TargetArgs(score_threshold=score_threshold)), **post
    )
    return decode(predictions, ANCHORS, postprocess=postprocess, range_m=range_m)


CAR = (3.0, -2.0, -0.8, 4.4, 1.9, 1.5, 0.4)


def test_box_score_and_trajectory_come_back() -> None:
    predictions = empty()
    place(predictions, CAR, 0.7, offset=1.5)
    (found,) = run(predictions)
    np.testing.assert_allclose(found.boxes, [CAR], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.7], atol=1e-6)
    assert found.trajectories is not None
    steps = 1.5 * np.arange(1, STEPS + 1)
    np.testing.assert_allclose(
        found.trajectories, [np.stack([3.0 + steps, -2.0 + steps], axis=1)], atol=1e-4
    )


def test_results_are_float32_numpy() -> None:
    predictions = empty(2)
    place(predictions, CAR, 0.7, sample=1)
    for found in run(predictions):
        assert found.trajectories is not None
        for array in (found.boxes, found.scores, found.trajectories):
            assert isinstance(array, np.ndarray)
            assert array.dtype == np.float32


def test_samples_are_apart() -> None:
    predictions = empty(3)
    place(predictions, CAR, 0.7, sample=0)
    place(predictions, CAR, 0.6, sample=2)
    assert [len(found.scores) for found in run(predictions)] == [1, 0, 1]


def test_silence_gives_empty_arrays_of_the_right_shape() -> None:
    (found,) = run(empty())
    assert found.boxes.shape == (0, 7)
    assert found.scores.shape == (0,)
    assert found.trajectories is not None
    assert found.trajectories.shape == (0, STEPS, 2)


def test_without_prediction_head_there_are_no_trajectories() -> None:
    predictions = empty()
    place(predictions, CAR, 0.7)
    (found,) = run(replace(predictions, trajectories=None))
    assert found.trajectories is None
    assert len(found.boxes) == 1


def test_score_must_exceed_the_threshold() -> None:
    predictions = empty()
    place(predictions, CAR, 0.5)  # logit 0: exactly 0.5
    assert len(run(predictions, score_threshold=0.5)[0].scores) == 0
    assert len(run(predictions, score_threshold=0.49)[0].scores) == 1


def test_scores_fall_and_trajectories_follow() -> None:
    predictions = empty()
    for index, score in enumerate((0.5, 0.9, 0.3, 0.7)):
        box = (10.0 * index - 15, 0.0, -1.0, 4.0, 1.8, 1.5, 0.0)
        place(predictions, box, score, cell=(20, 5 + 20 * index, 0), offset=float(index))
    (found,) = run(predictions)
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.5, 0.3], atol=1e-6)
    assert found.trajectories is not None
    moved = found.trajectories[:, 0, 0] - found.boxes[:, 0]
    np.testing.assert_allclose(moved, [1, 3, 0, 2], atol=1e-5)


def test_lower_score_is_suppressed_with_its_trajectory() -> None:
    predictions = empty()
    place(predictions, CAR, 0.6, cell=(20, 40, 0), offset=9.0)
    place(predictions, CAR, 0.8, cell=(20, 41, 0), offset=1.0)
    place(predictions, (-15.0, *CAR[1:]), 0.5, cell=(20, 10, 0), offset=3.0)
    (found,) = run(predictions)
    np.testing.assert_allclose(found.scores, [0.8, 0.5], atol=1e-6)
    assert found.trajectories is not None
    moved = found.trajectories[:, 0, 0] - found.boxes[:, 0]
    np.testing.assert_allclose(moved, [1.0, 3.0], atol=1e-5)


def test_suppression_is_rotated() -> None:
    # Two parallel cars at 45 degrees, 2.5 m apart: their hulls overlap, they do not.
    side = 2.5 / math.sqrt(2)
    predictions = empty()
    place(predictions, (0, 0, -1, 4.5, 2, 1.5, math.pi / 4), 0.8, cell=(20, 40, 0))
    place(predictions, (side, -side, -1, 4.5, 2, 1.5, math.pi / 4), 0.7, cell=(22, 40, 1))
    assert len(run(predictions)[0].scores) == 2


def test_long_boxes_are_dropped_along_the_axes_and_suppress_nobody() -> None:
    predictions = empty()
    place(predictions, (0, 0, -1, 7.0, 2.5, 3, 0.0), 0.9, cell=(20, 40, 0))
    place(predictions, (0.2, 0, -1, 4.5, 2, 1.5, 0.0), 0.6, cell=(20, 41, 0))
    (found,) = run(predictions, max_box_extent=6.0)
    np.testing.assert_allclose(found.boxes[:, 3], [4.5], atol=1e-4)
    (found,) = run(predictions, max_box_extent=0.0)
    np.testing.assert_allclose(found.boxes[:, 3], [7.0], atol=1e-4)


def test_extent_is_that_of_the_turned_box() -> None:
    # 7 m long, 1 m wide at 45 degrees: extents of 8 / sqrt(2) = 5.66 m.
    predictions = empty()
    place(predictions, (0.0, 0.0, -1.0, 7.0, 1.0, 3.0, math.pi / 4), 0.9)
    assert len(run(predictions, max_box_extent=6.0)[0].scores) == 1
    assert len(run(predictions, max_box_extent=5.6)[0].scores) == 0


def test_all_corners_must_lie_in_the_range() -> None:
    limits = (-10.0, -10.0, -5.0, 10.0, 10.0, 3.0)
    for x, kept in ((7.9, 1), (8.1, 0), (-7.9, 1), (-8.1, 0)):
        predictions = empty()
        place(predictions, (x, 0, -1, 4.0, 2, 1.5, 0.0), 0.9)
        assert len(run(predictions, limits)[0].scores) == kept


def test_height_is_not_tested() -> None:
    predictions = empty()
    place(predictions, (0, 0, 30.0, 4.0, 2, 1.5, 0.0), 0.9)
    assert len(run(predictions)[0].scores) == 1


def test_box_outside_the_range_still_suppresses() -> None:
    """The range is cut last, as in OpenCOOD."""
    predictions = empty()
    place(predictions, (8.2, 0, -1, 4.0, 2, 1.5, 0.0), 0.9, cell=(20, 40, 0))
    place(predictions, (7.8, 0, -1, 4.0, 2, 1.5, 0.0), 0.8, cell=(20, 41, 0))
    assert len(run(predictions, (-10.0, -10.0, -5.0, 10.0, 10.0, 3.0))[0].scores) == 0


def test_only_the_best_candidates_enter() -> None:
    predictions = empty()
    for index in range(6):
        box = (9.0 * index - 22, 0.0, -1.0, 4.0, 1.8, 1.5, 0.0)
        place(predictions, box, 0.3 + 0.1 * index, cell=(20, 10 * index, 0))
    (found,) = run(predictions, nms_candidates=2)
    np.testing.assert_allclose(found.scores, [0.8, 0.7], atol=1e-6)


def test_long_boxes_use_up_candidates() -> None:
    """Candidates are counted before anything is decoded, so that decoding stays bounded."""
    predictions = empty()
    place(predictions, (0, 0, -1, 9.0, 2, 1.5, 0.0), 0.9, cell=(20, 40, 0))
    place(predictions, (0, 9, -1, 4.0, 2, 1.5, 0.0), 0.8, cell=(20, 41, 0))
    assert len(run(predictions, nms_candidates=1)[0].scores) == 0
    assert len(run(predictions, nms_candidates=2)[0].scores) == 1


def test_equal_scores_keep_the_order_of_the_anchors() -> None:
    predictions = empty()
    for column in (60, 20, 40):
        place(predictions, (float(column - 40), 0, -1, 4, 1.8, 1.5, 0.0), 0.5, cell=(20, column, 0))
    (found,) = run(predictions)
    np.testing.assert_allclose(found.boxes[:, 0], [-20, 0, 20], atol=1e-4)


def test_an_untrained_network_claiming_everything_is_bounded() -> None:
    predictions = empty()
    predictions.class_logits.copy_(
        torch.rand(predictions.class_logits.shape, generator=torch.Generator().manual_seed(0))
    )
    (found,) = run(predictions, nms_candidates=200)
    assert 10 < len(found.scores) <= 200


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_lifted_first(dtype: torch.dtype) -> None:
    predictions = empty()
    place(predictions, CAR, 0.7, offset=1.0)
    assert predictions.trajectories is not None
    half = Predictions(
        class_logits=predictions.class_logits.to(dtype),
        box_codes=predictions.box_codes.to(dtype),
        trajectories=predictions.trajectories.to(dtype),
    )
    (found,) = run(half)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.boxes, [CAR], atol=0.15)
    # The score is the float32 sigmoid of the rounded logit, not a rounded sigmoid.
    expected = torch.sigmoid(half.class_logits[0, 20, 40, 0].float())
    assert found.scores[0] == expected.numpy()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same() -> None:
    predictions = empty()
    for index in range(6):
        box = (9.0 * index - 22, 0.0, -1.0, 4.0, 1.8, 1.5, 0.1 * index)
        place(predictions, box, 0.3 + 0.1 * index, cell=(20, 10 * index, 0), offset=1.0)
    there = decode(
        move_tensors(predictions, torch.device("cuda")),
        ANCHORS.cuda(),
        postprocess=Postprocess(),
        range_m=GRID.range_m,
    )
    for name in ("boxes", "scores", "trajectories"):
        np.testing.assert_allclose(
            getattr(there[0], name), getattr(run(predictions)[0], name), rtol=1e-6
        )


def test_gradients_do_not_leak() -> None:
    predictions = empty()
    place(predictions, CAR, 0.7)
    for tensor in (predictions.class_logits, predictions.box_codes):
        tensor.requires_grad_(True)
    assert len(run(predictions)[0].scores) == 1


def _nan_logits(predictions: Predictions) -> Tensor:
    return predictions.class_logits


def _nan_codes(predictions: Predictions) -> Tensor:
    return predictions.box_codes


def _nan_paths(predictions: Predictions) -> Tensor:
    assert predictions.trajectories is not None
    return predictions.trajectories


@pytest.mark.parametrize("part", [_nan_logits, _nan_codes, _nan_paths])
def test_divergence_is_said_not_hidden(part: object) -> None:
    predictions = empty()
    place(predictions, CAR, 0.7)
    assert callable(part)
    part(predictions)[0, 20, 40, 0] = math.nan
    with pytest.raises(ValueError, match="the network has diverged"):
        run(predictions)


def test_shapes_must_fit_the_anchors() -> None:
    predictions = empty()
    with pytest.raises(ValueError, match="`predictions` must fit the anchors"):
        run(replace(predictions, class_logits=predictions.class_logits[:, 1:]))
    with pytest.raises(ValueError, match="`predictions` must fit the anchors"):
        run(replace(predictions, box_codes=predictions.box_codes[..., :6]))
    assert predictions.trajectories is not None
    with pytest.raises(ValueError, match=r"`predictions\.trajectories` must have shape"):
        run(replace(predictions, trajectories=predictions.trajectories[..., 0]))
