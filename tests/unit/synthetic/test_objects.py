"""Objects stand on the ground as they should, and rays see parts that stay inside their boxes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.agents import choose_vehicles, roadside_units, vehicle_agent
from turbotrain_plugin.synthetic.blocks import (
    BUILDING,
    draw_blocks,
    draw_props,
    scatter_blocks,
    stand_still,
)
from turbotrain_plugin.synthetic.collisions import boxes_overlap
from turbotrain_plugin.synthetic.ground import KERB_HEIGHT_M, CrossRoads, Ground
from turbotrain_plugin.synthetic.junction import ROADS, junction_site
from turbotrain_plugin.synthetic.objects import (
    HALF_SIZES_M,
    SceneObjects,
    merge,
    place,
    rotations,
    solids_at,
)

F64 = NDArray[np.float64]
SLOPE = Ground((0.04, -0.03), 2.0, roads=CrossRoads(11.25, 8.0))


def standing(kinds: list[str], xy: F64, yaw: F64, frames: int = 1) -> SceneObjects:
    half = np.array([HALF_SIZES_M[kind] for kind in kinds])
    return stand_still(kinds, half, xy, yaw, frames)


@pytest.mark.parametrize("yaw", [0.0, 0.7, 2.0, -2.8])
def test_all_four_wheels_are_on_the_slope(yaw: float) -> None:
    objects = standing(["Bus"], np.array([[3.0, 4.0]]), np.array([yaw]))
    placement = place(objects, SLOPE)
    R = rotations(placement.angles[0, 0])
    half = objects.half_sizes[0]
    for x, y in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        wheel = placement.centres[0, 0] + R @ (half * [x, y, -1])
        assert wheel[2] == pytest.approx(2.0 + 0.04 * wheel[0] - 0.03 * wheel[1], abs=1e-9)


def test_people_stand_upright_on_the_pavement() -> None:
    xy = np.array([[30.0, 13.0], [30.0, 9.0]])
    placement = place(standing(["Pedestrian", "Pedestrian"], xy, np.zeros(2)), SLOPE)
    np.testing.assert_array_equal(placement.angles[..., :2], 0.0)
    bottom = placement.centres[0, :, 2] - HALF_SIZES_M["Pedestrian"][2]
    plane = 2.0 + 0.04 * xy[:, 0] - 0.03 * xy[:, 1]
    np.testing.assert_allclose(bottom - plane, [KERB_HEIGHT_M, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 0, False),
        (50, 11.2, False),
        (50, 11.3, True),
        (-11.3, -50, True),
        (13.0, 13.0, False),  # inside the rounded corner of the carriageway
        (-14.0, 14.0, True),
        (19.3, 11.3, True),
    ],
)
def test_kerb_line(x: float, y: float, expected: bool) -> None:
    assert bool(ROADS.off_road(np.array(x), np.array(y))) is expected


def test_gradient_is_that_of_the_height() -> None:
    ground = Ground((0.02, 0.01), 0.0, 0.3, (0.05, 0.06), 0.3)
    x, y = np.random.default_rng(0).uniform(-50, 50, (2, 40))
    step = 1e-5
    gx, gy = ground.gradient(x, y)
    rise_x = ground.height(x + step, y) - ground.height(x - step, y)
    rise_y = ground.height(x, y + step) - ground.height(x, y - step)
    np.testing.assert_allclose(gx, rise_x / (2 * step), atol=1e-8)
    np.testing.assert_allclose(gy, rise_y / (2 * step), atol=1e-8)


def test_solids_fill_their_boxes_and_no_more() -> None:
    kinds = list(HALF_SIZES_M)
    xy = np.stack([20.0 * np.arange(len(kinds)), np.zeros(len(kinds))], axis=-1)
    objects = standing(kinds, xy, np.linspace(-3, 3, len(kinds)))
    placement = place(objects, SLOPE)
    solids = solids_at(objects, placement, 0)
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    for i, kind in enumerate(kinds):
        parts = np.nonzero(solids.owners == i)[0]
        assert len(parts) == (2 if kind in ("Car", "PoliceCar", "LongVehicle") else 1)
        points = np.concatenate(
            [
                solids.centres[p] + (corners * solids.half_sizes[p]) @ solids.rotations[p].T
                for p in parts
            ]
        )
        own = (points - placement.centres[0, i]) @ rotations(placement.angles[0, i])
        np.testing.assert_allclose(np.abs(own).max(axis=0), objects.half_sizes[i])


def test_absent_objects_are_not_solid() -> None:
    objects = standing(["Car", "Car"], np.array([[0.0, 0.0], [9.0, 0.0]]), np.zeros(2))
    objects.present[0, 0] = False
    assert set(solids_at(objects, place(objects, SLOPE), 0).owners.tolist()) == {1}


def test_merge_numbers_everything_once() -> None:
    a = standing(["Car", "Van"], np.zeros((2, 2)), np.zeros(2), frames=3)
    b = standing(["Pedestrian"], np.ones((1, 2)), np.zeros(1), frames=3)
    merged = merge([a, b], np.random.default_rng(0))
    assert merged.types == ("Car", "Van", "Pedestrian")
    assert sorted(merged.ids.tolist()) == [1, 2, 3]
    assert merged.xy.shape == (3, 3, 2)


def traffic(places: list[tuple[float, float]], speeds: list[float]) -> SceneObjects:
    """Cars that drive along +x for 2 s."""
    count = len(places)
    objects = standing(["Car"] * count, np.array(places), np.zeros(count), frames=21)
    objects.xy[..., 0] += np.arange(21)[:, None] * 0.1 * np.array(speeds)
    objects.speed[:] = speeds
    return objects


CORNERS = np.array([[13.9, 13.9], [-13.9, -13.9]])


@pytest.mark.parametrize(
    ("places", "speeds", "far", "expected"),
    [
        ([(-20.0, 0.0), (20.0, 0.0)], [0.0, 0.0], False, {0, 1}),
        ([(-20.0, 0.0), (20.0, 0.0)], [0.0, 0.0], True, None),  # never out of range
        ([(-110.0, 0.0), (110.0, 0.0)], [0.0, 0.0], False, None),  # never in range
        ([(-20.0, 0.0)], [0.0], False, None),
        ([(-20.0, 0.0), (20.0, 0.0)], [0.0, 14.0], True, {0, 1}),
    ],
)
def test_choice_of_connected_vehicles(
    places: list[tuple[float, float]], speeds: list[float], far: bool, expected: set[int] | None
) -> None:
    objects = traffic(places, speeds)
    rng = np.random.default_rng(0)
    found = choose_vehicles(objects, len(places), CORNERS, far=far, rng=rng)
    assert (None if found is None else set(found)) == expected


def test_connected_vehicles_are_there_all_the_time_and_drive() -> None:
    objects = traffic([(-20.0, 0.0), (0.0, 0.0), (20.0, 0.0), (5.0, 5.0)], [0.0] * 4)
    objects.present[3, 1] = False
    for seed in range(5):
        rng = np.random.default_rng(seed)
        found = choose_vehicles(objects, 3, CORNERS, far=False, rng=rng)
        assert found is not None
        assert set(found) == {0, 2}


def test_vehicle_sensor_is_on_the_roof() -> None:
    objects = standing(["Car"], np.array([[3.0, 4.0]]), np.array([0.5]), frames=2)
    placement = place(objects, SLOPE)
    agent = vehicle_agent(1, 0, objects, placement)
    up = rotations(placement.angles[0, 0])[:, 2]
    ground = placement.centres[0, 0] - objects.half_sizes[0, 2] * up
    np.testing.assert_allclose(agent.origins[0], ground + 1.9 * up)
    np.testing.assert_array_equal(agent.angles, placement.angles[:, 0])


def test_roadside_units_look_at_the_middle() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        units = roadside_units(Ground((0.0, 0.0)), CORNERS, 3, rng)
        assert [unit.agent_id for unit in units] == [-1, -2]
        for unit, (low, high) in zip(units, ((3.8, 5.0), (2.4, 2.9)), strict=True):
            assert unit.origins.shape == (3, 3)
            assert low <= unit.origins[0, 2] <= high
            assert np.abs(np.degrees(unit.angles[0, :2])).max() <= 3.0
            ahead = rotations(unit.angles[0])[:2, 0]
            towards = -unit.origins[0, :2] / np.linalg.norm(unit.origins[0, :2])
            assert ahead @ towards > 0.8


def test_blocks_keep_off_the_road_and_off_one_another() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        blocks = draw_blocks(junction_site(), SLOPE, rng)
        yaw = np.arctan2(blocks.rotations[:, 1, 0], blocks.rotations[:, 0, 0])
        reach = np.stack(
            [
                np.abs(np.cos(yaw)) * blocks.half_sizes[:, i]
                + np.abs(np.sin(yaw)) * blocks.half_sizes[:, 1 - i]
                for i in (0, 1)
            ],
            axis=-1,
        )
        clear = (np.abs(blocks.centres[:, :2]) - reach).min(axis=1)
        building = blocks.owners == BUILDING
        assert 12 <= building.sum() <= 25
        assert clear[building].min() >= 11.25 + 12.0 - 1e-9
        assert clear.min() > 11.25
        a, b = np.nonzero(np.triu(building[:, None] & building[None], k=1))
        parts = [(blocks.centres[i, :2], yaw[i], blocks.half_sizes[i, :2]) for i in (a, b)]
        assert not boxes_overlap(*parts).any()
        # Sunk enough that no corner hangs over the slope.
        bottom = blocks.centres[:, 2] - blocks.half_sizes[:, 2]
        ground = SLOPE.height(blocks.centres[:, 0], blocks.centres[:, 1])
        assert (ground - bottom > 0.05 * np.hypot(*blocks.half_sizes[:, :2].T)).all()


def test_scattered_blocks_keep_off_given_tracks() -> None:
    tracks = np.stack([np.linspace(-60, 60, 200), 0.2 * np.linspace(-60, 60, 200)], axis=-1)
    blocks = scatter_blocks(SLOPE, tracks, np.random.default_rng(0))
    building = blocks.owners == BUILDING
    away = np.linalg.norm(blocks.centres[:, None, :2] - tracks[None], axis=-1).min(axis=1)
    half = np.hypot(*blocks.half_sizes[:, :2].T)
    assert building.sum() > 5
    assert (away - half)[building].min() > 12.0
    assert away.min() > 3.0


def test_props() -> None:
    for seed in range(10):
        props = draw_props(junction_site(), 2, np.random.default_rng(seed))
        assert 2 <= len(props.types) <= 6
        assert set(props.types) <= {"TrashCan", "FireHydrant"}
        x, y = props.xy[0].T
        assert ROADS.off_road(x, y).all()
