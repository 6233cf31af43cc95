"""Our reader in a host's data set: its scan of folders and its two file readers are replaced.

Of the host's own class that ``fusion.core_method`` names a subclass is made at run time. Which
frames there are, and who of a scene's agents is there, comes from our readers; everything else is
the host's own code, ``retrieve_base_data`` included: it is shown a scene in which every agent that
has the frame has files at all times. So latency, pose errors and classes are the host's, and so is
what follows: augmentation, projection, voxels, labels, collation, post-processing.

Where an agent lacks a frame it is not there; where the ego lacks it, the next agent in the host's
order that may lead stands in, so that an epoch has the same frames whoever leads. (Our choice: the
hosts stop at such a frame.) A late message holds the newest cloud of its time or before it, the
agent's first where there is none, as the hosts shorten a latency at the beginning of a scene.
"""

from __future__ import annotations

import functools
import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from numpy.typing import NDArray

from turbotrain_plugin.config import HOST_READS, HostDataKeys, host_data
from turbotrain_plugin.data.formats import SceneIndex, open_root
from turbotrain_plugin.data.repair import repaired
from turbotrain_plugin.engine.assembly import SYNTHETIC, resolve_roots
from turbotrain_plugin.hosts.base import AgentOrder, Host, HostModules
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.compat.base import attributes
from turbotrain_plugin.hosts.frames import FrameFile, HostFrames
from turbotrain_plugin.structures import UserError

__all__ = ["OurFrames", "reading", "with_split_folders"]

_LOG = logging.getLogger(__name__)

_SPLITS: Final = {"root_dir": "train", "validate_dir": "validate", "test_dir": "test"}
"""Key of the hosts -> split of a root that holds several."""
_CLOUD_READERS: Final = ("pcd_to_np", "load_lidar_bin")


@dataclass(frozen=True, slots=True)
class _Sample:
    """A frame of a scene and its agents, the ego first."""

    scene: SceneIndex
    frame: int
    agents: tuple[int, ...]


