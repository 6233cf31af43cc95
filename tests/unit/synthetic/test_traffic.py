"""Traffic behaves: rules of motion, of the road and of the signal, over several scenes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.collisions import first_collision
from turbotrain_plugin.synthetic.junction import STOP_LINE_M, arm_points, route_network
from turbotrain_plugin.synthetic.objects import VEHICLE_TYPES, SceneObjects
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse
from turbotrain_plugin.synthetic.scene import ScenePlan, plan_junction_scene
from turbotrain_plugin.synthetic.signals import GREEN, RED, YELLOW, Signals
from turbotrain_plugin.synthetic.traffic import simulate_traffic
from turbotrain_plugin.synthetic.world import make_junction_world

F64 = NDArray[np.float64]
NOBODY = CrosswalkUse(-8.0, 0.1, np.zeros((0, 4, 0)))
NETWORK = route_network()
FRAMES = 121


@pytest.fixture(scope="module")
def plans() -> list[ScenePlan]:
    world = make_junction_world(3)
    return [plan_junction_scene(world, FRAMES, (3, 1, n), n) for n in range(6)]


@pytest.fixture(scope="module")
def runs() -> list[tuple[Signals, SceneObjects]]:
    """Three runs of 40 s."""
    signals = [Signals(9.0 * seed) for seed in range(3)]
    return [
        (signal, simulate_traffic(NETWORK, signal, NOBODY, 400, np.random.default_rng(seed)))
        for seed, signal in enumerate(signals)
    ]


def vehicles(objects: SceneObjects) -> NDArray[np.bool_]:
    return np.array([kind in VEHICLE_TYPES for kind in objects.types])


def is_parked(objects: SceneObjects) -> NDArray[np.bool_]:
    """Never moves at all; a queue creeps at least."""
    still: NDArray[np.bool_] = np.ptp(objects.xy, axis=0).max(axis=1) == 0
    return vehicles(objects) & still


def test_counts(plans: list[ScenePlan]) -> None:
    parked = sum(int(is_parked(plan.objects).sum()) for plan in plans)
    every = [int(vehicles(plan.objects).sum()) for plan in plans]
    assert 0.40 <= parked / sum(every) <= 0.60
    assert min(every) >= 20
    assert max(every) <= 55
    assert any("Pedestrian" in plan.objects.types for plan in plans)
    kinds = {kind for plan in plans for kind in plan.objects.types}
    assert {"Car", "Van"} < kinds
    assert kinds & {"TrashCan", "Truck", "Bus", "ConcreteTruck"}


def test_nobody_collides(plans: list[ScenePlan]) -> None:
    for plan in plans:
        assert first_collision(plan.objects) is None


def test_collisions_are_found(plans: list[ScenePlan]) -> None:
    """The check above can fail: one vehicle put upon another is seen at once."""
    objects = plans[0].objects
    a, b = np.nonzero(vehicles(objects) & objects.present[5])[0][:2].tolist()
    objects.xy[5, a], keep = objects.xy[5, b] + 0.5, objects.xy[5, a].copy()
    found = first_collision(objects)
    objects.xy[5, a] = keep
    assert found == (5, min(a, b), max(a, b))


def test_nobody_teleports(plans: list[ScenePlan]) -> None:
    for plan in plans:
        objects = plan.objects
        both = objects.present[1:] & objects.present[:-1]
        step = np.linalg.norm(np.diff(objects.xy, axis=0), axis=-1)[both]
        speed = np.maximum(objects.speed[1:], objects.speed[:-1])[both]
        assert step.max() < 1.5
        assert (step <= 0.1 * speed + 0.06).all()
        turn = np.abs(np.diff(objects.yaw, axis=0))[both & vehicles(objects)]
        assert turn.max() < np.radians(8)


def test_speeds_and_accelerations(plans: list[ScenePlan]) -> None:
    for plan in plans:
        objects = plan.objects
        driven = vehicles(objects)
        xy, there = objects.xy[::5][:, driven], objects.present[::5][:, driven]
        both = there[1:] & there[:-1]
        velocity = np.diff(xy, axis=0) / 0.5
        speed = np.linalg.norm(velocity, axis=-1)
        assert speed[both].max() <= 14.0
        along = np.diff(speed, axis=0) / 0.5
        assert np.abs(along[both[1:] & both[:-1]]).max() <= 4.0


def test_headings_are_along_the_motion(plans: list[ScenePlan]) -> None:
    for plan in plans:
        objects = plan.objects
        step = np.diff(objects.xy, axis=0)
        fast = vehicles(objects) & objects.present[1:] & objects.present[:-1]
        fast &= np.linalg.norm(step, axis=-1) > 0.2
        away = np.arctan2(step[..., 1], step[..., 0]) - objects.yaw[1:]
        away = (away + np.pi) % (2 * np.pi) - np.pi
        assert np.abs(away[fast]).max() < np.radians(8)


def test_vehicles_come_and_go(plans: list[ScenePlan]) -> None:
    late, early, count = 0, 0, 0
    for plan in plans:
        moving = vehicles(plan.objects) & ~is_parked(plan.objects)
        late += int((~plan.objects.present[0, moving]).sum())
        early += int((~plan.objects.present[-1, moving]).sum())
        count += int(moving.sum())
    assert late >= 0.12 * count
    assert early >= 0.12 * count


def test_connected_vehicles(plans: list[ScenePlan]) -> None:
    """Both are there all the time, at some time near one another and near a roadside unit."""
    for number, plan in enumerate(plans):
        a, b, *units = plan.agents
        assert [agent.agent_id for agent in plan.agents] == [1, 2, -1, -2]
        assert a.present.all()
        assert b.present.all()
        near = np.linalg.norm(a.origins[:, :2] - b.origins[:, :2], axis=1) < 50
        at_unit = [
            (np.linalg.norm(a.origins[:, :2] - unit.origins[:, :2], axis=1) < 50)
            & (np.linalg.norm(b.origins[:, :2] - unit.origins[:, :2], axis=1) < 50)
            for unit in units
        ]
        assert (near & (at_unit[0] | at_unit[1])).any()
        origins = np.stack([agent.origins[:, :2] for agent in plan.agents])
        apart = np.linalg.norm(origins[:, None] - origins[None], axis=-1) > 50
        if number % 4 == 0:
            assert apart.any()
        between = np.linalg.norm(units[0].origins[0, :2] - units[1].origins[0, :2])
        assert 36 < between < 46


def stop_line_crossings(objects: SceneObjects) -> list[tuple[float, int, bool]]:
    """(time, arm, turns right) of the fronts that pass a stop line into the junction."""
    crossings = []
    for i in range(len(objects.types)):
        there = np.nonzero(objects.present[:, i])[0]
        heading = np.stack([np.cos(objects.yaw[there, i]), np.sin(objects.yaw[there, i])], axis=-1)
        front = objects.xy[there, i] + objects.half_sizes[i, 0] * heading
        for arm in range(4):
            out = arm_points(arm, np.ones(1), np.zeros(1))[0]
            inward = heading @ out < -0.9
            along = front @ out
            passed = inward[:-1] & (along[:-1] > STOP_LINE_M) & (along[1:] <= STOP_LINE_M)
            for k in np.nonzero(passed)[0].tolist():
                turn = np.diff(objects.yaw[there, i][k:]).sum()
                right = bool(turn < -np.radians(10)) or k > len(there) - 30
                crossings.append((float(there[k]) * 0.1, arm, right))
    return crossings


def test_signal_is_obeyed(runs: list[tuple[Signals, SceneObjects]]) -> None:
    """Nobody but who turns right enters at red, bar the second after yellow."""
    total = 0
    for signals, objects in runs:
        for time_s, arm, right in stop_line_crossings(objects):
            total += 1
            if signals.state(arm, time_s) == RED and not right:
                assert signals.state(arm, time_s - 1.5) == YELLOW
    assert total > 45


def test_long_runs_stay_free_of_collisions(runs: list[tuple[Signals, SceneObjects]]) -> None:
    """Left turns in both phases and no deadlock: somebody always drives."""
    for _, objects in runs:
        assert first_collision(objects) is None
        assert ((objects.speed > 2.0) & objects.present).any(axis=1).mean() > 0.95


def test_turns_wait_for_people_on_the_crosswalk() -> None:
    """While somebody stands in both exit lanes nobody turns over a crosswalk; after, they do."""
    offsets = np.full((480, 4, 2), np.nan)
    offsets[130:330] = [-3.5, -7.0]
    people = CrosswalkUse(-8.0, 0.1, offsets)
    before, during, after = 0, 0, 0
    for seed in range(2):
        objects = simulate_traffic(NETWORK, Signals(0.0), people, 400, np.random.default_rng(seed))
        for time_s, right_or_left in turning_fronts(objects):
            if right_or_left:
                before += time_s < 5.0
                during += 5.5 < time_s < 24.9
                after += time_s > 25.0
    assert during == 0
    assert before + after > 2


def turning_fronts(objects: SceneObjects) -> list[tuple[float, bool]]:
    """(time, has turned) of the fronts that come to the crosswalk they leave over."""
    found = []
    for i in range(len(objects.types)):
        there = np.nonzero(objects.present[:, i])[0]
        yaw = objects.yaw[there, i]
        heading = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
        front = objects.xy[there, i] + objects.half_sizes[i, 0] * heading
        for arm in range(4):
            out = arm_points(arm, np.ones(1), np.zeros(1))[0]
            along = front @ out
            passed = (along[:-1] < 15.5) & (along[1:] >= 15.5) & (heading[1:] @ out > 0.5)
            for k in np.nonzero(passed)[0].tolist():
                turned = abs(yaw[k] - yaw[0]) > np.radians(30)
                found.append((float(there[k]) * 0.1, bool(turned)))
    return found


def test_all_turns_happen(runs: list[tuple[Signals, SceneObjects]]) -> None:
    turns = []
    for _, objects in runs:
        for i in range(len(objects.types)):
            yaw = objects.yaw[objects.present[:, i], i]
            turns.append(round(float(np.degrees(yaw[-1] - yaw[0])) / 90))
    shares = {turn: turns.count(turn) / len(turns) for turn in (-1, 0, 1)}
    assert set(turns) == {-1, 0, 1}
    assert shares[0] > 0.5
    assert shares[1] > 0.04
    assert shares[-1] > 0.04


def test_signal_phases() -> None:
    signals = Signals(0.0)
    assert [signals.state(0, t) for t in (0.0, 11.9, 12.1, 15.1, 16.0, 31.9)] == [
        GREEN, GREEN, YELLOW, RED, RED, RED,
    ]  # fmt: skip
    assert [signals.state(1, t) for t in (0.0, 15.5, 16.0, 28.1, 31.5)] == [
        RED, RED, GREEN, YELLOW, RED,
    ]  # fmt: skip
    for t in np.arange(0, 64, 0.5).tolist():
        states = {signals.state(0, t), signals.state(1, t)}
        assert states != {GREEN}
        assert states in ({GREEN, RED}, {YELLOW, RED}, {RED})
        assert signals.state(0, t) == signals.state(2, t)


@pytest.mark.parametrize("arm", range(4))
@pytest.mark.parametrize("time_s", [-9.3, 0.0, 5.0, 17.7])
def test_people_start_when_the_other_road_is_green(arm: int, time_s: float) -> None:
    signals = Signals(3.0)
    start = signals.walk_start(arm, time_s)
    assert time_s <= start <= time_s + 32.0
    assert signals.state(arm, start) == RED
    assert signals.state(arm + 1, start) == GREEN
    assert signals.state(arm + 1, start + 9.0) == GREEN
