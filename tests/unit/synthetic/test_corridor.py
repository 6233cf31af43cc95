"""The corridor: its curve is exact, its lanes fit its map, its traffic keeps the rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data.map_files import DRIVING, Lane
from turbotrain_plugin.synthetic.agents import choose_vehicles
from turbotrain_plugin.synthetic.blocks import BUILDING
from turbotrain_plugin.synthetic.collisions import boxes_overlap, first_collision
from turbotrain_plugin.synthetic.corridor import (
    CONTROL,
    EAST,
    HALF_LENGTH_M,
    HALF_WIDTH_M,
    LANE_OFFSETS_M,
    SIDE,
    SIDE_HALF_WIDTH_M,
    SIDE_LENGTH_M,
    WALK_M,
    WEST,
    Corridor,
    corridor_network,
    corridor_site,
    pavement_lines,
)
from turbotrain_plugin.synthetic.lane_map import LANE_MAPS
from turbotrain_plugin.synthetic.objects import VEHICLE_TYPES, SceneObjects
from turbotrain_plugin.synthetic.right_of_way import CrosswalkUse
from turbotrain_plugin.synthetic.routes import Route
from turbotrain_plugin.synthetic.scene import LAYOUTS, ScenePlan
from turbotrain_plugin.synthetic.signals import GREEN, STOP
from turbotrain_plugin.synthetic.traffic import simulate_traffic

F64 = NDArray[np.float64]
STREET = Corridor(radius_m=180.0, mouth_m=-12.0)
ROUTES = corridor_network(STREET).routes
NOBODY = CrosswalkUse(-8.0, 0.1, np.zeros((0, 1, 0)))
TURNS = {
    (EAST, WEST): "through", (EAST, SIDE): "left", (WEST, EAST): "through",
    (WEST, SIDE): "right", (SIDE, EAST): "right", (SIDE, WEST): "left",
}  # fmt: skip


def name_of(route: Route) -> str:
    return f"{route.arm}-{route.exit_arm}-{route.lane}"


def straight(points: F64, street: Corridor = STREET) -> F64:
    return np.stack(street.straighten(points[..., 0], points[..., 1]), axis=-1)


@pytest.fixture(scope="module")
def plans() -> list[ScenePlan]:
    layout = LAYOUTS["corridor"]
    return [layout.plan(layout.world(seed), 61, (seed, 1, 3), 3) for seed in range(3)]


# -------------------------------------------------------------------------------------------- curve


def test_bend_and_straighten_are_inverse() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-130, -90], [130, 90], (500, 2))
    np.testing.assert_allclose(straight(STREET.bend(points)), points, atol=1e-9)


def test_the_street_is_an_arc_of_the_radius() -> None:
    x = np.linspace(-HALF_LENGTH_M, HALF_LENGTH_M, 241)
    for offset in (0.0, *LANE_OFFSETS_M, *(-np.array(LANE_OFFSETS_M))):
        line = STREET.bend(np.stack([x, np.full(len(x), offset)], axis=-1))
        away = np.linalg.norm(line - [0.0, 180.0], axis=1)
        np.testing.assert_allclose(away, 180.0 - offset)
    middle = STREET.bend(np.stack([x, 0 * x], axis=-1))
    length = np.linalg.norm(np.diff(middle, axis=0), axis=1).sum()
    assert length == pytest.approx(2 * HALF_LENGTH_M, abs=0.01)
    # It curves to the left: the far end lies to the left of the first step.
    (ax, ay), (bx, by) = middle[1] - middle[0], middle[-1] - middle[0]
    assert ax * by - ay * bx > 0


def test_headings_are_those_of_the_curve() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform([-120, -60], [120, 60], (200, 2))
    step = np.array([0.01, 0.0])
    ahead = STREET.bend(points + step) - STREET.bend(points - step)
    np.testing.assert_allclose(
        STREET.heading(points), np.arctan2(ahead[:, 1], ahead[:, 0]), atol=1e-6
    )


def test_the_side_street_is_straight_and_keeps_its_width() -> None:
    y = np.linspace(-HALF_WIDTH_M, -SIDE_LENGTH_M, 50)
    kerbs = [
        STREET.bend(np.stack([np.full(50, STREET.mouth_m + side), y], axis=-1))
        for side in (-SIDE_HALF_WIDTH_M, SIDE_HALF_WIDTH_M)
    ]
    width = np.linalg.norm(kerbs[0] - kerbs[1], axis=1)
    assert np.ptp(width) < 0.02
    for kerb in kerbs:
        along = kerb[-1] - kerb[0]
        normal = np.array([-along[1], along[0]]) / np.hypot(*along)
        assert np.abs((kerb - kerb[0]) @ normal).max() < 0.02


@pytest.mark.parametrize(
    ("x", "y", "off"),
    [
        (50.0, 9.4, False),
        (50.0, 9.6, True),
        (50.0, -9.4, False),
        (50.0, -9.6, True),
        (-12.0, 9.6, True),  # no side street to the north
        (-12.0, -60.0, False),
        (-7.1, -40.0, False),
        (-6.9, -40.0, True),
        (-5.0, -10.5, False),  # rounded kerb
        (-1.0, -13.0, True),
    ],
)
def test_where_the_carriageway_is(x: float, y: float, off: bool) -> None:
    spot = STREET.bend(np.array([x, y]))
    for kind in (np.float32, np.float64):
        found = STREET.off_road(spot[:1].astype(kind), spot[1:].astype(kind))
        assert found.tolist() == [off]


def test_world_is_turned_and_far_from_the_junction() -> None:
    worlds = {name: layout.world(5) for name, layout in LAYOUTS.items()}
    apart = np.array(worlds["corridor"].origin) - worlds["junction"].origin
    assert np.hypot(*apart[:2]) > 2 * HALF_LENGTH_M + 200.0
    assert np.degrees(worlds["corridor"].yaw_rad) == pytest.approx(-38.0)
    for seed in range(20):
        street = LAYOUTS["corridor"].world(seed).ground.roads
        assert isinstance(street, Corridor)
        assert 150.0 <= street.radius_m <= 400.0
    assert LAYOUTS["corridor"].world(5) == LAYOUTS["corridor"].world(5)


# ------------------------------------------------------------------------------------------- routes


def test_every_way_is_there() -> None:
    ways = [(route.arm, route.exit_arm, route.lane) for route in ROUTES]
    assert len(set(ways)) == len(ways) == 8
    for route in ROUTES:
        assert TURNS[route.arm, route.exit_arm] == route.turn


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_route(route: Route) -> None:
    step = np.diff(route.xy, axis=0)
    length = np.linalg.norm(step, axis=1)
    assert length.min() > 0.49
    assert length.max() < 0.501
    turn = np.diff(np.unwrap(np.arctan2(step[:, 1], step[:, 0])))
    assert np.abs(turn).max() < 0.5 / 6.0
    assert not STREET.off_road(route.xy[:, 0], route.xy[:, 1]).any()
    assert 0 < route.stop_s <= route.wait_s < route.clear_s < route.length
    # Traffic drives on the right of the street's middle.
    local = straight(route.xy)
    before, after = local[: int(route.stop_s * 2)], local[int(route.clear_s * 2) + 1 :]
    for part, arm, inwards in ((before, route.arm, 1), (after, route.exit_arm, -1)):
        if arm == SIDE:
            assert (inwards * (part[:, 0] - STREET.mouth_m) > 1.0).all()
        else:
            assert (inwards * (1 if arm == EAST else -1) * part[:, 1] > 1.5).all()


def find(arm: int, exit_arm: int, lane: int) -> int:
    return [(r.arm, r.exit_arm, r.lane) for r in ROUTES].index((arm, exit_arm, lane))


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        ((EAST, WEST, 0), (WEST, EAST, 0), False),
        ((EAST, SIDE, 0), (WEST, EAST, 0), True),
        ((EAST, SIDE, 0), (WEST, EAST, 1), True),
        ((SIDE, EAST, 0), (WEST, EAST, 1), True),
        ((SIDE, EAST, 0), (WEST, EAST, 0), False),
        ((SIDE, EAST, 0), (EAST, WEST, 0), False),
        ((SIDE, WEST, 0), (EAST, WEST, 0), True),
        ((SIDE, WEST, 0), (WEST, EAST, 1), True),
        ((WEST, SIDE, 1), (EAST, WEST, 1), False),
    ],
)
def test_conflicts(one: tuple[int, int, int], other: tuple[int, int, int], conflict: bool) -> None:
    network, i, j = corridor_network(STREET), find(*one), find(*other)
    assert np.isfinite(network.enter[i, j]) == conflict
    assert np.isfinite(network.enter[j, i]) == conflict


def test_the_side_street_has_a_stop_sign() -> None:
    assert [CONTROL.state(arm, 3.0) for arm in (EAST, WEST, SIDE)] == [GREEN, GREEN, STOP]


# ------------------------------------------------------------------------------------------ traffic


@pytest.fixture(scope="module")
def drive() -> SceneObjects:
    """A minute and a half of traffic."""
    return simulate_traffic(
        corridor_network(STREET), CONTROL, NOBODY, 900, np.random.default_rng(2)
    )


def test_nobody_collides_in_a_minute(drive: SceneObjects) -> None:
    assert len(drive.types) > 20
    assert first_collision(drive) is None


def test_who_comes_out_of_the_side_street_has_stopped(drive: SceneObjects) -> None:
    local = straight(drive.xy)
    came_out = 0
    for i in range(len(drive.types)):
        x, y = local[drive.present[:, i], i].T
        speed = drive.speed[drive.present[:, i], i]
        north = x > STREET.mouth_m  # its right-hand lane leads north
        if y[0] < -16.5 and north[0] and y[-1] > -HALF_WIDTH_M:
            came_out += 1
            waiting = (y > -16.5) & (y < -HALF_WIDTH_M)
            assert speed[waiting].min() < 0.3
    assert came_out >= 2


def test_long_vehicles_do_not_turn(drive: SceneObjects) -> None:
    local = straight(drive.xy)
    for i, kind in enumerate(drive.types):
        if kind in ("Bus", "Truck", "ConcreteTruck", "LongVehicle"):
            assert np.abs(local[drive.present[:, i], i, 1]).max() < 6.0


def test_traffic_comes_in_platoons(drive: SceneObjects) -> None:
    """In the closed half of the cycle hardly anybody enters the street."""
    entered = [
        0.1 * float(np.argmax(drive.present[:, i]))
        for i in range(len(drive.types))
        if not drive.present[0, i] and abs(straight(drive.xy)[:, i, 1][drive.present[:, i]][0]) < 7
    ]
    phase = np.sort(np.array(entered) % 40.0)
    widest = np.diff(np.append(phase, phase[0] + 40.0)).max()
    assert len(entered) >= 8
    assert widest > 12.0


# ------------------------------------------------------------------------------------------- scenes


def test_plans(plans: list[ScenePlan]) -> None:
    for plan in plans:
        objects, street = plan.objects, plan.world.ground.roads
        assert isinstance(street, Corridor)
        assert plan.signals is None
        assert [agent.agent_id for agent in plan.agents] == [1, 2]
        assert first_collision(objects) is None
        vehicle = np.array([kind in VEHICLE_TYPES for kind in objects.types])
        assert 20 <= vehicle.sum() <= 55
        one, two = (objects.xy[:, agent.object_index] for agent in plan.agents)
        between = np.linalg.norm(one - two, axis=1)
        assert between[30] >= 40.0
        assert between.min() < 50.0


def test_everything_is_where_it_belongs(plans: list[ScenePlan]) -> None:
    """Vehicles on the carriageway, parked ones at both kerbs; people and furniture off it."""
    for plan in plans:
        objects, street = plan.objects, plan.world.ground.roads
        assert isinstance(street, Corridor)
        vehicle = np.array([kind in VEHICLE_TYPES for kind in objects.types])
        off = street.off_road(objects.xy[..., 0], objects.xy[..., 1])
        there = objects.present
        assert not (off & there)[:, vehicle].any()
        assert off[there & ~vehicle].all()
        still = np.ptp(objects.xy, axis=0).max(axis=1) == 0
        across = straight(objects.xy[0, vehicle & still], street)[:, 1]
        at_kerb = np.abs(across) > 7.0
        assert (across[at_kerb] > 0).any()
        assert (across[at_kerb] < 0).any()


def test_buildings_keep_their_distance(plans: list[ScenePlan]) -> None:
    """No corner of a building is within 12 m of a kerb, and no two stand in each other."""
    for plan in plans:
        street = plan.world.ground.roads
        assert isinstance(street, Corridor)
        blocks = plan.blocks.select(plan.blocks.owners == BUILDING)
        assert 15 <= len(blocks.owners) <= 25
        corner = np.array([[x, y, 0.0] for x in (-1, 1) for y in (-1, 1)])
        edges = blocks.centres[:, None] + np.einsum(
            "kij,kcj->kci", blocks.rotations, corner * blocks.half_sizes[:, None]
        )
        rim = np.linspace(0, 2 * np.pi, 36)[:, None, None]
        around = edges[..., :2] + 11.5 * np.stack([np.cos(rim), np.sin(rim)], axis=-1)
        assert street.off_road(around[..., 0], around[..., 1]).all()
        yaw = np.arctan2(blocks.rotations[:, 1, 0], blocks.rotations[:, 0, 0])
        a, b = np.triu_indices(len(yaw), k=1)
        rectangles = (blocks.centres[:, :2], yaw, blocks.half_sizes[:, :2])
        hit = boxes_overlap(
            (rectangles[0][a], rectangles[1][a], rectangles[2][a]),
            (rectangles[0][b], rectangles[1][b], rectangles[2][b]),
        )
        assert not hit.any()


def test_pavements_run_behind_the_kerb() -> None:
    site = corridor_site(STREET)
    for offset in WALK_M:
        lines = pavement_lines(STREET, offset)
        assert len(lines) == len(site.pavements) == 3
        for line, pavement in zip(lines, site.pavements, strict=True):
            assert STREET.off_road(line[:, 0], line[:, 1]).all()
            np.testing.assert_array_equal(pavement(offset), line)
    for places in (site.pole_places, site.prop_places):
        assert STREET.off_road(places[:, 0], places[:, 1]).all()
    both = np.concatenate([site.pole_places, site.prop_places])
    apart = np.linalg.norm(both[:, None] - both[None], axis=-1) + 9 * np.eye(len(both))
    assert apart.min() > 1.0


def test_two_vehicles_near_each_other_are_no_pair() -> None:
    xy = np.zeros((5, 3, 2))
    xy[:, 1, 0], xy[:, 2, 0] = 20.0, 45.0
    objects = SceneObjects(
        ids=np.arange(3),
        types=("Car",) * 3,
        half_sizes=np.ones((3, 3)),
        xy=xy,
        yaw=np.zeros((5, 3)),
        speed=np.zeros((5, 3)),
        present=np.ones((5, 3), np.bool_),
    )
    nowhere = np.zeros((0, 2))

    def chosen(least_m: float) -> set[int] | None:
        rng = np.random.default_rng(0)
        pair = choose_vehicles(objects, 3, nowhere, far=False, rng=rng, least_m=least_m)
        return None if pair is None else set(pair)

    assert chosen(40.0) == {0, 2}
    assert chosen(46.0) is None
    assert chosen(0.0) is not None


# ---------------------------------------------------------------------------------------------- map


@pytest.fixture(scope="module")
def lanes() -> dict[str, Lane]:
    world = LAYOUTS["corridor"].world(0)
    found = LANE_MAPS["corridor"](world).lanes
    assert len({lane.name for lane in found}) == len(found)
    return {lane.name: lane for lane in found}


def test_tables_name_the_same_layouts() -> None:
    assert set(LANE_MAPS) == set(LAYOUTS)
    assert len({layout.map_file for layout in LAYOUTS.values()}) == len(LAYOUTS)
    assert all(Path(layout.map_file).suffix == ".pkl" for layout in LAYOUTS.values())


def test_lanes(lanes: dict[str, Lane]) -> None:
    assert {lane.type for lane in lanes.values()} == {1, 2, 3, 4}
    assert sum(lane.type == DRIVING for lane in lanes.values()) == 2 * 4 + 2 + 8
    for lane in lanes.values():
        step = np.linalg.norm(np.diff(lane.polyline, axis=0), axis=1)
        assert step.min() > 0.8
        assert step.max() < 1.2
        assert len(lane.boundary) == (2 * len(lane.polyline) if lane.type == DRIVING else 0)


def test_links_lead_on(lanes: dict[str, Lane]) -> None:
    links = 0
    for lane in lanes.values():
        for name in lane.exit:
            links += 1
            assert np.linalg.norm(lane.polyline[-1] - lanes[name].polyline[0]) < 0.6
            assert lane.name in lanes[name].entry
    assert links == 2 * len(ROUTES)


def test_what_lies_beside_points_the_way_of_the_traffic(lanes: dict[str, Lane]) -> None:
    driving = np.concatenate(
        [
            np.stack([lane.polyline[:-1], np.diff(lane.polyline, axis=0)], axis=1)
            for lane in lanes.values()
            if lane.type == DRIVING and lane.road_id < 11
        ]
    )
    for lane in lanes.values():
        if lane.type not in (3, 4):
            continue
        at, way = lane.polyline[5], lane.polyline[6] - lane.polyline[5]
        nearest = driving[np.linalg.norm(driving[:, 0] - at, axis=1).argmin()]
        assert nearest[1, :2] @ way[:2] > 0.9


def test_driven_vehicles_are_on_lanes(lanes: dict[str, Lane], plans: list[ScenePlan]) -> None:
    """The plan of seed 0 is on the map of seed 0, in height too."""
    plan = plans[0]
    centre = np.concatenate([lane.polyline for lane in lanes.values() if lane.type == DRIVING])
    objects = plan.objects
    moving = np.ptp(objects.xy, axis=0).max(axis=1) > 2.0
    moving &= np.array([kind in VEHICLE_TYPES for kind in objects.types])
    assert moving.sum() > 5
    for i in np.nonzero(moving)[0].tolist():
        spots = plan.world.to_world(plan.placement.centres[objects.present[:, i], i])
        away = np.linalg.norm(centre[None, :, :2] - spots[::10, None, :2], axis=-1)
        assert away.min(axis=1).max() < 0.6
        height = centre[away.argmin(axis=1), 2]
        bottom = spots[::10, 2] - objects.half_sizes[i, 2]
        assert np.abs(height - bottom).max() < 0.1