class OurFrames:
    """What takes the place of a host's scan; put before the host's class.

    Attributes:
        host: Whose class it is.
        frames: What reads.
        scenes: Scenes of the split, sorted by name.
        place: Where they are, for messages.
        len_record: Samples up to the end of every scene, as in the hosts.
    """

    host: ClassVar[Host]
    frames: ClassVar[HostFrames]
    scenes: ClassVar[tuple[SceneIndex, ...]]
    place: ClassVar[str]
    params: dict[str, Any]
    train: bool
    max_cav: int
    scenario_database: dict[int, Any]
    len_record: list[int]

    def __init__(self, params: dict[str, Any], visualize: bool, train: bool = True) -> None:
        self._samples: list[_Sample] = []
        host_init: Callable[..., None] = super().__init__
        with _nothing_to_scan(params):
            host_init(params, visualize, train)
        if not self._samples:  # OpenCOOD scans without calling reinitialize()
            self.reinitialize()

    def reinitialize(self) -> None:
        """List the samples, with the order of agents that the host draws now.

        Raises:
            UserError: When there are none.
        """
        self._samples, self.scenario_database, self.len_record = [], {}, []
        for scene in self.scenes:
            there = [number for number, found in scene.agents.items() if found.cloud_frames]
            order = self.host.agent_order(there, self.params, train=self.train)
            before = len(self._samples)
            self._samples += _samples(scene, order, self.max_cav)
            if len(self._samples) > before:
                self.len_record.append(len(self._samples))
        if not self._samples:
            raise UserError(
                f"{self.place}: no agent that may lead has a frame with labels and a cloud."
            )

    def __len__(self) -> int:
        return len(self._samples)

    def retrieve_base_data(self, idx: int, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return the host's dictionary of the agents of a sample, by the host's own code."""
        sample = self._samples[idx]
        first = min(sample.scene.agents[agent].cloud_frames[0] for agent in sample.agents)
        retrieve: Callable[..., Any] = super().retrieve_base_data  # type: ignore[misc]
        ends = self.len_record
        self.scenario_database = {0: self._scenario(sample, first)}
        self.len_record = [sample.frame - first + 1]
        try:
            return retrieve(sample.frame - first, *args, **kwargs)
        finally:
            self.scenario_database, self.len_record = {}, ends

    def _scenario(self, sample: _Sample, first: int) -> dict[str, dict[str, Any]]:
        """Return a scene as the hosts keep it, from its first frame to that of the sample."""
        scene = sample.scene
        times = range(first, sample.frame + 1)
        stamps = [f"{scene.stem_offset + scene.stem_step * frame:06d}" for frame in times]
        database = {}
        for agent in sample.agents:
            found = scene.agents[agent]
            clouds = [found.newest_cloud(frame) for frame in times]
            heard = [found.cloud_frames[0] if cloud is None else cloud for cloud in clouds]
            files = {frame: _files(FrameFile(self.frames, scene, agent, frame)) for frame in heard}
            database[str(agent)] = {
                **{stamp: files[frame] for stamp, frame in zip(stamps, heard, strict=True)},
                "ego": agent == sample.agents[0],
            }
        return database


def _files(file: FrameFile) -> dict[str, Any]:
    return {"yaml": file, "lidar": file, "cameras": [""]}


def _samples(scene: SceneIndex, order: AgentOrder, most: int) -> list[_Sample]:
    """Return the frames in which an agent that may lead has a cloud, by time."""
    agents = scene.agents
    found = []
    for frame in sorted({f for agent in order.leaders for f in agents[agent].cloud_frames}):
        there = [agent for agent in order.agents if agents[agent].has_cloud(frame)]
        ego = next(agent for agent in there if agent in order.leaders)
        there.remove(ego)
        found.append(_Sample(scene, frame, (ego, *there)[:most]))
    return found


@contextmanager
def _nothing_to_scan(params: dict[str, Any]) -> Iterator[None]:
    """Let the host scan an empty folder while its data set is made."""
    keys = [key for key in _SPLITS if key in params]
    before = {key: params[key] for key in keys}
    with tempfile.TemporaryDirectory() as empty:
        params.update(dict.fromkeys(keys, empty))
        try:
            yield
        finally:
            params.update(before)


# ---------------------------------------------------------------------------------- around a host


@contextmanager
def reading(host: Host, modules: HostModules) -> Iterator[None]:
    """Let ``build_dataset`` of a host make data sets that we read, where the hypes ask for it.

    The host's scripts take the function by name when they start, so this comes before them.
    """
    build = modules.datasets.build_dataset
    load = modules.yaml_utils.load_yaml
    clouds = importlib.import_module(f"{PACKAGE}.utils.pcd_utils")

    @functools.wraps(build)
    def build_dataset(
        dataset_cfg: dict[str, Any], visualize: bool = False, train: bool = True
    ) -> Any:  # noqa: ANN401
        keys = host_data(dataset_cfg)
        if keys.format == HOST_READS:
            return build(dataset_cfg, visualize, train)
        make = _reading_class(host, modules, dataset_cfg, keys, train=train)
        return make(params=dataset_cfg, visualize=visualize, train=train)

    @functools.wraps(load)
    def load_yaml(file: str | None, opt: Any = None) -> dict[str, Any]:  # noqa: ANN401 - a namespace
        found: dict[str, Any] = load(file, opt)
        if opt is not None:
            with_split_folders(found)
        return found

    read = {
        name: _cloud_reader(getattr(clouds, name))
        for name in _CLOUD_READERS
        if hasattr(clouds, name)
    }
    with ExitStack() as stack:
        stack.enter_context(attributes(modules.datasets, {"build_dataset": build_dataset}))
        stack.enter_context(attributes(modules.yaml_utils, {"load_yaml": load_yaml}))
        stack.enter_context(attributes(clouds, dict(read)))
        yield


def _cloud_reader(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def read(path: str, zero_intensity: bool = False) -> NDArray[Any]:
        if isinstance(path, FrameFile):
            return path.points(zero_intensity=zero_intensity)
        found: NDArray[Any] = function(path, zero_intensity) if zero_intensity else function(path)
        return found

    return read


def with_split_folders(hypes: dict[str, Any]) -> None:
    """Where we read, put the folders of splits in place of roots and of ``synthetic:<preset>``.

    HEAL's inference.py reads ``test_dir`` by the name of ``validate_dir``; with the folder of the
    split itself nothing is lost. Folders that do not exist stay, many files name some.
    """
    if host_data(hypes).format == HOST_READS:
        return
    for key, split in _SPLITS.items():
        entries = _entries(hypes.get(key))
        if all(one.startswith(SYNTHETIC) or (one and Path(one).is_dir()) for one in entries):
            found = [str(path) for path in resolve_roots(entries, split)]
            hypes[key] = found[0] if len(found) == 1 else found


def _key(train: bool) -> str:
    return "root_dir" if train else "validate_dir"


def _entries(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value or ""),)


def _reading_class(
    host: Host, modules: HostModules, hypes: dict[str, Any], keys: HostDataKeys, *, train: bool
) -> Callable[..., Any]:
    """Return the host's class with our frames in place of its own."""
    theirs = host.dataset_class(modules, hypes)
    key = _key(train)
    entries = _entries(hypes.get(key))
    if not all(entries):
        raise UserError(f"{key} is empty: give a folder, or synthetic:tiny for made-up scenes.")
    reader = open_root(
        resolve_roots(entries, _SPLITS[key]),
        keys.format,
        split=_SPLITS[key],
        cache_dir=Path(keys.cache_dir) if keys.cache_dir else None,
    )
    scenes = [one for one in reader.scenes if host.takes_part(one.name, hypes, train=train)]
    left_out = len(reader.scenes) - len(scenes)
    if left_out:
        _LOG.info("%s: %s leaves out %d scene(s)", key, host.title, left_out)
    frames = HostFrames(
        reader=reader,
        labels=repaired(reader, keys.repair),
        left_handed=host.left_handed,
        classes=keys.classes if host.one_class else (),
    )
    members = {
        "host": host,
        "frames": frames,
        "scenes": tuple(scenes),
        "place": ", ".join(entries),
        "__module__": __name__,
    }
    return type(theirs.__name__, (OurFrames, theirs), members)
