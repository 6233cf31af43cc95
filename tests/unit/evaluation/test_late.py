"""Late fusion: duplicates, trajectories, messages, and objects that only a neighbour sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from turbotrain_plugin.config import Postprocess
from turbotrain_plugin.evaluation import join_objects
from turbotrain_plugin.structures import DetectedObjects

KEYS = Postprocess()
STEPS = 3


def found(*objects: tuple[float, float, float], paths: bool = True) -> DetectedObjects:
    """Return cars at (x, y) with a score, each with a trajectory that tells its score."""
    boxes = np.array([[x, y, -1, 4, 2, 1.5, 0] for x, y, _ in objects], np.float32).reshape(-1, 7)
    scores = np.array([score for *_, score in objects], np.float32)
    own = np.tile(scores[:, None, None], (1, STEPS, 2)) if paths else None
    return DetectedObjects(boxes, scores, own)


def joined(
    agents: Sequence[DetectedObjects], rows: Sequence[int]
) -> tuple[list[DetectedObjects], int]:
    return join_objects(agents, torch.tensor(rows), KEYS)


def test_of_duplicates_the_best_score_stays_with_its_trajectory() -> None:
    ego = found((10, 0, 0.9), (20, 5, 0.4))
    neighbour = found((10.3, 0.1, 0.7), (20.2, 5, 0.8))
    (objects,), _ = joined([ego, neighbour], [2])
    assert objects.scores.tolist() == pytest.approx([0.9, 0.8])
    np.testing.assert_allclose(objects.boxes[:, 0], [10, 20.2], rtol=1e-6)
    assert objects.trajectories is not None
    np.testing.assert_allclose(objects.trajectories[:, 0, 0], [0.9, 0.8], rtol=1e-6)


def test_what_one_agent_alone_sees_stays() -> None:
    (objects,), _ = joined([found((10, 0, 0.5)), found((10, 8, 0.9)), found((-9, 3, 0.7))], [3])
    assert objects.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    np.testing.assert_allclose(objects.boxes[:, :2], [[10, 8], [-9, 3], [10, 0]])


def test_the_order_of_neighbours_does_not_matter() -> None:
    agents = [found((10, 0, 0.5)), found((10.2, 0, 0.9), (4, 9, 0.3)), found((4.1, 9, 0.6))]
    (one,), _ = joined(agents, [3])
    (other,), _ = joined([agents[0], agents[2], agents[1]], [3])
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_samples_do_not_mix() -> None:
    same = found((10, 0, 0.5))
    objects, _ = joined([same, same, same], [1, 2])
    assert [len(sample.boxes) for sample in objects] == [1, 1]


def test_a_neighbours_box_of_the_ego_is_dropped_and_the_egos_own_is_not() -> None:
    at_origin = found((0.5, 0.3, 0.9))
    (objects,), _ = joined([found((10, 0, 0.5)), at_origin], [2])
    assert objects.scores.tolist() == pytest.approx([0.5])
    (objects,), _ = joined([at_origin], [1])
    assert len(objects.boxes) == 1


def test_a_message_is_the_objects_of_the_busiest_neighbour() -> None:
    """A box and a score are 8 numbers, three steps of x and y 6 more; the ego sends nothing."""
    ego, one, two = found(*[(9 * k, 9, 0.5) for k in range(5)]), found((0, 0, 0.9)), found()
    assert joined([ego, one, two], [3])[1] == (8 + 6) * 4
    assert joined([ego, two, two], [3])[1] == 0
    assert joined([ego], [1])[1] == 0
    pair = found((5, 0, 0.9), (9, 9, 0.8), paths=False)
    assert joined([found(paths=False), pair], [2])[1] == 2 * 8 * 4


def test_without_trajectories_there_are_none() -> None:
    (objects,), _ = joined([found((1, 9, 0.5), paths=False), found((9, 9, 0.6), paths=False)], [2])
    assert objects.trajectories is None
    assert len(objects.boxes) == 2


def test_nobody_finds_anything() -> None:
    (objects,), size = joined([found(), found()], [2])
    assert objects.boxes.shape == (0, 7)
    assert objects.trajectories is not None
    assert objects.trajectories.shape == (0, STEPS, 2)
    assert size == 0


@pytest.mark.parametrize("rows", [[1], [3], [0, 2]])
def test_rows_must_fit(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="`rows` must be positive and sum to the 2 agents"):
        joined([found(), found()], rows)
