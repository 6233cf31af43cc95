"""The data set of a run: a split's windows, prepared for a network.

A sample depends on (config.seed, epoch, index) and on nothing else: not on the number of worker
processes, not on what was read before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data.augment import augment, draw
from turbotrain_plugin.data.clips import ClipBuilder, select_objects
from turbotrain_plugin.data.disturb import Disturbances
from turbotrain_plugin.data.formats import open_root
from turbotrain_plugin.data.formats.base import ScenarioReader, SceneIndex
from turbotrain_plugin.data.joined import busiest_neighbour, join_agents, single_agent
from turbotrain_plugin.data.prepare import (
    PreparedSample,
    SampleMap,
    SamplePoints,
    map_cells,
    map_tokens,
    reconstruction_points,
    sample_voxels,
)
from turbotrain_plugin.data.repair import repaired
from turbotrain_plugin.data.targets import (
    SampleTargets,
    anchors_from_config,
    grid_from_config,
    make_targets,
)
from turbotrain_plugin.data.tracks import has_objects
from turbotrain_plugin.data.windows import ClipIndex, ClipOptions, Window
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures import Sample

__all__ = ["CooperativeDataset", "SampleKey"]

_LOG = logging.getLogger(__name__)

PURPOSES: Final = ("pretrain", "train", "evaluate")
SPLITS: Final = ("train", "validate", "test")

# First words of the seeds, so that one kind of draw never repeats another (3: loader.py, 5:
# disturb.py).
_EGO_DRAW, _SAMPLE_DRAW, _AGENT_DRAW = 1, 2, 4


@dataclass(frozen=True, slots=True)
class SampleKey:
    """A sample of an epoch: what all its random draws depend on beside the seed."""

    epoch: int
    index: int


class CooperativeDataset(Dataset[PreparedSample]):
    """Prepared samples of one split.

    Args:
        config: Resolved hypes file.
        roots: Folder(s) of the split, or roots that hold it.
        split: ``train``, ``validate`` or ``test``: what is read of a root that holds several.
        purpose: ``pretrain``: augmented, random ego, current points for reconstruction, no labels
            and no map needed. ``train``: augmented, random ego, targets. ``evaluate``: no
            augmentation, fixed ego, the higher voxel limit, the same sample in every epoch.

    With early fusion a sample's agents become one that saw all points. With late fusion a sample
    holds one of its agents, drawn at random, and the objects that its points hit, but all agents
    for ``evaluate``. For DiscoNet's teacher, training samples carry their joined clouds beside.

    Raises:
        UserError: If the roots hold no usable scene or the keys ask for what is not offered.
    """

    def __init__(
        self, config: RunConfig, roots: Sequence[Path], *, split: str, purpose: str
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"`split` must be one of {SPLITS}. Found {split!r}.")
        if purpose not in PURPOSES:
            raise ValueError(f"`purpose` must be one of {PURPOSES}. Found {purpose!r}.")
        if not config.fusion.args.proj_first:
            raise UserError(
                "fusion.args.proj_first: false (warping features instead of moving points) is not "
                "offered; expected true. Remove the key or set it to true."
            )
        self.config = config
        self.split, self.purpose = split, purpose
        self.grid = grid_from_config(config)
        self.anchors: NDArray[np.float32] = anchors_from_config(config, self.grid)
        data = config.turbotrain.data
        cache_dir = Path(data.cache_dir) if data.cache_dir else None
        reader = open_root(roots, data.format, split=split, cache_dir=cache_dir)
        pretrain, map_args = purpose == "pretrain", config.model.args.map
        self.reader: ScenarioReader = reader if pretrain else repaired(reader, data.repair)
        self.options = ClipOptions.from_config(
            config,
            with_labels=not pretrain,
            with_map=data.use_map and map_args.enabled and not pretrain,
        )
        self._cells = map_cells(self.grid, map_args.stride)
        self._clips = ClipBuilder(self.reader, self.options)
        train = purpose == "train"
        self._scenes = _labelled_scenes(self.reader, roots) if train else self.reader.scenes
        self._windows = ClipIndex(self._scenes, self.options)
        method = config.model.args.fusion.core_method
        self._joins = method == "early"
        self._separates = method == "late" and purpose != "evaluate"
        self._teaches = bool(
            method == "disconet" and config.model.args.fusion.distill.teacher and train
        )
        # What pretraining rebuilds are the clouds themselves: disturbed ones would be wrong labels.
        # Agents that learn apart, for late fusion, send nothing.
        disturbed = not (pretrain or self._separates)
        self.disturbances = Disturbances.from_config(config) if disturbed else None
        if self.disturbances is not None:
            self.disturbances.warn_of_thin_clouds(self._scenes)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, key: SampleKey) -> PreparedSample:
        """Return the sample, voxelised and with its targets.

        Raises:
            IndexError: If ``key.index`` is not in ``range(len(self))``.
        """
        rng = self._rng(_SAMPLE_DRAW, key.epoch, key.index)
        sample = self._raw(key, rng)
        sent_points = None
        if self._joins:
            sent_points = busiest_neighbour(sample, self.grid.range_m)
            sample = join_agents(sample)
        limits = self.config.preprocess.args
        evaluate = self.purpose == "evaluate"
        max_voxels = limits.max_voxel_test if evaluate else limits.max_voxel_train
        prepared = self._prepared(sample, max_voxels, rng)
        joined = None
        if self._teaches:
            # As many voxels as the agents have apart (our choice).
            clouds = replace(join_agents(sample), truth=None, map=None)
            joined = self._prepared(clouds, max_voxels * len(sample.agent_ids), rng)
        return replace(prepared, sent_points=sent_points, joined=joined)

    def _prepared(
        self, sample: Sample, max_voxels: int, rng: np.random.Generator
    ) -> PreparedSample:
        max_points = self.config.preprocess.args.max_points_per_voxel
        return PreparedSample(
            key=(sample.scene, sample.frame, sample.agent_ids[0]),
            agent_types=sample.agent_types,
            frame_valid=sample.frame_valid,
            time_offset_s=sample.time_offset_s,
            ego_SE3_agent=sample.ego_SE3_agent,
            voxels=sample_voxels(sample, self.grid, max_points, max_voxels, rng),
            map=self._map(sample),
            targets=self._targets(sample),
            reconstruction=self._reconstruction(sample),
            truth=sample.truth,
        )

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of the scenes that have samples."""
        return tuple(self._scenes[number].name for number in self._windows.scene_numbers())

    def sample(self, key: SampleKey) -> Sample:
        """Return the sample as the network sees it, with raw points in place of voxels.

        Clouds are not joined yet, so that pictures tell whose a point is.
        """
        return self._raw(key, self._rng(_SAMPLE_DRAW, key.epoch, key.index))

    def describe(self, key: SampleKey) -> str:
        """Return the words that name a sample in messages."""
        window = self._window(key)
        scene = self._scenes[window.scene]
        return f"sample {key.index} of {self.split} (scene {scene.name}, frame {window.frame})"

    def _window(self, key: SampleKey) -> Window:
        if not 0 <= key.index < len(self):
            raise IndexError(f"`key.index` must be below {len(self)}. Found {key.index}.")
        return self._windows[key.index]

    def _raw(self, key: SampleKey, rng: np.random.Generator) -> Sample:
        """Return the augmented sample; ``rng`` has then been used for the augmentation only."""
        window = self._window(key)
        data, block = self.config.turbotrain.data, self.config.turbotrain.pretrain
        ego_rng = None
        if self.purpose != "evaluate" and data.train_ego == "random":
            ego_rng = self._rng(_EGO_DRAW, key.epoch, window.scene)
        scene = self._scenes[window.scene]
        augmented = self.purpose == "train" or (self.purpose == "pretrain" and block.data_augment)
        change = draw(self.config.data_augment if augmented else (), rng)
        if self.disturbances is not None:
            effect_of = partial(self.disturbances.draw, self._epoch(key.epoch), key.index)
            heard, seen = self._clips.build_disturbed(scene, window.frame, ego_rng, effect_of)
            labels = select_objects(augment(seen, change), self.options)
            return replace(augment(heard, change), truth=labels.truth)
        sample = augment(self._clips.build(scene, window.frame, ego_rng), change)
        if self._separates:
            agent = self._rng(_AGENT_DRAW, key.epoch, key.index).integers(len(sample.agent_ids))
            sample = single_agent(sample, int(agent))
        return select_objects(sample, self.options)

    def _epoch(self, epoch: int) -> int:
        """Return the epoch of the draws: an evaluation sees the same whenever it is made."""
        return 0 if self.purpose == "evaluate" else epoch

    def _rng(self, draw_kind: int, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng([draw_kind, self.config.seed, self._epoch(epoch), number])

    def _map(self, sample: Sample) -> SampleMap | None:
        if sample.map is None:
            return None
        return map_tokens(sample.map, self._cells, self.config.model.args.map.segments)

    def _reconstruction(self, sample: Sample) -> SamplePoints | None:
        if self.purpose != "pretrain":
            return None
        every = self.config.turbotrain.pretrain.target_frames == "all"
        frames = self.config.turbotrain.data.hist_frames if every else 1
        return reconstruction_points(sample, self.grid, frames)

    def _targets(self, sample: Sample) -> SampleTargets | None:
        if sample.truth is None:
            return None
        thresholds = self.config.postprocess.target_args
        return make_targets(
            sample.truth,
            self.anchors,
            pos_threshold=thresholds.pos_threshold,
            neg_threshold=thresholds.neg_threshold,
        )


def _labelled_scenes(reader: ScenarioReader, roots: Sequence[Path]) -> tuple[SceneIndex, ...]:
    """Return the scenes with labels; warn of the others."""
    _LOG.info("Reading the labels of %d scene(s); slow only the first time", len(reader.scenes))
    labelled = tuple(scene for scene in reader.scenes if has_objects(reader, scene))
    missing = sorted({scene.name for scene in reader.scenes} - {scene.name for scene in labelled})
    if not labelled:
        places = ", ".join(str(root) for root in roots)
        raise UserError(
            f"No labelled scene in {places}: training needs `vehicles` in the YAML files, found "
            f"none in {len(missing)} scene(s). Use such a log for pretraining, or add labels."
        )
    if missing:
        _LOG.warning("Skipped %d scene(s) without labels: %s", len(missing), ", ".join(missing))
    return labelled
