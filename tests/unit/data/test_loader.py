"""The data set and its loader on a small root: contents per purpose, order, resume, failures."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.made_scenes import MadeObject, MadeScene, junction_scene, write_root
from turbotrain_plugin.config import AugmentStep, DataConfig, Preprocess, RunConfig, TurboTrainBlock
from turbotrain_plugin.config.data import FusionArgs, FusionParams, PreprocessArgs
from turbotrain_plugin.data import CooperativeDataset, SampleKey, collate, make_loader
from turbotrain_plugin.structures import Batch, UserError

FRAMES = 14
AUGMENT = (
    AugmentStep(NAME="random_world_flip"),
    AugmentStep(NAME="random_world_rotation"),
    AugmentStep(NAME="random_world_scaling"),
)


def config_of(*, seed: int = 0, **data: Any) -> RunConfig:  # noqa: ANN401 - any key of DataConfig
    keys = {"hist_frames": 2, "future_steps": 2, "num_workers": 0, **data}
    return RunConfig(
        seed=seed,
        data_augment=AUGMENT,
        preprocess=Preprocess(
            cav_lidar_range=(-51.2, -38.4, -8.0, 51.2, 38.4, 0.0),
            args=PreprocessArgs(voxel_size=(0.4, 0.4, 0.2), max_voxel_train=60),
        ),
        turbotrain=TurboTrainBlock(data=DataConfig(**keys)),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    junction = junction_scene("2023-01-01-00-00-00_1_0", frames=FRAMES)
    edge = MadeObject(15, (49.0, 15.0, 0.8))  # a turn may take it out of the range
    scenes = [
        replace(junction, objects=(*junction.objects, edge)),
        junction_scene("2023-01-01-00-00-00_2_0", frames=FRAMES, infrastructure=False),
    ]
    return write_root(tmp_path_factory.mktemp("loader"), {"train": scenes})


def dataset(
    root: Path, config: RunConfig | None = None, purpose: str = "train"
) -> CooperativeDataset:
    return CooperativeDataset(config or config_of(), [root], split="train", purpose=purpose)


def leaves(value: Any) -> Iterator[Any]:  # noqa: ANN401 - anything a batch holds
    """Every array, tensor and scalar of a batch, in a fixed order."""
    if is_dataclass(value):
        for item in fields(value):
            yield from leaves(getattr(value, item.name))
    elif isinstance(value, list):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


def assert_same(one: Batch, two: Batch) -> None:
    for a, b in zip(leaves(one), leaves(two), strict=True):
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b


# --------------------------------------------------------------------------------------- data set


def test_training_sample_holds_what_a_network_needs(root: Path) -> None:
    data = dataset(root)
    assert len(data) == 2 * FRAMES
    assert data.scene_names == ("2023-01-01-00-00-00_1_0", "2023-01-01-00-00-00_2_0")
    assert data.anchors.shape == (data.grid.height, data.grid.width, 2, 7)
    found = data[SampleKey(0, 6)]
    assert found.key[:2] == ("2023-01-01-00-00-00_1_0", 6)
    assert found.frame_valid.shape == (4, 2)
    assert found.frame_valid.all()
    assert found.truth is not None
    assert found.targets is not None
    assert found.map is not None
    assert found.reconstruction is None
    assert len(found.targets.positive_index) >= len(found.truth.boxes) > 0
    assert found.map.nearest.shape == (-(-data.grid.height // 2), data.grid.width // 2, 5)
    assert np.bincount(found.voxels.coordinates[:, 0]).max() == 60
    assert found.voxels.truncated_share > 0


def test_pretraining_needs_neither_labels_nor_map(tmp_path: Path) -> None:
    bare = replace(junction_scene("2023-01-01-00-00-00_1_0", frames=6), objects=())
    write_root(tmp_path, {"train": [bare]}, with_map=False)
    found = dataset(tmp_path, purpose="pretrain")[SampleKey(0, 5)]
    assert found.truth is None
    assert found.targets is None
    assert found.map is None
    assert found.reconstruction is not None
    assert set(found.reconstruction.agent.tolist()) == set(range(len(found.agent_types)))
    low, high = np.array([-51.2, -38.4, -8.0]), np.array([51.2, 38.4, 0.0])
    assert (found.reconstruction.xyz >= low).all()
    assert (found.reconstruction.xyz < high).all()


def test_reconstruction_points_are_augmented_and_not_truncated(root: Path) -> None:
    data = dataset(root, purpose="pretrain")
    key = SampleKey(2, 6)
    found, raw = data[key], data.sample(key)
    assert found.reconstruction is not None
    assert (found.voxels.counts.sum() / found.frame_valid.sum()) < 100
    per_agent = np.bincount(found.reconstruction.agent)
    for a, clouds in enumerate(raw.points):
        low, high = np.array(data.grid.range_m[:3]), np.array(data.grid.range_m[3:])
        inside = ((clouds[-1][:, :3] >= low) & (clouds[-1][:, :3] < high)).all(axis=1)
        assert per_agent[a] == inside.sum()
        own = found.reconstruction.xyz[found.reconstruction.agent == a]
        np.testing.assert_array_equal(own, clouds[-1][inside, :3])


def test_every_filled_voxel_point_is_a_point_of_the_raw_sample(root: Path) -> None:
    data = dataset(root)
    key = SampleKey(1, 9)
    found, raw = data[key], data.sample(key)
    clouds = [cloud for row in raw.points for cloud in row]
    for number, cloud in enumerate(clouds):
        rows = found.voxels.coordinates[:, 0] == number
        held = found.voxels.points[rows][:, 0]
        assert set(map(tuple, held.tolist())) <= set(map(tuple, cloud.tolist()))


def test_augmentation_differs_by_epoch_and_sample_only_in_training(root: Path) -> None:
    data, fixed = dataset(root, config_of(train_ego="fixed")), dataset(root, purpose="evaluate")

    def far_point(source: CooperativeDataset, epoch: int) -> tuple[float, ...]:
        return tuple(source.sample(SampleKey(epoch, 6)).points[1][-1][0].tolist())

    assert len({far_point(data, epoch) for epoch in range(4)}) == 4
    assert len({far_point(fixed, epoch) for epoch in range(4)}) == 1
    off = config_of(train_ego="fixed")
    block = replace(off.turbotrain, pretrain=replace(off.turbotrain.pretrain, data_augment=False))
    plain = dataset(root, replace(off, turbotrain=block), "pretrain")
    assert far_point(plain, 3) == far_point(fixed, 0)


def test_evaluation_is_the_same_in_every_epoch_with_the_higher_limit(root: Path) -> None:
    data = dataset(root, purpose="evaluate")
    one, two = data[SampleKey(0, 6)], data[SampleKey(5, 6)]
    assert_same(collate([one]), collate([two]))
    assert one.key[2] == 1
    assert one.voxels.truncated_share == 0.0
    assert one.targets is not None


def test_ego_is_drawn_per_epoch_and_scene(root: Path) -> None:
    data = dataset(root)
    egos = np.array(
        [
            [data.sample(SampleKey(epoch, i)).agent_ids[0] for i in (0, 5, 13, 14)]
            for epoch in range(12)
        ]
    )
    assert (egos[:, :3] == egos[:, :1]).all()  # one ego in all windows of a scene
    assert set(egos[:, 0]) == {1, 2}
    assert set(egos[:, 3]) == {1, 2}
    assert (egos[:, 0] != egos[:, 3]).any()  # scenes draw apart
    fixed = dataset(root, config_of(train_ego="fixed"))
    assert {fixed.sample(SampleKey(epoch, 0)).agent_ids[0] for epoch in range(6)} == {1}


def test_seed_of_the_run_changes_the_draws(root: Path) -> None:
    one, two = (dataset(root, config_of(seed=seed))[SampleKey(0, 6)] for seed in (0, 1))
    assert not np.array_equal(one.ego_SE3_agent, two.ego_SE3_agent)


def test_labels_are_selected_after_the_turn(root: Path) -> None:
    """Labels are those of the augmented range: what a turn takes out of it is gone."""
    data = dataset(root, config_of(train_ego="fixed"))
    seen = set()
    for epoch in range(12):
        truth = data.sample(SampleKey(epoch, 6)).truth
        assert truth is not None
        assert (np.abs(truth.boxes[:, :2]) < (51.2, 38.4)).all()
        assert (truth.point_counts >= 1).all()
        seen.add(15 in truth.object_ids)
    assert seen == {True, False}


def test_map_is_left_out_when_the_model_has_none(root: Path) -> None:
    config = config_of(use_map=False)
    assert dataset(root, config)[SampleKey(0, 6)].map is None


def test_unlabelled_scenes_are_left_out_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = junction_scene("full_1_0", frames=3)
    bare = replace(junction_scene("bare_1_0", frames=3), objects=())
    write_root(tmp_path, {"train": [bare, full]})
    with caplog.at_level(logging.WARNING):
        data = dataset(tmp_path)
    assert data.scene_names == ("full_1_0",)
    assert "without labels: bare_1_0" in caplog.text
    evaluated = dataset(tmp_path, purpose="evaluate")
    assert evaluated.scene_names == ("bare_1_0", "full_1_0")
    assert evaluated[SampleKey(0, 0)].targets is None


def test_wholly_unlabelled_root_cannot_be_trained_on(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": [replace(junction_scene("bare_1_0", frames=2), objects=())]})
    with pytest.raises(UserError, match=r"No labelled scene in .*Use such a log for pretraining"):
        dataset(tmp_path)


def test_impossible_arguments(root: Path) -> None:
    with pytest.raises(ValueError, match=r"`split` must be one of .* Found 'dev'"):
        CooperativeDataset(config_of(), [root], split="dev", purpose="train")
    with pytest.raises(ValueError, match=r"`purpose` must be one of .* Found 'test'"):
        CooperativeDataset(config_of(), [root], split="train", purpose="test")
    warped = replace(config_of(), fusion=FusionParams(args=FusionArgs(proj_first=False)))
    with pytest.raises(UserError, match="proj_first: false"):
        dataset(root, warped)
    with pytest.raises(IndexError, match=r"`key\.index` must be below 28\. Found 28"):
        dataset(root)[SampleKey(0, 28)]


def test_mode_without_any_ego(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": [junction_scene("c_1_0", 2, infrastructure=False)]})
    with pytest.raises(UserError, match="No sample remains for dataset_mode 'i2i'"):
        dataset(tmp_path, replace(config_of(), dataset_mode="i2i"))


# ------------------------------------------------------------------------------------------- order


def keys_of(data: CooperativeDataset, **how: Any) -> list[list[tuple[str, int]]]:  # noqa: ANN401
    arguments = {"batch_size": 3, "epoch": 0, "shuffle": True, **how}
    return [[key[:2] for key in batch.keys] for batch in make_loader(data, **arguments)]


def flat(batches: list[list[tuple[str, int]]]) -> list[tuple[str, int]]:
    return [key for batch in batches for key in batch]


@pytest.fixture(scope="module")
def light(root: Path) -> CooperativeDataset:
    """Eight windows."""
    return dataset(root, config_of(sample_stride=4, hist_frames=1), "pretrain")


def test_shuffled_epoch_drops_the_incomplete_batch(light: CooperativeDataset) -> None:
    assert len(light) == 8
    batches = keys_of(light)
    assert [len(batch) for batch in batches] == [3, 3]
    assert len(make_loader(light, batch_size=3, epoch=0, shuffle=True)) == 2
    assert len(set(flat(batches))) == 6
    assert batches == keys_of(light)
    assert batches != keys_of(light, epoch=1)
    assert batches != keys_of(light, seed=1)


def test_a_lone_incomplete_batch_is_kept(light: CooperativeDataset) -> None:
    assert [len(batch) for batch in keys_of(light, batch_size=20)] == [8]


def test_ordered_epoch_has_every_sample_once(light: CooperativeDataset) -> None:
    batches = keys_of(light, shuffle=False)
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert flat(batches) == sorted(flat(batches))
    assert len(set(flat(batches))) == 8


def test_ranks_share_the_samples(light: CooperativeDataset) -> None:
    shuffled = [keys_of(light, batch_size=1, rank=rank, world_size=3) for rank in range(3)]
    assert [len(batches) for batches in shuffled] == [2, 2, 2]
    assert len({key for batches in shuffled for key in flat(batches)}) == 6
    ordered = [keys_of(light, rank=rank, world_size=3, shuffle=False) for rank in range(3)]
    assert [len(flat(batches)) for batches in ordered] == [3, 3, 2]
    assert len({key for batches in ordered for key in flat(batches)}) == 8


def test_more_ranks_than_samples_still_have_work(light: CooperativeDataset) -> None:
    shares = [keys_of(light, batch_size=1, rank=rank, world_size=11) for rank in range(11)]
    assert [len(batches) for batches in shares] == [1] * 11


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"start_batch": -1}]
)
def test_impossible_loaders(light: CooperativeDataset, wrong: dict[str, int]) -> None:
    arguments: dict[str, Any] = {"batch_size": 2, "epoch": 0, "shuffle": True, **wrong}
    with pytest.raises(ValueError, match="`batch_size` must be positive"):
        make_loader(light, **arguments)


# --------------------------------------------------------------------------- determinism, workers


@pytest.mark.parametrize("purpose", ["train", "pretrain", "evaluate"])
def test_batches_do_not_depend_on_workers_or_on_where_the_epoch_starts(
    root: Path, purpose: str
) -> None:
    stride = config_of(sample_stride=3)
    alone = dataset(root, stride, purpose)
    helped = dataset(root, config_of(sample_stride=3, num_workers=2), purpose)
    how: dict[str, Any] = {"batch_size": 2, "epoch": 3, "shuffle": purpose != "evaluate", "seed": 5}
    np.random.seed(0)  # noqa: NPY002 - the global generator must have no say
    whole = list(make_loader(alone, **how))
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(9)
    resumed = make_loader(helped, **how, start_batch=2)
    assert len(resumed) == len(whole) == 5
    rest = list(resumed)
    assert len(rest) == 3
    for one, two in zip(whole[2:], rest, strict=True):
        assert_same(one, two)


def test_loading_leaves_the_global_generators_alone(light: CooperativeDataset) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(make_loader(light, batch_size=4, epoch=0, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_pinning_reaches_every_tensor_of_a_batch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for a CUDA machine: pinning is counted and copies the tensor."""
    seen: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    data = dataset(root, config_of(pin_memory=True, sample_stride=14))
    batch = next(iter(make_loader(data, batch_size=2, epoch=0, shuffle=False)))
    assert len(seen) == sum(isinstance(leaf, torch.Tensor) for leaf in leaves(batch)) == 16
    plain = dataset(root, config_of(sample_stride=14))
    assert_same(batch, next(iter(make_loader(plain, batch_size=2, epoch=0, shuffle=False))))


