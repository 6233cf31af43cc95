"""One draw must move everything in a sample alike."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.config import AugmentStep
from turbotrain_plugin.data.augment import Similarity, augment, draw
from turbotrain_plugin.geometry.boxes import bev_corners, points_in_boxes
from turbotrain_plugin.geometry.poses import is_rigid, pose_to_matrix
from turbotrain_plugin.structures import GroundTruth, MapSegments, Sample

FLIP_X = AugmentStep(NAME="random_world_flip", ALONG_AXIS_LIST=("x",))
FLIP_BOTH = AugmentStep(NAME="random_world_flip", ALONG_AXIS_LIST=("x", "y"))
ROTATE = AugmentStep(NAME="random_world_rotation")
SCALE = AugmentStep(NAME="random_world_scaling")

MIRROR_Y = Similarity(np.diag([1.0, -1.0]), 1.0)
MIRROR_X = Similarity(np.diag([-1.0, 1.0]), 1.0)


def turned(angle: float, scale: float = 1.0) -> Similarity:
    c, s = math.cos(angle), math.sin(angle)
    return Similarity(np.array([[c, -s], [s, c]]), scale)


MIXED = Similarity(turned(0.7).turn @ MIRROR_Y.turn, 1.04)
CHANGES = [MIRROR_Y, MIRROR_X, turned(0.5), turned(0.0, 0.95), MIXED]
NAMES = ["mirror_y", "mirror_x", "turn", "scale", "mixed"]

AGENT_POSES = (
    [(-4.0, 0.0, 0.0, 0.0, 2.0, 0.0), (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)],
    [(18.0, 9.0, 2.0, -2.9, 130.0, -1.6), (20.0, 8.0, 2.1, -3.0, 125.0, -1.0)],
)


def own_points(agent: int, step: int) -> NDArray[np.float64]:
    rng = np.random.default_rng([agent, step])
    return rng.uniform(-15, 15, size=(400, 3)) * (1, 1, 0.1)


def made_sample() -> Sample:
    """Two agents, two frames, five boxes that drive along their heading, one lane."""
    matrices = np.stack([[pose_to_matrix(p) for p in poses] for poses in AGENT_POSES])
    points = []
    for agent, row in enumerate(matrices):
        clouds = []
        for step, matrix in enumerate(row):
            xyz = own_points(agent, step) @ matrix[:3, :3].T + matrix[:3, 3]
            cloud = np.concatenate([xyz, np.full((len(xyz), 1), 0.25)], axis=1)
            clouds.append(cloud.astype(np.float32))
        points.append(clouds)
    yaws = np.array([0.0, 0.4, -1.2, 2.9, 1.5])
    boxes = np.zeros((5, 7))
    boxes[:, 0], boxes[:, 1] = [5, -7, 12, 0, 20], [3, -5, 8, -10, 4]
    boxes[:, 2], boxes[:, 3:6], boxes[:, 6] = -0.5, (9.0, 4.0, 5.0), yaws
    forward = np.stack([np.cos(yaws), np.sin(yaws)], axis=1)
    ahead = boxes[:, None, :2] + np.arange(1, 4)[None, :, None] * 4.0 * forward[:, None]
    behind = boxes[:, None, :2] - np.array([[[2.0], [0.0]]]) * forward[:, None]
    truth = GroundTruth(
        boxes=boxes.astype(np.float32),
        object_ids=np.arange(5),
        futures=ahead.astype(np.float32),
        future_valid=np.ones((5, 3), bool),
        past=behind.astype(np.float32),
        past_valid=np.ones((5, 2), bool),
        point_counts=np.arange(5),
    )
    return Sample(
        scene="s",
        frame=3,
        agent_ids=(1, -1),
        agent_types=np.array([0, 1]),
        frame_valid=np.ones((2, 2), bool),
        ego_SE3_agent=matrices.astype(np.float32),
        time_offset_s=np.zeros(2, np.float32),
        world_SE3_ego=pose_to_matrix((300.0, -80.0, 6.0, 1.0, 70.0, 2.0)),
        points=points,
        truth=truth,
        map=made_lane(),
    )


def made_lane() -> MapSegments:
    """A curved lane; its last three points are padding."""
    s = np.arange(7.0)
    xy = np.stack([3 + s, 0.1 * s**2], axis=1)
    previous = np.concatenate([xy[:1], xy[:-1]])
    direction = np.diff(xy, axis=0, prepend=xy[:1])
    direction[0] = direction[1]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = np.zeros((1, 10, 7), np.float32)
    points[0, :7] = np.concatenate([xy, direction, np.ones((7, 1)), previous], axis=1)
    return MapSegments(points, np.arange(10)[None] < 7)


def truth_of(sample: Sample) -> GroundTruth:
    assert sample.truth is not None
    return sample.truth


@pytest.fixture(params=CHANGES, ids=NAMES)
def change(request: pytest.FixtureRequest) -> Similarity:
    value = request.param
    assert isinstance(value, Similarity)
    return value


def test_points_stay_in_their_boxes(change: Similarity) -> None:
    before, after = made_sample(), augment(made_sample(), change)
    for a in range(2):
        for t in range(2):
            old = points_in_boxes(before.points[a][t], truth_of(before).boxes, margin_m=0.0)
            new = points_in_boxes(after.points[a][t], truth_of(after).boxes, margin_m=1e-4)
            assert (old >= 0).sum() > 3
            assert (new[old >= 0] == old[old >= 0]).all()
            assert ((old >= 0) == (new >= 0)).mean() > 0.999
            assert (after.points[a][t][:, 3] == 0.25).all()


def test_futures_and_past_stay_on_the_heading(change: Similarity) -> None:
    truth = truth_of(augment(made_sample(), change))
    heading = np.stack([np.cos(truth.boxes[:, 6]), np.sin(truth.boxes[:, 6])], axis=1)
    for step in range(3):
        expected = truth.boxes[:, :2] + 4.0 * (step + 1) * change.scale * heading
        np.testing.assert_allclose(truth.futures[:, step], expected, atol=1e-4)
    np.testing.assert_allclose(
        truth.past[:, 0], truth.boxes[:, :2] - 2.0 * change.scale * heading, atol=1e-4
    )
    np.testing.assert_allclose(truth.past[:, 1], truth.boxes[:, :2], atol=1e-5)


def test_boxes_are_the_moved_corners(change: Similarity) -> None:
    before, after = truth_of(made_sample()), truth_of(augment(made_sample(), change))
    moved = bev_corners(before.boxes.astype(np.float64)) @ (change.turn * change.scale).T
    found = bev_corners(after.boxes.astype(np.float64))
    for old, new in zip(moved, found, strict=True):
        distance = np.linalg.norm(old[:, None] - new[None], axis=-1)
        assert distance.min(axis=1).max() < 1e-4  # the same rectangle
    np.testing.assert_allclose(after.boxes[:, 2], -0.5 * change.scale, rtol=1e-6)
    np.testing.assert_allclose(after.boxes[:, 5], 5.0 * change.scale, rtol=1e-6)
    assert (np.abs(after.boxes[:, 6]) <= np.pi + 1e-6).all()
    np.testing.assert_array_equal(after.point_counts, before.point_counts)


def test_lane_points_follow_their_directions(change: Similarity) -> None:
    segments = augment(made_sample(), change).map
    assert segments is not None
    lane, padding = segments.points[0, :7], segments.points[0, 7:]
    assert not padding.any()
    np.testing.assert_allclose(lane[1:, 5:7], lane[:-1, :2], atol=1e-5)
    step = lane[1:, :2] - lane[:-1, :2]
    length = np.linalg.norm(step, axis=1, keepdims=True)
    np.testing.assert_allclose(lane[1:, 2:4], step / length, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(lane[:, 2:4], axis=1), 1.0, atol=1e-5)
    assert (lane[:, 4] == 1.0).all()


def test_agent_matrices_stay_rigid_and_move_augmented_points(change: Similarity) -> None:
    sample = augment(made_sample(), change)
    np.testing.assert_allclose(sample.ego_SE3_agent[0, -1], np.eye(4), atol=1e-6)
    for a in range(2):
        for t in range(2):
            matrix = sample.ego_SE3_agent[a, t].astype(np.float64)
            assert is_rigid(matrix)
            own = own_points(a, t) @ change.matrix()[:3, :3].T
            moved = own @ matrix[:3, :3].T + matrix[:3, 3]
            np.testing.assert_allclose(moved, sample.points[a][t][:, :3], atol=1e-3)


def test_world_matrix_still_leads_to_the_true_world(change: Similarity) -> None:
    before, after = made_sample(), augment(made_sample(), change)

    def to_world(sample: Sample) -> NDArray[np.float64]:
        xyz = sample.points[1][0][:, :3].astype(np.float64)
        world: NDArray[np.float64] = xyz @ sample.world_SE3_ego[:3, :3].T
        return world + sample.world_SE3_ego[:3, 3]

    np.testing.assert_allclose(to_world(after), to_world(before), atol=1e-4)


def test_the_input_is_left_alone() -> None:
    sample, untouched = made_sample(), made_sample()
    augment(sample, MIXED)
    np.testing.assert_array_equal(sample.points[1][0], untouched.points[1][0])
    np.testing.assert_array_equal(truth_of(sample).boxes, truth_of(untouched).boxes)
    assert sample.map is not None
    np.testing.assert_array_equal(sample.map.points, made_lane().points)


def test_sample_without_labels_and_map() -> None:
    sample = made_sample()
    sample.truth, sample.map = None, None
    moved = augment(sample, MIXED)
    assert moved.truth is None
    assert moved.map is None


def test_no_step_changes_nothing() -> None:
    sample = made_sample()
    change = draw((), np.random.default_rng(0))
    assert change.is_identity
    assert augment(sample, change) is sample


def test_flip_along_x_negates_y() -> None:
    found = {
        tuple(draw((FLIP_X,), np.random.default_rng(seed)).turn.diagonal()) for seed in range(20)
    }
    assert found == {(1.0, 1.0), (1.0, -1.0)}


def test_each_listed_axis_is_flipped_half_of_the_time() -> None:
    rng = np.random.default_rng(5)
    found = Counter(tuple(draw((FLIP_BOTH,), rng).turn.diagonal()) for _ in range(800))
    assert len(found) == 4
    assert min(found.values()) > 150


def test_rotation_and_scaling_fill_their_ranges() -> None:
    rng = np.random.default_rng(6)
    drawn = [draw((ROTATE, SCALE), rng) for _ in range(500)]
    angles = [math.atan2(change.turn[1, 0], change.turn[0, 0]) for change in drawn]
    scales = [change.scale for change in drawn]
    assert -0.786 < min(angles) < -0.75
    assert 0.75 < max(angles) < 0.786
    assert 0.95 <= min(scales) < 0.955
    assert 1.045 < max(scales) <= 1.05


def test_one_angle_means_both_signs() -> None:
    step = AugmentStep(NAME="random_world_rotation", WORLD_ROT_ANGLE=(0.3,))
    rng = np.random.default_rng(7)
    angles = [math.asin(draw((step,), rng).turn[1, 0]) for _ in range(200)]
    assert min(angles) < -0.2
    assert 0.2 < max(angles) <= 0.3


def test_quarter_turns_are_exact_and_equally_likely() -> None:
    rng = np.random.default_rng(9)
    step = AugmentStep(NAME="random_world_quarter_turn")
    drawn = [draw((step,), rng) for _ in range(800)]
    found = Counter(tuple(change.turn.ravel().tolist()) for change in drawn)
    turns = {
        (1.0, 0.0, 0.0, 1.0),
        (0.0, -1.0, 1.0, 0.0),
        (-1.0, 0.0, 0.0, -1.0),
        (0.0, 1.0, -1.0, 0.0),
    }
    assert set(found) == turns
    assert min(found.values()) > 150
    assert all(change.scale == 1.0 for change in drawn)


def test_steps_are_composed_in_order() -> None:
    rng = np.random.default_rng(8)
    both = draw((FLIP_X, ROTATE), rng)
    replay = np.random.default_rng(8)
    flip = draw((FLIP_X,), replay).turn
    turn = draw((ROTATE,), replay).turn
    np.testing.assert_array_equal(both.turn, turn @ flip)


def test_draw_is_repeatable() -> None:
    steps = (FLIP_BOTH, ROTATE, SCALE)
    one, two = (draw(steps, np.random.default_rng([1, 2])) for _ in range(2))
    np.testing.assert_array_equal(one.matrix(), two.matrix())
