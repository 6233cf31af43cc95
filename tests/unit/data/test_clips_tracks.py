"""Union of labels, look-up by id, and the filling of gaps."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data.tracks import centres_of, fill_gaps, hold_last, union_labels
from turbotrain_plugin.structures import AgentFrame


def labels(agent_id: int, objects: dict[int, float], raw_type: str = "Car") -> AgentFrame:
    """A frame whose object ``id`` has its centre at x = value, y = id."""
    boxes = np.zeros((len(objects), 7))
    boxes[:, 0], boxes[:, 1] = list(objects.values()), list(objects)
    return AgentFrame(
        agent_id=agent_id,
        is_infrastructure=agent_id < 0,
        frame=0,
        world_SE3_lidar=np.eye(4),
        object_ids=np.array(list(objects), np.int64),
        world_boxes=boxes,
        roll_pitch_rad=np.zeros((len(objects), 2)),
        raw_types=(raw_type,) * len(objects),
    )


def test_union_keeps_the_first_agents_box_and_order() -> None:
    union = union_labels(
        [labels(1, {30: 1.0, 10: 2.0}), labels(2, {10: 9.0, 20: 3.0}, "Bus"), labels(-1, {20: 8.0})]
    )
    assert union.object_ids.tolist() == [30, 10, 20]
    assert union.world_boxes[:, 0].tolist() == [1.0, 2.0, 3.0]
    assert union.raw_types == ("Car", "Car", "Bus")


def test_union_of_nothing() -> None:
    for frames in ([], [labels(1, {})]):
        union = union_labels(frames)
        assert union.object_ids.shape == (0,)
        assert union.world_boxes.shape == (0, 7)
        assert union.raw_types == ()


def test_centres_of_takes_the_most_trusted_agent() -> None:
    wanted = np.array([5, 7, 9, 1], np.int64)
    centres, found = centres_of(wanted, [labels(1, {7: 1.0}), labels(2, {5: 2.0, 7: 99.0, 3: 0.0})])
    assert found.tolist() == [True, True, False, False]
    assert centres.tolist() == [[2.0, 5.0, 0.0], [1.0, 7.0, 0.0], [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("frames", [[], [labels(1, {})]])
def test_centres_of_without_labels(frames: list[AgentFrame]) -> None:
    centres, found = centres_of(np.array([1, 2], np.int64), frames)
    assert not found.any()
    assert not centres.any()


def track(*values: float | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    valid = np.array([[value is not None for value in values]])
    filled = [0.0 if value is None else value for value in values]
    return np.array([[[value, -value] for value in filled]]), valid


def test_gap_of_one_step_is_bridged() -> None:
    positions, valid = fill_gaps(*track(0.0, 1.0, None, 5.0, None), 1)
    assert valid[0].tolist() == [True, True, True, True, False]
    assert positions[0, 2].tolist() == [3.0, -3.0]
    assert positions[0, 4].tolist() == [0.0, 0.0]


def test_longer_gap_needs_a_higher_limit() -> None:
    before = track(0.0, None, None, 9.0)
    _, valid = fill_gaps(*before, 1)
    assert valid[0].tolist() == [True, False, False, True]
    positions, valid = fill_gaps(*before, 2)
    assert valid.all()
    np.testing.assert_allclose(positions[0, :, 0], [0.0, 3.0, 6.0, 9.0])


def test_ends_are_never_bridged_and_inputs_stay() -> None:
    positions, valid = track(None, 2.0, None)
    kept = positions.copy(), valid.copy()
    filled, still = fill_gaps(positions, valid, 10)
    assert still.tolist() == valid.tolist()
    fill_gaps(*track(0.0, None, 1.0), 1)
    np.testing.assert_array_equal(positions, kept[0])
    np.testing.assert_array_equal(filled, kept[0])


def test_no_limit_means_no_filling() -> None:
    _, valid = fill_gaps(*track(0.0, None, 1.0), 0)
    assert valid[0].tolist() == [True, False, True]


def test_hold_stops_where_the_recording_does() -> None:
    positions, valid = track(None, 2.0, None, None)
    held, known = hold_last(positions, valid, np.array([True, True, True, False]))
    assert known[0].tolist() == [False, True, True, False]
    assert held[0, :, 0].tolist() == [0.0, 2.0, 2.0, 0.0]


def test_many_rows_are_independent() -> None:
    one, one_valid = track(0.0, None, 2.0, None)
    two, two_valid = track(None, None, 4.0, 5.0)
    positions, valid = fill_gaps(
        np.concatenate([one, two]), np.concatenate([one_valid, two_valid]), 1
    )
    assert valid.tolist() == [[True, True, True, False], [False, False, True, True]]
    assert positions[0, 1, 0] == 1.0
    assert positions[1, 0, 0] == 0.0
