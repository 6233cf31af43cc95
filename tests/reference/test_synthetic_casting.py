"""Ray casting against the plain way: every ray against every box, ground found by marching."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.collisions import boxes_overlap
from turbotrain_plugin.synthetic.ground import Ground
from turbotrain_plugin.synthetic.lidar import RayGrid, Solids, cast
from turbotrain_plugin.synthetic.objects import rotations
from turbotrain_plugin.synthetic.presets import SensorModel

shapely = pytest.importorskip("shapely")

F64 = NDArray[np.float64]
RAYS = RayGrid.of(SensorModel(tuple(np.linspace(-24.0, 12.0, 25).tolist()), 180, 80.0))
GROUND = Ground((0.02, -0.03), 0.5, 0.3, (0.06, -0.05), 1.0)


def slow_box(origin: F64, ray: F64, centre: F64, R: F64, half: F64) -> float:
    """Distance to the nearest of the six faces that the ray meets from outside; inf if none."""
    best = np.inf
    for axis in range(3):
        for side in (-1.0, 1.0):
            normal = side * R[:, axis]
            falling = float(normal @ ray)
            if falling >= 0:
                continue
            t = float(normal @ (centre + half[axis] * normal - origin)) / falling
            within = (np.abs((origin + t * ray - centre) @ R) <= half + 1e-9) | (
                np.arange(3) == axis
            )
            if t > 0.05 and within.all():
                best = min(best, t)
    return best


def slow_ground(origin: F64, ray: F64) -> float:
    """First distance at which a march of 0.25 m steps passes the surface, then bisection."""
    t = np.arange(0.0, 80.25, 0.25)
    points = origin + t[:, None] * ray
    above = points[:, 2] - GROUND.height(points[:, 0], points[:, 1])
    below = np.nonzero(above < 0)[0]
    if not len(below):
        return np.inf
    low, high = t[below[0] - 1], t[below[0]]
    for _ in range(40):
        middle = 0.5 * (low + high)
        x, y, z = origin + middle * ray
        if z < float(GROUND.height(np.array(x), np.array(y))):
            high = middle
        else:
            low = middle
    return float(low)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_casting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 25
    angles = np.concatenate(
        [rng.uniform(-0.2, 0.2, (count, 2)), rng.uniform(-3, 3, (count, 1))], axis=1
    )
    solids = Solids(
        np.concatenate([rng.uniform(-45, 45, (count, 2)), rng.uniform(0, 3, (count, 1))], axis=1),
        rotations(angles),
        rng.uniform(0.2, 3.0, (count, 3)),
        np.arange(count),
        np.full(count, 0.5),
    )
    origin = np.array([0.0, 0.0, 5.5])
    clear = np.linalg.norm(solids.centres - origin, axis=1) > 7.0
    solids = solids.select(clear)
    R = rotations(np.array([0.05, -0.1, 0.7]))
    scan = cast(RAYS, R, origin, solids, GROUND)
    chosen = rng.choice(RAYS.directions.shape[1], 1200, replace=False)
    for index in chosen.tolist():
        ray = R @ RAYS.directions[:, index].astype(np.float64)
        distances = [
            slow_box(origin, ray, *box)
            for box in zip(solids.centres, solids.rotations, solids.half_sizes, strict=True)
        ]
        ground = slow_ground(origin, ray)
        expected = min([*distances, ground])
        found = float(scan.distances[index])
        if expected == np.inf:
            assert found > 80.0
        elif expected < 79.0 and found != pytest.approx(expected, abs=5e-3):
            # Only a ray that grazes an edge or the ground may be judged otherwise.
            assert _grazes(ray, origin, solids, distances, ground)


def _grazes(ray: F64, origin: F64, solids: Solids, distances: list[float], ground: float) -> bool:
    """Whether a ray turned by a hundredth of a degree changes what is hit."""
    sideways = np.cross(ray, [0.0, 0.0, 1.0])
    sideways /= np.linalg.norm(sideways)
    upwards = np.cross(sideways, ray)
    expected = min([*distances, ground])
    for turn in (sideways, -sideways, upwards, -upwards):
        other = ray + 2e-4 * turn
        other /= np.linalg.norm(other)
        again = [
            slow_box(origin, other, *box)
            for box in zip(solids.centres, solids.rotations, solids.half_sizes, strict=True)
        ]
        if abs(min([*again, slow_ground(origin, other)]) - expected) > 0.05:
            return True
    return False


def test_overlap_of_rectangles() -> None:
    rng = np.random.default_rng(0)
    count = 400

    def draw() -> tuple[F64, F64, F64]:
        return (
            rng.uniform(-3, 3, (count, 2)),
            rng.uniform(-4, 4, count),
            rng.uniform(0.2, 2.5, (count, 2)),
        )

    def polygon(part: tuple[F64, F64, F64], i: int) -> object:
        centre, yaw, half = part[0][i], part[1][i], part[2][i]
        corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * half
        c, s = np.cos(yaw), np.sin(yaw)
        return shapely.Polygon(corners @ np.array([[c, s], [-s, c]]) + centre)

    a, b = draw(), draw()
    found = boxes_overlap(a, b)
    expected = [shapely.intersects(polygon(a, i), polygon(b, i)) for i in range(count)]
    assert 0.2 < np.mean(expected) < 0.8
    np.testing.assert_array_equal(found, expected)
