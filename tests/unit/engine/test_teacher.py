"""DiscoNet's teacher: what it reads, that it stays as it is, what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tiny_run import steps_of, write_hypes
from turbotrain_plugin.config import RunConfig, load_hypes, to_yaml
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.steps import FinetuneLearner
from turbotrain_plugin.engine.teacher import Teacher, load_teacher
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.structures import Batch

CPU = torch.device("cpu")
SHORT = [
    "train_params={batch_size: 2, epoches: 1, eval_freq: 0}",
    "turbotrain.strategy=one_time",
    "turbotrain.data.sample_stride=6",
    "model.args.temporal.dropout=0",
    "model.args.map.dropout=0",
]


@pytest.fixture(scope="module")
def hypes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypes(tmp_path_factory.mktemp("teacher"))


def run(hypes: Path, keys: Sequence[str]) -> tuple[Path, RunConfig]:
    config = load_hypes(hypes, [*SHORT, *keys])
    folder = make_run_folder(config)
    Trainer(config, folder, CPU).run(resume=False)
    return folder, config


@pytest.fixture(scope="module")
def teacher_folder(hypes: Path) -> Path:
    return run(hypes, ["name=teacher", "model.args.fusion.core_method=early"])[0]


def student(teacher: Path | None, *keys: str) -> list[str]:
    asked = [] if teacher is None else [f"model.args.fusion.distill.teacher={teacher}"]
    return ["name=student", "model.args.fusion.core_method=disconet", *asked, *keys]


def loaded(config: RunConfig) -> Teacher:
    teacher = load_teacher(config, CPU)
    assert teacher is not None
    return teacher


def training_batch(config: RunConfig) -> tuple[Batch, CooperativeDataset]:
    data = build_dataset(config, "train", "train")
    return next(iter(BatchLoader(data, [[SampleKey(0, 0), SampleKey(0, 1)]]))), data


# --------------------------------------------------------------------------------------- the batch


def test_samples_carry_what_the_teacher_was_trained_on(hypes: Path, teacher_folder: Path) -> None:
    keys = ["preprocess.args.max_voxel_train=2000"]
    config = load_hypes(hypes, [*SHORT, *student(teacher_folder, *keys)])
    early = load_hypes(hypes, [*SHORT, "model.args.fusion.core_method=early", *keys])
    plain = load_hypes(hypes, [*SHORT, *student(None, *keys)])
    key = SampleKey(1, 1)
    taught, alone, union = (build_dataset(c, "train", "train")[key] for c in (config, plain, early))
    assert taught.joined is not None
    assert alone.joined is None
    found, expected = taught.joined.voxels, union.voxels
    assert sorted(found.coordinates.tolist()) == sorted(expected.coordinates.tolist())
    assert found.counts.sum() == expected.counts.sum()
    np.testing.assert_array_equal(taught.joined.frame_valid, union.frame_valid)
    for own, other in zip(taught.arrays(), alone.arrays(), strict=False):
        np.testing.assert_array_equal(own, other)
    for purpose in ("evaluate", "pretrain"):
        assert build_dataset(config, "train", purpose)[key].joined is None


def test_joined_clouds_are_stacked_and_moved_with_the_batch(
    hypes: Path, teacher_folder: Path
) -> None:
    batch, _ = training_batch(load_hypes(hypes, [*SHORT, *student(teacher_folder)]))
    assert batch.joined is not None
    assert batch.joined.record_len.tolist() == [1, 1]
    assert batch.joined.voxels.map_count == 2 * 3
    assert batch.joined.map is None
    assert batch.joined.targets is None
    moved = batch.to("meta").joined
    assert moved is not None
    assert moved.voxels.points.device.type == "meta"


# ------------------------------------------------------------------------------------- the teacher


def test_the_loss_joins_detection_and_moves_the_student_alone(
    hypes: Path, teacher_folder: Path
) -> None:
    config = load_hypes(hypes, [*SHORT, *student(teacher_folder)])
    batch, data = training_batch(config)
    teacher, network = loaded(config), build_network(config, data)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    learner = FinetuneLearner(network, config.loss.args, teacher)
    plain = task_losses(build_network(config, data)(batch), batch, config.loss.args)
    losses = learner.losses(batch, torch.Generator())
    part = losses.parts["distillation"]
    assert part > 0
    torch.testing.assert_close(losses.tasks["detection"], plain.tasks["detection"] + part)
    torch.testing.assert_close(losses.tasks["prediction"], plain.tasks["prediction"])
    losses.total().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.network.parameters())
    assert not any(module.training for module in teacher.network.modules())
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    own = {id(parameter) for parameter in learner.module.parameters()}
    assert own.isdisjoint({id(p) for p in teacher.network.parameters()})
    assert all(p.grad is not None for p in network.parameters())


def test_the_teacher_has_the_weights_of_its_run(hypes: Path, teacher_folder: Path) -> None:
    teacher = loaded(load_hypes(hypes, [*SHORT, *student(teacher_folder)]))
    kept = checkpoints.model_weights(checkpoints.load(checkpoints.find_weights(teacher_folder)))
    for name, value in teacher.network.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_without_joined_clouds_it_says_so(hypes: Path, teacher_folder: Path) -> None:
    teacher = loaded(load_hypes(hypes, [*SHORT, *student(teacher_folder)]))
    batch, _ = training_batch(load_hypes(hypes, [*SHORT, *student(None)]))
    with pytest.raises(ValueError, match=r"`batch\.joined` must hold the joined clouds"):
        teacher(batch)


# ----------------------------------------------------------------------------------------- a run


def test_a_run_is_taught_and_hands_on_a_student_alone(hypes: Path, teacher_folder: Path) -> None:
    files = {path: path.read_bytes() for path in teacher_folder.glob("*.ckpt")}
    folder, config = run(hypes, student(teacher_folder, "turbotrain.strategy=turbotrain"))
    lines = [line for line in steps_of(folder) if "event" not in line]
    taught = {line["stage"]: "distillation" in line["parts"] for line in lines}
    assert taught == {"pretrain": False, "balance": True}
    assert {path: path.read_bytes() for path in teacher_folder.glob("*.ckpt")} == files
    weights = checkpoints.model_weights(checkpoints.load(folder / checkpoints.LAST))
    checkpoints.load_weights(
        build_network(config, build_dataset(config, "train", "train")), weights, folder
    )
    plain, _ = run(hypes, student(None, "turbotrain.strategy=turbotrain"))
    others = checkpoints.model_weights(checkpoints.load(plain / checkpoints.LAST))
    assert list(others) == list(weights)
    assert any(not torch.equal(others[name], weights[name]) for name in weights)


def test_stages_of_one_agent_have_no_teacher(hypes: Path, teacher_folder: Path) -> None:
    keys = ["turbotrain.strategy=manual", "turbotrain.manual.weighting=none"]
    folder, _ = run(hypes, student(teacher_folder, *keys))
    lines = [line for line in steps_of(folder) if "event" not in line]
    taught = {line["stage"]: "distillation" in line["parts"] for line in lines}
    assert taught == {
        "detection": False,
        "prediction": False,
        "joint": False,
        "cooperation": True,
    }


# ------------------------------------------------------------------------------------------ refused


def test_no_teacher_is_asked_for(hypes: Path) -> None:
    assert load_teacher(load_hypes(hypes, [*SHORT, *student(None)]), CPU) is None


def test_a_folder_without_a_run(hypes: Path, tmp_path: Path) -> None:
    config = load_hypes(hypes, [*SHORT, *student(tmp_path / "none")])
    with pytest.raises(UserError, match=r"distill\.teacher: .*none is not a run folder"):
        load_teacher(config, CPU)


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("turbotrain.data.hist_frames=2", "hist_frames of .* must be the student's, 2. Found 3"),
        ("preprocess.args.voxel_size=[1, 1, 8]", "the grid of .* must be the student's"),
        ("preprocess.args.max_points_per_voxel=8", "max_points_per_voxel .* student's, 8. Found 4"),
        ("model.args.channels=32", "channels of .* must be the student's, 32. Found 16"),
    ],
)
def test_a_teacher_that_does_not_fit(
    key: str, complaint: str, hypes: Path, teacher_folder: Path
) -> None:
    config = load_hypes(hypes, [*SHORT, *student(teacher_folder, key)])
    with pytest.raises(UserError, match=complaint):
        load_teacher(config, CPU)


def test_a_teacher_of_another_fusion(hypes: Path) -> None:
    other, _ = run(hypes, ["model.args.fusion.core_method=fcooper"])
    config = load_hypes(hypes, [*SHORT, *student(other)])
    with pytest.raises(UserError, match=r"must be a run of early fusion\. Found fcooper"):
        load_teacher(config, CPU)


def test_a_wrong_teacher_stops_a_run_before_it_pretrains(hypes: Path, tmp_path: Path) -> None:
    config = load_hypes(
        hypes, [*SHORT, *student(tmp_path / "none"), "turbotrain.strategy=turbotrain"]
    )
    folder = make_run_folder(config)
    with pytest.raises(UserError, match=r"none is not a run folder"):
        Trainer(config, folder, CPU).run(resume=False)
    assert not (folder / checkpoints.LAST).exists()
    assert not (folder / "metrics.jsonl").exists()


def test_a_run_that_has_only_pretrained(hypes: Path, tmp_path: Path) -> None:
    keys = ["turbotrain.strategy=turbotrain", "model.args.fusion.core_method=early"]
    (tmp_path / "config.yaml").write_text(to_yaml(load_hypes(hypes, keys)), encoding="utf-8")
    position = {"stage": 0}
    checkpoints.save(tmp_path / checkpoints.LAST, {"format": 1, "position": position})
    config = load_hypes(hypes, [*SHORT, *student(tmp_path)])
    with pytest.raises(UserError, match=r"comes from stage pretrain; finish that run first"):
        load_teacher(config, CPU)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        (["model.args.fusion.distill.teacher=logs/x"], "teacher needs core_method disconet"),
        (["model.args.fusion.distill.weight=-1"], "weight must not be negative. Found -1"),
    ],
)
def test_impossible_keys(keys: list[str], complaint: str, hypes: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        load_hypes(hypes, keys)
