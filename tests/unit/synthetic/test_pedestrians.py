"""People keep to sidewalks and crosswalks, and vehicles keep off people."""

from __future__ import annotations

import numpy as np
import pytest

from turbotrain_plugin.synthetic.junction import CROSSWALK_M, ROADS, junction_site
from turbotrain_plugin.synthetic.objects import SceneObjects
from turbotrain_plugin.synthetic.pedestrians import draw_people
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse
from turbotrain_plugin.synthetic.signals import RED, Signals

SITE = junction_site()
FRAMES = 100
Drawn = list[tuple[Signals, SceneObjects, CrosswalkUse]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    scenes = []
    for seed in range(6):
        signals = Signals(4.0 * seed)
        scenes.append((signals, *draw_people(SITE, signals, FRAMES, np.random.default_rng(seed))))
    return scenes


def test_numbers() -> None:
    counts = [
        len(draw_people(SITE, Signals(0.0), 2, np.random.default_rng(seed))[0].types)
        for seed in range(16)
    ]
    empty = [count for count in counts if count == 0]
    assert 1 <= len(empty) <= 8
    assert max(counts) <= 54
    # Some of those drawn walk only outside the recorded time.
    assert np.median(counts) > 15


def test_on_the_carriageway_only_on_crosswalks(drawn: Drawn) -> None:
    crossing = 0
    for _, people, _ in drawn:
        x, y = np.abs(people.xy[people.present]).T
        on_road = ~ROADS.off_road(x, y)
        along = np.maximum(x, y)[on_road]
        crossing += len(along)
        assert (along > CROSSWALK_M[0]).all()
        assert (along < CROSSWALK_M[1]).all()
    assert crossing > 200


def test_they_cross_while_traffic_has_red(drawn: Drawn) -> None:
    for signals, people, use in drawn:
        del people
        for arm in range(4):
            for step in np.nonzero(np.isfinite(use.offsets[:, arm]).any(axis=1))[0].tolist():
                assert signals.state(arm, use.start_s + step * use.step_s) == RED


def test_speeds(drawn: Drawn) -> None:
    standing, count = 0, 0
    for _, people, _ in drawn:
        both = people.present[1:] & people.present[:-1]
        step = np.linalg.norm(np.diff(people.xy, axis=0), axis=-1) / 0.1
        for i, kind in enumerate(people.types):
            speed = step[both[:, i], i]
            if not len(speed):
                continue
            mean = float(speed.mean())
            count += 1
            standing += mean < 0.05
            assert mean < (5.6 if kind.endswith("Rider") else 2.6)
    assert 0.3 < standing / count < 0.7


def test_they_keep_apart(drawn: Drawn) -> None:
    for _, people, _ in drawn:
        for frame in range(0, FRAMES, 10):
            xy = people.xy[frame, people.present[frame]]
            apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 9 * np.eye(len(xy))
            assert apart.size == 0 or apart.min() >= 0.7


def test_crosswalk_use_says_where_people_are(drawn: Drawn) -> None:
    for _, people, use in drawn:
        recorded = use.offsets[-FRAMES:]
        assert len(recorded) == FRAMES
        on = np.isfinite(recorded).sum(axis=(1, 2))
        x, y = np.abs(people.xy).transpose(2, 0, 1)
        on_road = (people.present & ~ROADS.off_road(x, y)).sum(axis=1)
        assert (on >= on_road).all()


@pytest.mark.parametrize(
    ("offset", "start_s", "end_s", "expected"),
    [
        (3.5, 0.0, 0.5, False),
        (3.5, 0.9, 1.1, True),
        (-7.0, 0.9, 1.1, False),
        (3.5, 1.2, 9.0, False),
        (3.5, -5.0, -1.0, False),
        (5.8, 0.9, 1.1, True),
    ],
)
def test_occupied(offset: float, start_s: float, end_s: float, expected: bool) -> None:
    offsets = np.full((20, 4, 1), np.nan)
    offsets[10, 2, 0] = 4.0
    use = CrosswalkUse(0.0, 0.1, offsets)
    assert use.occupied(2, offset, start_s, end_s) is expected
    assert not use.occupied(1, offset, start_s, end_s)
