"""How large a made-up data set is and how its sensors see.

The sensor tiers follow real packages (128-beam vehicle, 64/128-beam roadside LiDAR) and thinner
versions of them for machines without a GPU. All numbers here are our choice.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.errors import UserError

__all__ = [
    "PRESETS",
    "REAL_NOISE",
    "SPEC_VERSION",
    "SPLITS",
    "LabelNoise",
    "Preset",
    "SensorModel",
]

SPEC_VERSION: Final = 1
"""Raised whenever the same seed would give other files; part of every cache folder's name."""

SPLITS: Final = ("train", "val", "test")
"""Folder names of the splits, in the order scenes are numbered."""


@dataclass(frozen=True, slots=True)
class SensorModel:
    """Rays of one LiDAR model.

    Attributes:
        elevations_deg: E beam elevations in degrees, rising.
        columns: Azimuth steps of one turn.
        max_range_m: Farther hits are lost.
    """

    elevations_deg: tuple[float, ...]
    columns: int
    max_range_m: float

    def elevations_rad(self) -> NDArray[np.float64]:
        """Return the (E,) elevations in radians."""
        return np.radians(np.asarray(self.elevations_deg, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Flaws of real labels and files; all off by default.

    Attributes:
        jitter_standing_m: Standard deviation of the centre of a standing object.
        jitter_moving_m: Standard deviation along the track of a moving object.
        staircase_share: Share of pedestrians whose label advances in hops.
        flip_share: Share of tracks labelled with the heading reversed.
        duplicate_share: Share of objects that the second agent labels under another id.
        missing_share: Share of (object, frame) labels left out.
        nan_share: Share of points whose coordinates are NaN.
    """

    jitter_standing_m: float = 0.0
    jitter_moving_m: float = 0.0
    staircase_share: float = 0.0
    flip_share: float = 0.0
    duplicate_share: float = 0.0
    missing_share: float = 0.0
    nan_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative numbers and shares above 1."""
        for key, value in asdict(self).items():
            most = 1.0 if key.endswith("_share") else math.inf
            if not 0.0 <= value <= most or math.isinf(value):
                raise ValueError(
                    f"Parameter `{key}` should be a finite number >= 0"
                    f"{' and <= 1' if most == 1.0 else ''}. Found {value}."
                )

    @classmethod
    def parse(cls, text: str) -> LabelNoise:
        """Return the noise of a text such as ``real`` or ``flip_share=0.02,nan_share=0.001``.

        ``real`` stands for what was measured on real labels; what comes after it replaces parts.

        Raises:
            UserError: For an unknown name or an impossible value.
        """
        parts = [part.strip() for part in text.split(",")]
        values = asdict(REAL_NOISE if parts[0] == "real" else cls())
        for part in parts[1:] if parts[0] == "real" else parts:
            name, _, value = part.partition("=")
            if name not in values:
                raise UserError(
                    f"noise {part!r} is unknown; write 'real', or KEY=VALUE with one of "
                    f"{', '.join(values)}."
                )
            try:
                values[name] = float(value)
            except ValueError as error:
                raise UserError(f"noise {part!r} should give a number.") from error
        try:
            return cls(**values)
        except ValueError as error:
            raise UserError(str(error)) from error


REAL_NOISE: Final = LabelNoise(
    jitter_standing_m=0.025,
    jitter_moving_m=0.08,
    staircase_share=0.3,
    flip_share=0.013,
    duplicate_share=0.02,
    missing_share=0.02,
    nan_share=0.001,
)
"""About what real V2XPnP-Seq labels were found to have."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One size of data set.

    Attributes:
        name: Name in ``PRESETS``; written into the data set.
        scenes: Scenes of train, val and test.
        frames: 10 Hz frames of a scene; 5 n + 1 makes the 2 Hz grid fit exactly.
        vehicle: LiDAR of the connected vehicles.
        roadside: LiDAR of the roadside units.
        cloud_stride: Clouds are written at frames divisible by this.
        label_stride: Labels are written at frames divisible by this.
        noise: Flaws of labels and files.
        layouts: Layouts of the scenes by their numbers, over and over.
    """

    name: str
    scenes: tuple[int, int, int]
    frames: int
    vehicle: SensorModel
    roadside: SensorModel
    cloud_stride: int = 1
    label_stride: int = 1
    noise: LabelNoise = LabelNoise()
    layouts: tuple[str, ...] = ("junction",)

    def __post_init__(self) -> None:
        """Refuse strides that would leave a cloud without labels."""
        if min(self.cloud_stride, self.label_stride) < 1 or self.cloud_stride % self.label_stride:
            raise ValueError(
                "Parameter `cloud_stride` should be a multiple of `label_stride` >= 1. "
                f"Found {self.cloud_stride} and {self.label_stride}."
            )
        if self.frames < 1 or min(self.scenes) < 0:
            raise ValueError(
                "Parameters `frames` and `scenes` should be positive. "
                f"Found {self.frames} and {self.scenes}."
            )

    def layout_of(self, number: int) -> str:
        """Return the layout of a scene, by its number in the data set."""
        return self.layouts[number % len(self.layouts)]

    def digest(self) -> str:
        """Return 16 hex digits that change with anything in the preset."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def _uniform(low: float, high: float, beams: int) -> tuple[float, ...]:
    return tuple(float(angle) for angle in np.linspace(low, high, beams))


def _dense_128() -> tuple[float, ...]:
    """Return 128 elevations from -25 to 15 degrees, dense around the horizon."""
    return _uniform(-25.0, -6.5, 30) + _uniform(-6.0, 4.0, 82) + _uniform(4.5, 15.0, 16)


_MIXED: Final = ("junction", "junction", "junction", "corridor")
"""Most scenes of the real data are at the junction, a few in corridors."""

PRESETS: Final[dict[str, Preset]] = {
    "tiny": Preset(
        name="tiny",
        scenes=(24, 3, 4),
        frames=81,
        vehicle=SensorModel(_uniform(-22.0, 4.0, 16), 450, 100.0),
        roadside=SensorModel(_uniform(-22.5, 12.0, 16), 256, 100.0),
        cloud_stride=5,
        label_stride=5,
    ),
    "small": Preset(
        name="small",
        scenes=(4, 1, 1),
        frames=61,
        vehicle=SensorModel(_uniform(-25.0, 10.0, 32), 900, 120.0),
        roadside=SensorModel(_uniform(-22.5, 22.5, 32), 512, 120.0),
        layouts=_MIXED,
    ),
    "bench": Preset(
        name="bench",
        scenes=(24, 4, 8),
        frames=101,
        vehicle=SensorModel(_dense_128()[::2], 1800, 150.0),
        roadside=SensorModel(_uniform(-22.5, 22.5, 64), 1024, 120.0),
        cloud_stride=5,
        layouts=_MIXED,
    ),
    "probe": Preset(
        name="probe",
        scenes=(1, 0, 0),
        frames=56,
        vehicle=SensorModel(_dense_128()[::2], 1800, 150.0),
        roadside=SensorModel(_uniform(-22.5, 22.5, 64), 1024, 120.0),
        cloud_stride=5,
        label_stride=5,
    ),
}
"""Tiny: a demo on a CPU, many scenes on the 2 Hz grid. Small: tests. Bench: a GPU.
Probe: one scene with bench's sensors, to measure a single step."""
