"""Ray casting against cases whose answer geometry gives."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import CrossRoads, Ground
from turbotrain_plugin.synthetic.lidar import GROUND, RayGrid, Scan, Solids, cast, measure
from turbotrain_plugin.synthetic.objects import rotations
from turbotrain_plugin.synthetic.presets import SensorModel

F64 = NDArray[np.float64]
FLAT = Ground((0.0, 0.0))
MODEL = SensorModel(tuple(np.linspace(-30.0, 10.0, 81).tolist()), 720, 100.0)
RAYS = RayGrid.of(MODEL)
EYE = np.eye(3)
UP = np.array([0.0, 0.0, 2.0])


def boxes(*rows: tuple[float, ...]) -> Solids:
    """Boxes of (x, y, z, half length, half width, half height, yaw); owners 0, 1, ..."""
    table = np.array(rows).reshape(-1, 7)
    angles = np.stack([0 * table[:, 6], 0 * table[:, 6], table[:, 6]], axis=-1)
    count = len(table)
    return Solids(
        table[:, :3], rotations(angles), table[:, 3:6], np.arange(count), np.full(count, 0.5)
    )


def hits(scan: Scan, owner: int) -> F64:
    """(P, 3) points of one owner, sensor frame."""
    mine = scan.owners == owner
    if owner == GROUND:
        mine &= np.isfinite(scan.distances)
    return np.asarray((RAYS.directions[:, mine] * scan.distances[mine]).T, dtype=np.float64)


def test_flat_ground() -> None:
    scan = cast(RAYS, EYE, UP, boxes(), FLAT)
    points = hits(scan, GROUND)
    np.testing.assert_allclose(points[:, 2], -2.0, atol=1e-4)
    elevation = np.arcsin(RAYS.directions[2])
    expected = -np.tan(elevation) > 2.0 / MODEL.max_range_m * 1.2
    assert np.isfinite(scan.distances)[expected].all()
    assert not np.isfinite(scan.distances)[elevation >= 0].any()
    hit = np.isfinite(scan.distances)
    np.testing.assert_allclose(scan.cosines[hit], -np.sin(elevation[hit]), atol=1e-5)


@pytest.mark.parametrize("tilt_deg", [0.0, 3.0, 15.0])
def test_wavy_ground_from_a_tilted_sensor(tilt_deg: float) -> None:
    ground = Ground((0.03, -0.02), 1.0, 0.3, (0.05, 0.06), 0.4)
    R = rotations(np.radians([tilt_deg, -tilt_deg, 40.0]))
    origin = np.array([5.0, -7.0, float(ground.height(np.array(5.0), np.array(-7.0))) + 4.0])
    points = hits(cast(RAYS, R, origin, boxes(), ground), GROUND) @ R.T + origin
    assert len(points) > 10_000
    error = points[:, 2] - ground.height(points[:, 0], points[:, 1])
    assert np.abs(error).max() < 0.021
    assert np.median(np.abs(error)) < 1e-4


def test_kerbs_are_steps() -> None:
    """On the carriageway height 0, behind the kerb 0.15, on the face of the kerb between."""
    ground = Ground((0.0, 0.0), roads=CrossRoads(10.0, 6.0))
    origin = np.array([0.0, 0.0, 3.0])
    points = hits(cast(RAYS, EYE, origin, boxes(), ground), GROUND) + origin
    away = np.abs(points[:, :2]).min(axis=1)
    road, pavement = points[away < 9.5], points[away > 16.5]
    np.testing.assert_allclose(road[:, 2], 0.0, atol=1e-4)
    np.testing.assert_allclose(pavement[:, 2], 0.15, atol=1e-4)
    assert points[:, 2].min() > -1e-3
    assert points[:, 2].max() < 0.15 + 1e-3


def test_front_face_of_a_box() -> None:
    scan = cast(RAYS, EYE, UP, boxes((20.0, 0.0, 1.0, 2.0, 1.0, 1.0, 0.0)), FLAT)
    points = hits(scan, 0)
    on_front = np.abs(points[:, 0] - 18.0) < 1e-3
    on_roof = np.abs(points[:, 2]) < 1e-3
    assert (on_front | on_roof).all()
    assert on_front.sum() > 50
    assert np.abs(points[:, 1]).max() <= 1.0 + 1e-4
    # 18 m away a box 2 m wide spans atan(1 / 18) to either side, in steps of half a degree.
    bearings = np.arange(0.25, np.degrees(np.arctan(1 / 18)), 0.5)
    columns = np.unique(np.round(np.degrees(np.arctan2(points[:, 1], points[:, 0])), 3))
    np.testing.assert_allclose(columns, [*-bearings[::-1], *bearings], atol=2e-3)


def test_a_car_behind_a_truck_is_not_seen() -> None:
    truck = (10.0, 0.0, 1.7, 4.0, 1.3, 1.7, 0.0)
    car = (22.0, 0.0, 0.8, 2.3, 0.95, 0.8, 0.0)
    assert len(hits(cast(RAYS, EYE, UP, boxes(truck, car), FLAT), 1)) == 0
    beside = (22.0, 6.0, 0.8, 2.3, 0.95, 0.8, 0.0)
    assert len(hits(cast(RAYS, EYE, UP, boxes(truck, beside), FLAT), 1)) > 20
    # The order of the list decides nothing.
    assert len(hits(cast(RAYS, EYE, UP, boxes(car, truck), FLAT), 0)) == 0


def test_boxes_cast_shadows_on_the_ground() -> None:
    box = boxes((15.0, 0.0, 2.0, 0.5, 3.0, 3.0, 0.0))
    points = hits(cast(RAYS, EYE, UP, box, FLAT), GROUND)
    bearing = np.abs(np.arctan2(points[:, 1], points[:, 0]))
    assert points[bearing < np.arctan(3 / 15), 0].max() < 14.6


def test_box_across_the_seam_of_the_grid() -> None:
    """Azimuth jumps from pi to -pi straight behind the sensor."""
    behind = cast(RAYS, EYE, UP, boxes((-20.0, 0.0, 1.0, 2.0, 1.0, 1.0, 0.0)), FLAT)
    before = cast(RAYS, EYE, UP, boxes((20.0, 0.0, 1.0, 2.0, 1.0, 1.0, 0.0)), FLAT)
    assert (behind.owners == 0).sum() == (before.owners == 0).sum() > 0


def test_sensor_over_a_box() -> None:
    """A sensor above a roof sees it all around; the azimuth span of the box is the whole turn."""
    scan = cast(RAYS, EYE, UP, boxes((0.1, 0.1, 0.5, 9.0, 9.0, 0.5, 0.3)), FLAT)
    np.testing.assert_allclose(hits(scan, 0)[:, 2], -1.0, atol=1e-4)
    columns = np.nonzero(scan.owners == 0)[0] % MODEL.columns
    assert len(np.unique(columns)) == MODEL.columns


def test_many_pairs_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [(*rng.uniform(-40, 40, 2), 1.0, 2.0, 1.0, 1.0, rng.uniform(-3, 3)) for _ in range(60)]
    whole = cast(RAYS, EYE, UP, boxes(*rows), FLAT)
    monkeypatch.setattr("turbotrain_plugin.synthetic.lidar._PAIRS_PER_CHUNK", 500)
    parts = cast(RAYS, EYE, UP, boxes(*rows), FLAT)
    np.testing.assert_array_equal(whole.distances, parts.distances)
    np.testing.assert_array_equal(whole.owners, parts.owners)


def flat_scan(distance: float, cosine: float, count: int = 40_000) -> tuple[RayGrid, Scan]:
    directions = np.tile(np.array([[1.0], [0.0], [0.0]], np.float32), count)
    rays = RayGrid(np.zeros(1), count, directions, 100.0)
    full = np.full(count, distance, np.float32)
    scan = Scan(
        full,
        np.full(count, cosine, np.float32),
        np.zeros(count, np.int64),
        np.full(count, 0.5, np.float32),
    )
    return rays, scan


@pytest.mark.parametrize(
    ("distance", "cosine", "expected"),
    [
        (5.0, 1.0, 0.97 * 0.99),
        (80.0, 1.0, 1.25 * np.exp(-((80 / 90) ** 2)) * 0.99),
        (20.0, 0.1, 1.25 * 0.1**0.35 * np.exp(-((20 / 90) ** 2)) * 0.99),
        (101.0, 1.0, 0.0),
    ],
)
def test_return_probability(distance: float, cosine: float, expected: float) -> None:
    rays, scan = flat_scan(distance, cosine)
    points, owners = measure(rays, scan, np.random.default_rng(0))
    assert len(points) == len(owners)
    assert len(points) / 40_000 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("distance", [5.0, 60.0])
def test_range_noise(distance: float) -> None:
    rays, scan = flat_scan(distance, 1.0)
    points, _ = measure(rays, scan, np.random.default_rng(0))
    assert points[:, 0].mean() == pytest.approx(distance, abs=0.002)
    assert points[:, 0].std() == pytest.approx(np.hypot(0.02, 0.001 * distance), rel=0.03)
    np.testing.assert_array_equal(points[:, 3], 0.5)


def test_blackout_takes_one_sector() -> None:
    scan = cast(RAYS, EYE, UP, boxes(), FLAT)
    points, _ = measure(RAYS, scan, np.random.default_rng(3), blackout=True)
    bearing = np.sort(np.arctan2(points[:, 1], points[:, 0]))
    gaps = np.degrees(np.diff(bearing, append=bearing[0] + 2 * np.pi))
    assert 19.0 < gaps.max() < 61.0
    assert np.sort(gaps)[-2] < 2.0


def test_same_generator_same_points() -> None:
    scan = cast(RAYS, EYE, UP, boxes(), FLAT)
    a, _ = measure(RAYS, scan, np.random.default_rng(1))
    b, _ = measure(RAYS, scan, np.random.default_rng(1))
    np.testing.assert_array_equal(a, b)
