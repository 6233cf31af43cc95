"""What befalls a neighbour's message: it comes late, its pose is wrong, or it is lost.

OpenCOOD's ``wild_setting`` (Xu et al., ICRA 2022; V2X-ViT, ECCV 2022): a message of latency d holds
the sender's cloud and pose of d ago, moved into the ego frame of now; a wrong pose is

    world_SE3_lidar = [Rz(a) R | t + n],   n ~ N(0, xyz_std^2) m,   a ~ N(0, ryp_std^2) degrees.

The ego and the labels are never touched. As upstream, latency counts in whole frames of 100 ms,
rounded down, and of ``ryp_std`` only the yaw is used. Our choices: upstream draws the same error
for every agent and frame of a run, ours is drawn per (seed, epoch, sample, agent) and holds for the
whole history an agent sends; where a recording lacks the cloud of d ago the newest one before it
has arrived, so that thinned recordings round a latency up; a neighbour whose first message is still
on its way is not heard (upstream shortens the latency there); drop-out, which upstream lacks, loses
the whole message.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.config import RunConfig, WildSetting
from turbotrain_plugin.data.formats.base import SceneIndex

__all__ = ["FRAME_S", "Disturbances", "Effect"]

_LOG = logging.getLogger(__name__)

FRAME_S: Final = 0.1
"""Seconds between two frames of a recording."""

_FRAME_MS: Final = 100.0
_ROUNDING_MS: Final = 1e-6
"""A transmission of 2.7 Mb at 27 Mb/s takes 100 ms in spite of binary fractions."""

# First word of the seeds; dataset.py and loader.py use 1 to 4.
_DISTURBANCE_DRAW: Final = 5


@dataclass(frozen=True, slots=True)
class Effect:
    """What befalls one neighbour in one sample.

    Attributes:
        lost: Whether its message never comes.
        delay_frames: Age of its newest frame, 10 Hz frames.
        shift_m: Error of its position along the world's x, y, z.
        turn_rad: Error of its yaw.
    """

    lost: bool = False
    delay_frames: int = 0
    shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn_rad: float = 0.0

    @property
    def delay_s(self) -> float:
        """Age of the newest frame in seconds."""
        return self.delay_frames * FRAME_S

    def pose(self, world_SE3_lidar: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pose (4, 4) that the neighbour believes to have."""
        cosine, sine = math.cos(self.turn_rad), math.sin(self.turn_rad)
        turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
        believed = world_SE3_lidar.copy()
        believed[:3, :3] = turn @ world_SE3_lidar[:3, :3]
        believed[:3, 3] += self.shift_m
        return believed


@dataclass(frozen=True, slots=True)
class Disturbances:
    """Draws effects; equal keys give equal effects, in whatever order and process they are asked.

    Attributes:
        wild: ``wild_setting``.
        drop_out: Share of messages that are lost.
    """

    wild: WildSetting
    drop_out: float

    @classmethod
    def from_config(cls, config: RunConfig) -> Disturbances | None:
        """Return the disturbances a hypes file asks for, None when it asks for none."""
        wild, drop_out = config.wild_setting, config.turbotrain.data.drop_out
        late = wild.async_ and (wild.async_mode == "real" or wild.async_overhead > 0)
        astray = wild.loc_err and (wild.xyz_std > 0 or wild.ryp_std > 0)
        if wild.async_ and wild.async_mode == "sim" and 0 < wild.async_overhead < _FRAME_MS:
            _LOG.warning(
                "wild_setting.async_overhead %g ms is less than a frame of 100 ms, so that no "
                "message is late.",
                wild.async_overhead,
            )
        return cls(wild, drop_out) if late or astray or drop_out > 0 else None

    def warn_of_thin_clouds(self, scenes: Sequence[SceneIndex]) -> None:
        """Say so where clouds are farther apart than the frames that latency counts in."""
        clouds = [frames.cloud_frames for scene in scenes for frames in scene.agents.values()]
        gaps = [later - earlier for c in clouds for earlier, later in pairwise(c)]
        apart = min(gaps, default=1)
        if self.wild.async_ and apart > 1:
            _LOG.warning(
                "Clouds are %d ms apart at least: a latency in between is rounded up to that.",
                apart * _FRAME_MS,
            )

    def draw(self, epoch: int, index: int, agent_id: int) -> Effect:
        """Return what befalls a neighbour in a sample of an epoch.

        All numbers are drawn whatever is switched on, and scaled afterwards: values of a sweep
        share their draws, and one disturbance does not change the others.
        """
        key = [_DISTURBANCE_DRAW, self.wild.seed, epoch, index, abs(agent_id), int(agent_id < 0)]
        rng = np.random.default_rng(key)
        lost, waiting = rng.random(2)
        x, y, z, yaw = rng.standard_normal(4)
        std_m, std_deg = (self.wild.xyz_std, self.wild.ryp_std) if self.wild.loc_err else (0, 0)
        return Effect(
            lost=bool(lost < self.drop_out),
            delay_frames=self._delay_frames(float(waiting)),
            shift_m=(float(x) * std_m, float(y) * std_m, float(z) * std_m),
            turn_rad=math.radians(float(yaw) * std_deg),
        )

    def _delay_frames(self, waiting: float) -> int:
        wild = self.wild
        if not wild.async_:
            return 0
        delay_ms = wild.async_overhead
        if wild.async_mode == "real":
            transmission_ms = wild.data_size / wild.transmission_speed * 1000
            delay_ms = waiting * wild.async_overhead + transmission_ms + wild.backbone_delay
        return int((delay_ms + _ROUNDING_MS) // _FRAME_MS)
