"""A LiDAR that is cast: nearest hit among ground and boxes, then loss and noise.

Rays form a grid (beam, column). A box is tested only against the rays whose row and column it can
touch: its azimuth span is exact (the extreme azimuths of a box are those of its corners), its
elevation span is a bound. All such (ray, box) pairs of a scan go through one slab test.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.synthetic.ground import KERB_HEIGHT_M, Ground
from turbotrain_plugin.synthetic.presets import SensorModel

__all__ = ["GROUND", "RayGrid", "Scan", "Solids", "cast", "measure"]

GROUND: Final = -1
"""Owner of a ground hit. Static blocks have ``STATIC``, objects their index."""

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_CORNERS: Final = np.array(
    [[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)]
)
_PAIRS_PER_CHUNK: Final = 400_000
_GROUND_INTENSITY: Final = 0.15
_PAVED_INTENSITY: Final = 0.25


@dataclass(frozen=True, slots=True)
class Solids:
    """K oriented boxes in the layout frame.

    Attributes:
        centres: (K, 3) metres.
        rotations: (K, 3, 3), box axes as columns.
        half_sizes: (K, 3) metres.
        owners: (K,) int64, object index or below ``GROUND`` for what is never labelled.
        intensities: (K,) in [0, 1].
    """

    centres: F64
    rotations: F64
    half_sizes: F64
    owners: NDArray[np.int64]
    intensities: F64

    def __add__(self, other: Solids) -> Solids:
        """Return both lists, one after the other."""
        return Solids(
            np.concatenate([self.centres, other.centres]),
            np.concatenate([self.rotations, other.rotations]),
            np.concatenate([self.half_sizes, other.half_sizes]),
            np.concatenate([self.owners, other.owners]),
            np.concatenate([self.intensities, other.intensities]),
        )

    def select(self, keep: NDArray[Any]) -> Solids:
        """Return the boxes of a mask or an index array."""
        return Solids(
            self.centres[keep],
            self.rotations[keep],
            self.half_sizes[keep],
            self.owners[keep],
            self.intensities[keep],
        )


@dataclass(frozen=True, slots=True)
class RayGrid:
    """Unit directions of a sensor's rays in its own frame.

    Attributes:
        elevations: (E,) float64 rad, rising.
        columns: Number of azimuth steps; column c looks at -pi + (c + 0.5) * step.
        directions: (3, E * columns) float32.
        max_range_m: Farther hits are lost.
    """

    elevations: F64
    columns: int
    directions: F32
    max_range_m: float

    @classmethod
    def of(cls, model: SensorModel) -> RayGrid:
        """Return the rays of a sensor model."""
        elevation = model.elevations_rad()[:, None]
        azimuth = (-np.pi + (np.arange(model.columns) + 0.5) * 2 * np.pi / model.columns)[None]
        directions = np.stack(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.broadcast_to(np.sin(elevation), (elevation.size, azimuth.size)),
            ]
        )
        flat = directions.reshape(3, -1).astype(np.float32)
        return cls(elevation[:, 0], model.columns, flat, model.max_range_m)


@dataclass(frozen=True, slots=True)
class Scan:
    """One value per ray of the grid, before loss and noise.

    Attributes:
        distances: (R,) float32 metres; inf where nothing is hit.
        cosines: (R,) float32, cosine of the angle between ray and surface normal.
        owners: (R,) int64, ``GROUND``, an object index, or another negative number.
        intensities: (R,) float32.
    """

    distances: F32
    cosines: F32
    owners: NDArray[np.int64]
    intensities: F32


def cast(rays: RayGrid, rotation: F64, origin: F64, solids: Solids, ground: Ground) -> Scan:
    """Return the nearest hit of every ray.

    Args:
        rays: Rays in the sensor frame.
        rotation: (3, 3), sensor axes as columns, in the layout frame.
        origin: (3,), sensor position in the layout frame.
        solids: Boxes that can be hit.
        ground: The surface that can be hit.
    """
    scan = _cast_ground(rays, rotation, origin, ground)
    best = scan.distances.view(np.int32).astype(np.int64) << 32
    local_centres = (solids.centres - origin) @ rotation
    near = np.linalg.norm(local_centres, axis=1) < (
        rays.max_range_m + np.linalg.norm(solids.half_sizes, axis=1)
    )
    chosen = np.nonzero(near)[0]
    axes = np.einsum("ji,kjl->kil", rotation, solids.rotations[chosen])
    spans = _spans(rays, local_centres[chosen], axes, solids.half_sizes[chosen])
    sizes = spans.rows * spans.columns
    for part in _chunks(sizes):
        _hit_boxes(
            rays,
            spans.select(part),
            _Boxes(local_centres[chosen[part]], axes[part], solids.half_sizes[chosen[part]]),
            chosen[part],
            best,
            scan,
            solids,
        )
    return scan


def measure(
    rays: RayGrid, scan: Scan, rng: np.random.Generator, *, blackout: bool = False
) -> tuple[F32, NDArray[np.int64]]:
    """Return what the sensor reports: lost returns removed, ranges noisy.

    Return probability 1.25 cos^0.35 exp(-(r/90)^2), at most 0.97, then 1 % random loss; range
    noise 2 cm plus 0.1 % of the range, added in quadrature.

    Args:
        rays: The rays that were cast.
        scan: Their hits.
        rng: Source of all randomness; the number of draws depends on the number of hits only.
        blackout: Whether a sector of 20 to 60 degrees is lost.

    Returns:
        (P, 4) float32 x, y, z, intensity in the sensor frame, and (P,) owners.
    """
    hit = np.nonzero(scan.distances <= rays.max_range_m)[0]
    distance = scan.distances[hit]
    probability = 1.25 * np.clip(scan.cosines[hit], 0.0, 1.0) ** 0.35
    probability *= np.exp(-((distance / 90.0) ** 2))
    keep = rng.random(len(hit), dtype=np.float32) < np.minimum(probability, 0.97) * 0.99
    noise = rng.standard_normal(len(hit), dtype=np.float32)
    if blackout:
        start, width = rng.uniform(0, rays.columns), rng.uniform(20, 60) / 360 * rays.columns
        keep &= (hit % rays.columns - start) % rays.columns >= width
    hit, distance, noise = hit[keep], distance[keep], noise[keep]
    distance = distance + noise * np.sqrt(0.02**2 + (0.001 * distance) ** 2, dtype=np.float32)
    points = np.empty((len(hit), 4), np.float32)
    points[:, :3] = (rays.directions[:, hit] * distance).T
    points[:, 3] = scan.intensities[hit]
    return points, scan.owners[hit]


# ------------------------------------------------------------------------------------------- ground


def _cast_ground(rays: RayGrid, rotation: F64, origin: F64, ground: Ground) -> Scan:
    R = rotation.astype(np.float32)
    d = rays.directions
    dx, dy, dz = (R[i, 0] * d[0] + R[i, 1] * d[1] + R[i, 2] * d[2] for i in range(3))
    count = len(dx)
    distances = np.full(count, np.inf, np.float32)
    cosines = np.zeros(count, np.float32)
    intensities = np.full(count, _GROUND_INTENSITY, np.float32)
    # Only rays that fall faster than the plane can meet it within range.
    steep = dz - ground.grade[0] * dx - ground.grade[1] * dy
    height = origin[2] - float(ground.carriageway(origin[0], origin[1]))
    down = np.nonzero(steep < -0.3 * max(height, 0.5) / rays.max_range_m)[0]
    ray = np.stack([dx[down], dy[down], dz[down]])
    start = origin.astype(np.float32)
    t = np.minimum(-np.float32(height) / steep[down], np.float32(1.5 * rays.max_range_m))
    for _ in range(4):
        error, slope, _, _ = _clearance(ray, start, t, ground)
        t = t - error / slope
    if ground.roads is not None:
        # The raised surface is met a little earlier; between both lies the face of the kerb.
        _, slope, x, y = _clearance(ray, start, t, ground)
        early = t + np.float32(KERB_HEIGHT_M) / slope
        x_early, y_early = start[0] + early * ray[0], start[1] + early * ray[1]
        raised = ground.roads.off_road(x_early, y_early)
        face = ~raised & ground.roads.off_road(x, y)
        t = np.where(raised, early, np.where(face, 0.5 * (t + early), t))
        intensities[down[raised | face]] = _PAVED_INTENSITY
        error, slope, x, y = _clearance(ray, start, t, ground)
        error = np.where(raised, error - np.float32(KERB_HEIGHT_M), np.where(face, 0.0, error))
    else:
        error, slope, x, y = _clearance(ray, start, t, ground)
    good = (np.abs(error) < 0.02) & (t > 0) & (slope < 0)
    gx, gy = ground.gradient(x, y)
    cosine = -slope / np.sqrt(1 + gx * gx + gy * gy)
    distances[down[good]] = t[good]
    cosines[down[good]] = cosine[good]
    return Scan(distances, cosines, np.full(count, GROUND, np.int64), intensities)


def _clearance(ray: F32, start: F32, t: F32, ground: Ground) -> tuple[F32, F32, F32, F32]:
    """Return height over the carriageway, its change per metre of ray, and x, y; each (R,)."""
    x, y = start[0] + t * ray[0], start[1] + t * ray[1]
    gx, gy = ground.gradient(x, y)
    clearance = start[2] + t * ray[2] - ground.carriageway(x, y)
    slope = ray[2] - gx * ray[0] - gy * ray[1]
    return clearance, np.minimum(slope, np.float32(-1e-4)), x, y


# -------------------------------------------------------------------------------------------- boxes


@dataclass(frozen=True, slots=True)
class _Spans:
    """Rows and columns of the ray grid that K boxes can touch: first and count, each (K,)."""

    first_row: NDArray[np.int64]
    rows: NDArray[np.int64]
    first_column: NDArray[np.int64]
    columns: NDArray[np.int64]

    def select(self, part: slice) -> _Spans:
        return _Spans(
            self.first_row[part], self.rows[part], self.first_column[part], self.columns[part]
        )


@dataclass(frozen=True, slots=True)
class _Boxes:
    """K boxes in the sensor frame."""

    centres: F64
    axes: F64
    half_sizes: F64


def _spans(rays: RayGrid, centres: F64, axes: F64, half_sizes: F64) -> _Spans:
    corners = np.einsum("kil,kcl->kci", axes, _CORNERS * half_sizes[:, None])
    reach = np.hypot(corners[..., 0], corners[..., 1]).max(axis=1)
    corners = corners + centres[:, None]
    distance = np.hypot(centres[:, 0], centres[:, 1])
    bearing = np.arctan2(centres[:, 1], centres[:, 0])
    offset = np.arctan2(corners[..., 1], corners[..., 0]) - bearing[:, None]
    offset = (offset + np.pi) % (2 * np.pi) - np.pi
    step = 2 * np.pi / rays.columns
    low = np.ceil((bearing + offset.min(axis=1) + np.pi) / step - 0.5 - 1e-6)
    high = np.floor((bearing + offset.max(axis=1) + np.pi) / step - 0.5 + 1e-6)
    around = distance <= reach  # the sensor may stand over the box
    first_column = np.where(around, 0, low).astype(np.int64)
    columns = np.where(around, rays.columns, np.maximum(high - low + 1, 0)).astype(np.int64)
    nearest = np.maximum(distance - reach, 1e-3)
    farthest = distance + reach
    top, bottom = corners[..., 2].max(axis=1), corners[..., 2].min(axis=1)
    highest = np.arctan2(top, np.where(top > 0, nearest, farthest))
    lowest = np.arctan2(bottom, np.where(bottom > 0, farthest, nearest))
    first_row = np.searchsorted(rays.elevations, lowest - 1e-6)
    rows = np.searchsorted(rays.elevations, highest + 1e-6) - first_row
    return _Spans(first_row.astype(np.int64), rows.astype(np.int64), first_column, columns)


def _chunks(sizes: NDArray[np.int64]) -> list[slice]:
    """Return consecutive parts of about ``_PAIRS_PER_CHUNK`` (ray, box) pairs each."""
    group = np.cumsum(sizes) // _PAIRS_PER_CHUNK
    edges = [*np.nonzero(np.diff(group, prepend=-1))[0].tolist(), len(sizes)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _hit_boxes(
    rays: RayGrid,
    spans: _Spans,
    boxes: _Boxes,
    numbers: NDArray[np.int64],
    best: NDArray[np.int64],
    scan: Scan,
    solids: Solids,
) -> None:
    """Slab test of all pairs; writes nearer hits into ``best`` and ``scan``."""
    sizes = spans.rows * spans.columns
    box = np.repeat(np.arange(len(sizes)), sizes)
    within = np.arange(len(box)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    row, column = np.divmod(within, spans.columns[box])
    column = (column + spans.first_column[box]) % rays.columns
    ray = (row + spans.first_row[box]) * rays.columns + column
    enter, leave, cosine = _slabs(rays.directions[:, ray], boxes, box)
    hit = np.nonzero((enter <= leave) & (enter > 0.05))[0]
    # A positive float32 orders as its bits do: distance above, number of the hit below.
    key = (enter[hit].view(np.int32).astype(np.int64) << 32) | hit
    np.minimum.at(best, ray[hit], key)
    won = hit[best[ray[hit]] == key]
    target = ray[won]
    scan.distances[target] = enter[won]
    scan.cosines[target] = cosine[won]
    scan.owners[target] = solids.owners[numbers[box[won]]]
    scan.intensities[target] = solids.intensities[numbers[box[won]]]
    best[target] = enter[won].view(np.int32).astype(np.int64) << 32


def _slabs(directions: F32, boxes: _Boxes, box: NDArray[np.int64]) -> tuple[F32, F32, F32]:
    """Return distance of entry and exit and the cosine at entry of N pairs, each (N,) float32."""
    axes = boxes.axes.astype(np.float32)
    start = -np.einsum("kij,ki->kj", boxes.axes, boxes.centres).astype(np.float32)
    half = boxes.half_sizes.astype(np.float32)
    enter = np.full(len(box), -np.inf, np.float32)
    leave = np.full(len(box), np.inf, np.float32)
    cosine = np.zeros(len(box), np.float32)
    for axis in range(3):
        a = axes[:, :, axis]
        along = directions[0] * a[box, 0] + directions[1] * a[box, 1] + directions[2] * a[box, 2]
        along = np.where(np.abs(along) < 1e-7, np.float32(1e-7), along)
        middle = -start[box, axis] / along
        width = np.abs(half[box, axis] / along)
        near = middle - width
        later = near > enter
        enter = np.where(later, near, enter)
        cosine = np.where(later, np.abs(along), cosine)
        leave = np.minimum(leave, middle + width)
    return enter, leave, cosine