def test_start_beyond_the_end_yields_nothing(light: CooperativeDataset) -> None:
    loader = make_loader(light, batch_size=4, epoch=0, shuffle=True, start_batch=9)
    assert len(loader) == 2
    assert list(loader) == []


def test_data_set_can_be_sent_to_a_spawned_worker(root: Path) -> None:
    data = dataset(root)
    copy = pickle.loads(pickle.dumps(data))
    assert_same(collate([data[SampleKey(1, 4)]]), collate([copy[SampleKey(1, 4)]]))


def test_an_epoch_can_be_walked_twice(light: CooperativeDataset) -> None:
    loader = make_loader(light, batch_size=4, epoch=0, shuffle=True)
    for one, two in zip(loader, loader, strict=True):
        assert_same(one, two)


# ---------------------------------------------------------------------------------------- failures


def broken_root(folder: Path) -> tuple[Path, MadeScene]:
    scene = junction_scene("2023-01-01-00-00-00_1_0", frames=4)
    write_root(folder, {"train": [scene]})
    (folder / "train" / scene.name / "2" / "000003.bin").write_bytes(b"12345")
    return folder, scene


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_file_is_a_sentence_that_names_sample_and_file(
    tmp_path: Path, workers: int
) -> None:
    folder, scene = broken_root(tmp_path)
    data = dataset(folder, config_of(num_workers=workers), "evaluate")
    words = rf"^sample 3 of train \(scene {scene.name}, frame 3\): .*2/000003\.bin: truncated"
    with pytest.raises(UserError, match=words):
        list(make_loader(data, batch_size=2, epoch=0, shuffle=False))


