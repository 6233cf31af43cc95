"""Which windows of a recording are samples, and which agent is the ego.

A window is a scene and a current position k on its 10 Hz grid. Its history are the T positions
``k - (T - 1) * step ... k`` and its future the F positions ``k + step ... k + F * step``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures import INFRASTRUCTURE, VEHICLE

__all__ = ["MODES", "ClipIndex", "ClipOptions", "Mode", "Window", "agent_type", "choose_ego"]

_LOG = logging.getLogger(__name__)


class Mode(NamedTuple):
    """Agents of a ``dataset_mode``.

    Attributes:
        leading: Type an ego must have.
        others: Whether agents of the other type cooperate.
    """

    leading: int
    others: bool


MODES: Final[dict[str, Mode]] = {
    "vc": Mode(VEHICLE, others=True),
    "ic": Mode(INFRASTRUCTURE, others=True),
    "v2v": Mode(VEHICLE, others=False),
    "i2i": Mode(INFRASTRUCTURE, others=False),
}
"""Name in YAML to agents: vehicle-centred, infrastructure-centred, one kind only."""


class Window(NamedTuple):
    """A sample: position of the scene in the reader's list and current 10 Hz position."""

    scene: int
    frame: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipOptions:
    """The keys of a hypes file that decide what a sample contains.

    Attributes:
        mode: Key of ``MODES``.
        comm_range_m: Largest planar LiDAR distance to the ego, inclusive.
        max_agents: Agents kept, ego first, then the nearest.
        range_m: Point range x, y, z min, then max.
        hist_frames: T, past frames including the current one.
        future_steps: F.
        step_frames: 10 Hz frames between two steps.
        sample_stride: 10 Hz frames between two current times.
        require_history: Keep only windows with T - 1 steps of recording behind.
        require_future: Keep only windows with F steps of recording ahead.
        pad: ``empty`` or ``repeat``.
        future_fill: ``none``, ``interpolate`` or ``interpolate_and_hold``.
        classes: Raw class names that are objects.
        min_points: Current points an object needs.
        zero_intensity: Whether the intensity column is set to zero.
        with_map: Whether the vector map is read.
        with_labels: Whether labels are read.
    """

    mode: str
    comm_range_m: float
    max_agents: int
    range_m: tuple[float, float, float, float, float, float]
    hist_frames: int
    future_steps: int
    step_frames: int
    sample_stride: int = 1
    require_history: bool = False
    require_future: bool = False
    pad: str = "empty"
    future_fill: str = "interpolate"
    classes: tuple[str, ...] = ()
    min_points: int = 1
    zero_intensity: bool = True
    with_map: bool = True
    with_labels: bool = True

    @classmethod
    def from_config(cls, config: RunConfig, *, with_labels: bool, with_map: bool) -> ClipOptions:
        """Collect the options from a resolved hypes file."""
        data = config.turbotrain.data
        return cls(
            mode=config.dataset_mode,
            comm_range_m=config.comm_range,
            max_agents=config.train_params.max_cav,
            range_m=config.preprocess.cav_lidar_range,
            hist_frames=data.hist_frames,
            future_steps=data.future_steps,
            step_frames=data.step_frames,
            sample_stride=data.sample_stride,
            require_history=data.require_history,
            require_future=data.require_future,
            pad=data.pad,
            future_fill=data.future_fill,
            classes=data.classes,
            min_points=data.min_points,
            zero_intensity=data.zero_intensity,
            with_map=with_map,
            with_labels=with_labels,
        )

    def history_offsets(self) -> tuple[int, ...]:
        """Return the T offsets in 10 Hz frames, oldest first, 0 last."""
        return tuple(-self.step_frames * t for t in range(self.hist_frames - 1, -1, -1))

    def future_offsets(self) -> tuple[int, ...]:
        """Return the F offsets in 10 Hz frames."""
        return tuple(self.step_frames * (f + 1) for f in range(self.future_steps))


def agent_type(agent_id: int) -> int:
    """Return ``INFRASTRUCTURE`` for negative folder numbers, else ``VEHICLE``."""
    return INFRASTRUCTURE if agent_id < 0 else VEHICLE


def ego_order(scene: SceneIndex, mode: str) -> tuple[int, ...]:
    """Return the agents of the mode's leading kind that have a cloud, smallest number first.

    The sign of a folder name marks the kind and does not count as part of the number: unit -1
    comes before unit -2, as in the published protocol of the infrastructure-centred mode, and
    vehicle 2 before vehicle 10, which an order by text would turn round.
    """
    leading = MODES[mode].leading
    agents = scene.agents
    found = (a for a in agents if agent_type(a) == leading and agents[a].cloud_frames)
    return tuple(sorted(found, key=abs))


