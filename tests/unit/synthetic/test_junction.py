"""Routes are smooth, lie on lanes, and know where they cross."""

from __future__ import annotations

import numpy as np
import pytest

from turbotrain_plugin.synthetic import scene
from turbotrain_plugin.synthetic.junction import (
    ARM_LENGTH_M,
    CROSSWALK_M,
    LANE_OFFSETS_M,
    ROADS,
    STOP_LINE_M,
    arm_points,
    route_network,
)
from turbotrain_plugin.synthetic.routes import Route, polyline
from turbotrain_plugin.synthetic.world import make_junction_world

ROUTES = route_network().routes


def local(route: Route, arm: int, s: float) -> tuple[float, float]:
    """Distance from the middle and offset across ``arm`` of the point at ``s``."""
    xy, _ = route.at(np.array([s]))
    ((along, offset),) = arm_points(-arm, xy[:, 0], xy[:, 1])
    return float(along), float(offset)


def test_every_turn_from_every_arm() -> None:
    ways = {(route.arm, route.exit_arm, route.turn, route.lane) for route in ROUTES}
    assert len(ways) == len(ROUTES) == 16
    for arm, exit_arm, turn, _ in ways:
        assert (exit_arm - arm) % 4 == {"right": 1, "through": 2, "left": 3}[turn]


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.arm}-{r.turn}-{r.lane}")
def test_route(route: Route) -> None:
    step = np.diff(route.xy, axis=0)
    length = np.linalg.norm(step, axis=1)
    assert length.max() < 0.501
    assert length.min() > 0.49
    turn = np.diff(np.unwrap(np.arctan2(step[:, 1], step[:, 0])))
    assert np.abs(turn).max() < 0.5 / 11.0
    total = {"right": -90.0, "through": 0.0, "left": 90.0}[route.turn]
    assert np.degrees(route.yaw[-1] - route.yaw[0]) == pytest.approx(total, abs=0.1)
    assert not ROADS.off_road(route.xy[:, 0], route.xy[:, 1]).any()
    assert local(route, route.arm, 0.0) == pytest.approx((ARM_LENGTH_M, LANE_OFFSETS_M[route.lane]))
    end = local(route, route.exit_arm, route.length)
    assert end[1] == pytest.approx(-LANE_OFFSETS_M[route.lane], abs=0.01)
    assert end[0] == pytest.approx(ARM_LENGTH_M, abs=0.5)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.arm}-{r.turn}-{r.lane}")
def test_gates_are_in_order_and_in_place(route: Route) -> None:
    assert route.stop_s <= route.wait_s < route.crosswalk_s < route.clear_s < route.length
    along, offset = local(route, route.arm, route.stop_s)
    assert STOP_LINE_M - 0.5 <= along <= STOP_LINE_M
    assert offset == pytest.approx(0.0 if route.turn == "left" else LANE_OFFSETS_M[route.lane])
    assert local(route, route.exit_arm, route.crosswalk_s)[0] < CROSSWALK_M[0]
    assert local(route, route.exit_arm, route.clear_s)[0] > CROSSWALK_M[1]
    if route.turn == "left":
        # The front waits clear of the lanes of the crossing road.
        assert local(route, route.arm, route.wait_s)[0] > LANE_OFFSETS_M[1] + 1.3


def test_speed_is_capped_before_and_on_bends_only() -> None:
    for route in ROUTES:
        inside = route.speed_cap[int(route.wait_s * 2 + 12)]
        if route.turn == "through":
            assert route.speed_cap.min() == 20.0
            continue
        assert 3.0 <= inside <= 5.0
        drop = np.diff(route.speed_cap**2) / (2 * 0.5)
        assert drop[drop <= 0].min() > -1.5


def test_table_of_nearest_points() -> None:
    network = route_network()
    rng = np.random.default_rng(0)
    for _ in range(200):
        i, j = rng.integers(0, 16, 2)
        k = int(rng.integers(0, len(ROUTES[j].xy)))
        away = np.linalg.norm(ROUTES[i].xy - ROUTES[j].xy[k], axis=1)
        assert network.aside[i, j, k] == pytest.approx(away.min(), abs=1e-5)
        found = int(network.along[i, j, k] * 2)
        assert away[found] == pytest.approx(away.min(), abs=1e-5)


def find(arm: int, turn: str, lane: int) -> int:
    return [(r.arm, r.turn, r.lane) for r in ROUTES].index((arm, turn, lane))


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ((0, "through", 0), (1, "through", 0), True),
        ((0, "through", 0), (2, "through", 0), False),
        ((0, "left", 0), (2, "through", 1), True),
        ((0, "left", 0), (2, "left", 0), False),
        ((0, "right", 1), (3, "through", 1), True),  # both leave by arm 1, outer lane
        ((0, "right", 1), (3, "through", 0), False),
        ((0, "right", 1), (2, "left", 0), False),  # both leave by arm 1, other lanes
        ((0, "through", 0), (0, "left", 0), False),  # one behind the other
    ],
)
def test_conflicts(one: tuple[int, str, int], other: tuple[int, str, int], conflict: bool) -> None:
    network, i, j = route_network(), find(*one), find(*other)
    assert np.isfinite(network.enter[i, j]) == conflict
    assert np.isfinite(network.enter[j, i]) == conflict
    if conflict:
        assert network.enter[i, j] < network.leave[i, j]


def test_polyline_keeps_ends_and_spacing() -> None:
    line = polyline(np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 5.3]]), 1.0)
    np.testing.assert_allclose(line[[0, -1]], [[0.0, 0.0], [10.0, 5.3]])
    assert len(line) == 16
    assert np.linalg.norm(np.diff(line, axis=0), axis=1).max() < 1.03


def test_arms_are_quarter_turns() -> None:
    for arm in range(-2, 6):
        angle = arm * np.pi / 2
        c, s = np.cos(angle), np.sin(angle)
        expected = np.array([[c, -s], [s, c]]) @ [7.0, 2.0]
        found = arm_points(arm, np.array([7.0]), np.array([2.0]))[0]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_traffic_that_fails_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_junction_world(0)
    first = scene.plan_junction_scene(world, 6, (0, 1, 1), 1)
    calls = iter([(0, 1, 2)])
    monkeypatch.setattr(scene, "first_collision", lambda _: next(calls, None))
    second = scene.plan_junction_scene(world, 6, (0, 1, 1), 1)
    assert first.objects.types != second.objects.types
    monkeypatch.setattr(scene, "first_collision", lambda _: (0, 1, 2))
    monkeypatch.setattr(scene, "_ATTEMPTS", 2)
    with pytest.raises(RuntimeError, match="no usable traffic in 2 attempts"):
        scene.plan_junction_scene(world, 6, (0, 1, 1), 1)