class Faulty(CooperativeDataset):
    """Fails in the second sample, with an exception or by the death of the process."""

    die = False

    def __getitem__(self, key: SampleKey) -> Any:  # noqa: ANN401
        if key.index == 1:
            if self.die:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("by a bug")
        return super().__getitem__(key)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_names_the_sample_and_keeps_its_traceback(root: Path, workers: int) -> None:
    data = Faulty(config_of(num_workers=workers), [root], split="train", purpose="evaluate")
    words = r"(?s)sample 1 of train \(scene .*, frame 1\): could not be made\..*ZeroDivisionError"
    with pytest.raises(RuntimeError, match=words):
        list(make_loader(data, batch_size=1, epoch=0, shuffle=False))


def test_an_error_between_samples_is_passed_on(
    light: CooperativeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_samples: object) -> Batch:
        raise RuntimeError("cannot be stacked")

    monkeypatch.setattr("turbotrain_plugin.data.loader.collate", refuse)
    with pytest.raises(RuntimeError, match=r"^cannot be stacked"):
        list(make_loader(light, batch_size=2, epoch=0, shuffle=False))


def test_a_killed_worker_is_reported_with_the_batch_it_owed(root: Path) -> None:
    data = Faulty(config_of(num_workers=1), [root], split="train", purpose="evaluate")
    data.die = True
    words = "A loader process died before it delivered sample .* of train .*num_workers"
    with pytest.raises(RuntimeError, match=words):
        list(make_loader(data, batch_size=1, epoch=0, shuffle=False))
