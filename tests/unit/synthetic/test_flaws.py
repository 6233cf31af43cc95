"""Each flaw of the labels does what it says and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.recordings import Recording, rotation
from turbotrain_plugin.synthetic import PRESETS, LabelNoise, generate
from turbotrain_plugin.synthetic.flaws import FlawedLabels, flaw_labels, flaw_points
from turbotrain_plugin.synthetic.objects import Placement, SceneObjects, rotations

T, N = 60, 400


@pytest.fixture(scope="module")
def objects() -> SceneObjects:
    """Half stand, half move along +y at 5 m/s; every fourth is a pedestrian."""
    moving = np.arange(N) % 2 == 1
    t = np.arange(T)[:, None] * 0.1
    xy = np.stack([np.zeros((T, N)), 5.0 * t * moving], axis=-1)
    return SceneObjects(
        ids=np.arange(1, N + 1),
        types=tuple("Pedestrian" if i % 4 == 3 else "Car" for i in range(N)),
        half_sizes=np.ones((N, 3)),
        xy=xy,
        yaw=np.full((T, N), np.pi / 2),
        speed=np.broadcast_to(5.0 * moving, (T, N)).copy(),
        present=np.ones((T, N), np.bool_),
    )


@pytest.fixture(scope="module")
def placement(objects: SceneObjects) -> Placement:
    centres = np.concatenate([objects.xy, np.ones((T, N, 1))], axis=-1)
    angles = np.broadcast_to([0.02, 0.05, np.pi / 2], (T, N, 3)).copy()
    return Placement(centres, angles)


def flawed(objects: SceneObjects, placement: Placement, noise: LabelNoise) -> FlawedLabels:
    return flaw_labels(objects, placement, noise, np.random.default_rng(0))


def test_none_by_default(objects: SceneObjects, placement: Placement) -> None:
    labels = flawed(objects, placement, LabelNoise())
    np.testing.assert_array_equal(labels.centres, placement.centres)
    np.testing.assert_array_equal(labels.angles, placement.angles)
    np.testing.assert_array_equal(labels.second_ids, objects.ids)
    assert not labels.hidden.any()
    for preset in PRESETS.values():
        assert preset.noise == LabelNoise()


def test_jitter(objects: SceneObjects, placement: Placement) -> None:
    noise = LabelNoise(jitter_standing_m=0.025, jitter_moving_m=0.08)
    error = flawed(objects, placement, noise).centres - placement.centres
    standing, moving = error[:, ::2], error[:, 1::2]
    assert standing[..., 0].std() == pytest.approx(0.025, rel=0.05)
    assert standing[..., 1].std() == pytest.approx(0.025, rel=0.05)
    assert moving[..., 1].std() == pytest.approx(0.08, rel=0.05)
    np.testing.assert_allclose(moving[..., [0, 2]], 0.0, atol=1e-12)


def test_staircase_is_for_people_only(objects: SceneObjects, placement: Placement) -> None:
    labels = flawed(objects, placement, LabelNoise(staircase_share=1.0))
    people = np.array([kind == "Pedestrian" for kind in objects.types])
    np.testing.assert_array_equal(labels.centres[:, ~people], placement.centres[:, ~people])
    step = np.diff(labels.centres[:, people, 1], axis=0)
    assert (step >= 0).all()
    still = (step == 0).mean()
    assert 0.7 < still < 0.95
    assert step.max() < 13 * 0.5 + 1e-9
    error = placement.centres[:, people, 1] - labels.centres[:, people, 1]
    assert error.min() >= 0


def test_flips_are_half_turns_about_the_own_axis(
    objects: SceneObjects, placement: Placement
) -> None:
    labels = flawed(objects, placement, LabelNoise(flip_share=0.25))
    turned = labels.angles[0, :, 2] != placement.angles[0, :, 2]
    assert 0.15 < turned.mean() < 0.35
    before, after = rotations(placement.angles[:, turned]), rotations(labels.angles[:, turned])
    np.testing.assert_allclose(after, before * [-1, -1, 1], atol=1e-12)
    np.testing.assert_array_equal(labels.angles[:, ~turned], placement.angles[:, ~turned])


def test_second_ids_are_new(objects: SceneObjects, placement: Placement) -> None:
    labels = flawed(objects, placement, LabelNoise(duplicate_share=0.2))
    doubled = labels.second_ids != objects.ids
    assert 0.1 < doubled.mean() < 0.3
    assert not set(labels.second_ids[doubled].tolist()) & set(objects.ids.tolist())
    assert len(set(labels.second_ids.tolist())) == N


def test_missing_labels(objects: SceneObjects, placement: Placement) -> None:
    labels = flawed(objects, placement, LabelNoise(missing_share=0.02))
    assert labels.hidden.mean() == pytest.approx(0.02, abs=0.004)


def test_nan_points() -> None:
    points = np.ones((50_000, 4), np.float32)
    bad = flaw_points(points, LabelNoise(nan_share=0.01), np.random.default_rng(0))
    rows = np.isnan(bad[:, :3])
    assert (rows.all(axis=1) == rows.any(axis=1)).all()
    assert rows[:, 0].mean() == pytest.approx(0.01, abs=0.002)
    assert np.isfinite(bad[:, 3]).all()


def test_rotations_are_those_of_the_data() -> None:
    rng = np.random.default_rng(1)
    for roll, pitch, yaw in rng.uniform(-1.4, 1.4, (20, 3)).tolist():
        expected = rotation(*np.degrees([roll, yaw, pitch]))
        np.testing.assert_allclose(rotations(np.array([roll, pitch, yaw])), expected, atol=1e-12)


def test_flaws_reach_the_files(tmp_path: Path) -> None:
    """Second ids with agent 2 only; hidden labels missing; NaN rows in the clouds."""
    noise = LabelNoise(duplicate_share=0.5, missing_share=0.3, nan_share=0.01)
    preset = replace(PRESETS["tiny"], scenes=(1, 0, 0), frames=6, noise=noise)
    clean = replace(preset, noise=LabelNoise())
    first, second = (
        Recording(next((generate(p, tmp_path / name, seed=2, workers=1) / "train").iterdir()))
        for p, name in ((preset, "flawed"), (clean, "clean"))
    )
    highest = max(map(int, first.meta["objects"]))
    for view in first.views(stride=5):
        assert np.isnan(view.points[:, 0]).any()
        labels = set(view.label["vehicles"])
        expected = set(second.label(view.agent, view.frame)["vehicles"])
        assert len(labels) < len(expected)
        assert any(number > highest for number in labels) == (view.agent == 2)
        assert {n - highest if n > highest else n for n in labels} <= expected