def members(scene: SceneIndex, mode: str) -> tuple[int, ...]:
    """Return every agent of the scene that takes part in the mode, smallest number first."""
    kinds = MODES[mode]
    allowed = (a for a in scene.agents if kinds.others or agent_type(a) == kinds.leading)
    return tuple(sorted(allowed, key=lambda a: (abs(a), a < 0)))


def choose_ego(scene: SceneIndex, frame: int, mode: str, rng: np.random.Generator | None) -> int:
    """Return the ego of a window.

    Only agents of the mode's leading kind may be the ego: vehicles in ``vc`` and ``v2v``, roadside
    units in ``ic`` and ``i2i``, in training as in evaluation (V2X-Real's training loader lets a
    roadside unit lead in ``vc`` too; ours does not, so that training and test see the world from
    the same height). Without ``rng`` the first agent of ``ego_order`` that has the frame is taken;
    with ``rng`` the first one of a random permutation of the same agents, so that a generator
    seeded from (seed, epoch, scene) gives one ego per epoch and scene, except where that agent has
    no cloud at ``frame`` and the next of the permutation stands in.

    Raises:
        ValueError: If no agent of the leading kind has the frame.
    """
    order = ego_order(scene, mode)
    if rng is not None:
        order = tuple(order[i] for i in rng.permutation(len(order)))
    for agent_id in order:
        if scene.agents[agent_id].has_cloud(frame):
            return agent_id
    raise ValueError(
        f"`frame` must exist for an agent that mode {mode!r} allows as ego. "
        f"Found {frame} of scene {scene.name}."
    )


class ClipIndex(Sequence[Window]):
    """All windows of a root, scene by scene, in time order.

    Args:
        scenes: Scenes of the reader.
        options: What a sample contains.

    Raises:
        UserError: If no window remains.
    """

    def __init__(self, scenes: Sequence[SceneIndex], options: ClipOptions) -> None:
        self._windows: list[Window] = []
        skipped: dict[str, list[str]] = {}
        for index, scene in enumerate(scenes):
            frames = tuple(window_frames(scene, options))
            self._windows.extend(Window(index, frame) for frame in frames)
            if not frames:
                skipped.setdefault(_why_empty(scene, options), []).append(scene.name)
        for reason, names in skipped.items():
            _LOG.warning("Skipped %d scene(s), %s: %s", len(names), reason, ", ".join(names))
        if not self._windows:
            found = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in skipped.items())
            raise UserError(
                f"No sample remains for dataset_mode {options.mode!r}: expected at least one scene "
                f"with such an ego and long enough a recording, found {found or 'no scene'}. "
                "Choose another dataset_mode, or relax require_history and require_future."
            )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]  # no slices
        return self._windows[index]

    def scene_numbers(self) -> tuple[int, ...]:
        """Return the positions of the scenes that have a window."""
        return tuple(sorted({window.scene for window in self._windows}))


def window_frames(scene: SceneIndex, options: ClipOptions) -> Iterator[int]:
    """Yield the current positions of a scene's windows in rising order.

    The recording spans from the first cloud to the last labels of any agent of the scene; stride
    and the two ``require`` keys count from these ends, so the windows do not depend on the ego.
    """
    clouds = [frames.cloud_frames[0] for frames in scene.agents.values() if frames.cloud_frames]
    if not clouds:
        return
    first, last = min(clouds), last_label(scene)
    earliest = first - options.history_offsets()[0] if options.require_history else first
    latest = last - options.future_offsets()[-1] if options.require_future else last
    egos = ego_order(scene, options.mode)
    current = {frame for agent_id in egos for frame in scene.agents[agent_id].cloud_frames}
    for frame in sorted(current):
        if earliest <= frame <= latest and (frame - first) % options.sample_stride == 0:
            yield frame


def last_label(scene: SceneIndex) -> int:
    """Return the last position at which any agent of the scene has labels."""
    return max(frames.label_frames[-1] for frames in scene.agents.values() if frames.label_frames)


def _why_empty(scene: SceneIndex, options: ClipOptions) -> str:
    if ego_order(scene, options.mode):
        return "recording shorter than the required window"
    kind = "vehicle" if MODES[options.mode].leading == VEHICLE else "roadside unit"
    return f"no {kind} for mode {options.mode!r}"
