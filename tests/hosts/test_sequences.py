"""Our own hypes files in the unmodified scripts of the test host: sequences and prediction."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.helpers.tiny_run import write_hypes
from tests.hosts.test_launcher import Recorder
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import load_hypes
from turbotrain_plugin.engine.checkpoints import STEP_COUNTER
from turbotrain_plugin.engine.optim import learning_rate
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.__main__ import main as launch
from turbotrain_plugin.hosts.balanced_loss import TurbotrainBalanced
from turbotrain_plugin.hosts.checkout import tree_hash
from turbotrain_plugin.hosts.launcher import registered, run_script
from turbotrain_plugin.hosts.randomness import seed_all
from turbotrain_plugin.hosts.sequences import OwnDataset, OwnHypes, OwnLoss, own_hypes, own_network
from turbotrain_plugin.hosts.session import Session, enter
from turbotrain_plugin.hosts.v2xreal import V2XReal
from turbotrain_plugin.losses import task_losses
from turbotrain_plugin.structures import Predictions, Targets, UserError

PLAIN = "turbotrain.strategy=one_time"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypes(tmp_path_factory.mktemp("own"))


@pytest.fixture
def session(fake_host: Path) -> Iterator[Session]:
    with enter(host_named("auto", fake_host), fake_host) as entered:
        yield entered


def plain(file: Path, *overrides: str) -> OwnHypes:
    hypes = own_hypes(file, [PLAIN, *overrides])
    assert hypes is not None
    return hypes


def batch_of(hypes: OwnHypes, session: Session, *indices: int) -> tuple[OwnDataset, dict[str, Any]]:
    dataset = OwnDataset(hypes, session.host, visualize=False, train=False)
    return dataset, dataset.collate_batch_train([dataset[index] for index in indices])


def said(targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and box codes of heads that say the targets."""
    logits = torch.where(targets.labels == 1, 9.0, -9.0)
    codes = torch.zeros(*logits.shape, 7)
    codes[tuple(targets.positive_index.T)] = targets.box_codes
    return logits, codes


def test_pretrained_by_us_balanced_in_the_host_s_loop_scored_by_both(
    fake_host: Path, file: Path, tmp_path: Path
) -> None:
    """The whole way: our pretraining, the host's train.py and inference.py, our evaluation."""
    before = tree_hash(fake_host)
    pretrain = ["-o", "turbotrain.strategy=pretrain_only", "-o", "turbotrain.pretrain.epoches=1"]
    logs = ["-o", f"turbotrain.logging.log_dir={tmp_path / 'pretrained'}"]
    assert main(["train", "--hypes", str(file), "--device", "cpu", *pretrain, *logs]) == 0
    (pretrained,) = (tmp_path / "pretrained").iterdir()
    ours = ["-o", "turbotrain.pretrain.epoches=0", "-o", f"turbotrain.pretrain.init={pretrained}"]
    log_dir = ["--log_dir", str(tmp_path / "logs"), "--run_seed", "1"]
    with enter(host_named("auto", fake_host), fake_host):
        sys.modules["tensorboardX"].SummaryWriter = Recorder  # type: ignore[attr-defined]
        assert launch(["train", *log_dir, *ours, "--hypes_yaml", str(file)]) == 0
    steps = [value for name, value, _ in Recorder.values if name == "total_loss"]
    tasks = [value for name, value, _ in Recorder.values if name in ("detection", "prediction")]
    assert steps == pytest.approx([a + b for a, b in zip(tasks[::2], tasks[1::2], strict=True)])
    assert len(steps) == 10  # two epochs of five batches of two
    (folder,) = (tmp_path / "logs").iterdir()
    weights = torch.load(folder / "net_epoch2.pth", weights_only=True)
    assert int(weights[STEP_COUNTER]) == 10
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0
    assert main(["evaluate", "--model_dir", str(folder), "--device", "cpu"]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["detection"]["n_gt"] > 0
    assert "ade_m" in results["prediction"]
    assert tree_hash(fake_host) == before


def test_network_and_losses_are_those_of_our_own_runs(file: Path, session: Session) -> None:
    hypes = plain(file)
    _, loaded = batch_of(hypes, session, 0, 2)
    batch = session.modules.train_utils.to_device(loaded, torch.device("cpu"))
    network, criterion = own_network(hypes), OwnLoss(hypes)
    output = network(batch["ego"])
    total = criterion(output, batch["ego"]["label_dict"])
    expected = task_losses(
        output["predictions"], loaded["ego"]["batch"].batch, hypes.config.loss.args
    )
    assert list(expected.tasks) == ["detection", "prediction"]
    assert float(total.detach()) == float(expected.total().detach())
    for name, loss in expected.tasks.items():
        torch.testing.assert_close(criterion.loss_dict[name], loss, rtol=0.0, atol=0.0)
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    batches, anchors = 2, len(hypes.config.postprocess.anchor_args.r)
    assert output["psm"].shape[:2] == (batches, anchors)
    assert output["rm"].shape[:2] == (batches, 7 * anchors)


def test_true_boxes_come_back_in_the_host_s_form_and_score_one(
    file: Path, session: Session
) -> None:
    """Heads that say the targets: what the host scores is the truth, and nothing else."""
    hypes = plain(file)
    dataset, loaded = batch_of(hypes, session, 0)
    logits, codes = said(loaded["ego"]["batch"].batch.targets)
    found = dataset.post_process(loaded, {"ego": {"predictions": Predictions(logits, codes, None)}})
    boxes, scores, truth = found
    assert boxes.shape[1:] == truth.shape[1:] == (8, 3)
    assert len(boxes) == len(truth) == len(scores) > 0
    stat = {0.7: {"tp": [], "fp": [], "gt": 0, "score": []}}
    session.modules.eval_utils.caluclate_tp_fp(boxes, scores, truth, stat, 0.7)
    assert session.modules.eval_utils.calculate_ap(stat, 0.7, True)[0] == pytest.approx(1.0)
    nothing = Predictions(torch.full_like(logits, -9.0), codes, None)
    assert dataset.post_process(loaded, {"ego": {"predictions": nothing}})[:2] == (None, None)


def test_v2x_real_gets_classes_too() -> None:
    host = V2XReal()
    boxes, scores = torch.rand(3, 8, 3), torch.tensor([0.9, 0.5, 0.1])
    found, scored, truth, labels = host.answer(boxes, scores, torch.rand(2, 8, 3))
    assert found is boxes
    assert scored.tolist() == [[s, 1.0] for s in scores.tolist()]
    assert (len(truth), labels.tolist()) == (2, [1, 1])
    empty = host.answer(torch.zeros(0, 8, 3), torch.zeros(0), truth)
    assert empty[1].shape == (0, 2)
    none = host.safe_answer((None, None, truth, labels))
    assert none[0].shape == (0, 8, 3)
    assert none[1].shape == (0, 2)


def test_samples_are_drawn_from_torch_s_stream(file: Path, session: Session) -> None:
    hypes = plain(file)
    dataset = OwnDataset(hypes, session.host, visualize=False, train=True)
    points = []
    for seed in (1, 1, 2):
        seed_all(seed)
        points.append(dataset[0].voxels.points)
    assert points[0].tobytes() == points[1].tobytes()
    assert points[0].tobytes() != points[2].tobytes()
    still = OwnDataset(hypes, session.host, visualize=True, train=False)
    assert still[0].voxels.points.tobytes() == still[0].voxels.points.tobytes()


def test_splits_are_the_scripts_own(file: Path, session: Session) -> None:
    """Training, the validation of train.py, and inference.py, which alone asks for pictures."""
    hypes = plain(file)
    scenes = [
        OwnDataset(hypes, session.host, visualize=visualize, train=train)[0].key[0][-3:]
        for train, visualize in ((True, False), (False, False), (False, True))
    ]
    assert scenes == ["1_0", "2_0", "3_0"]


def test_what_the_loops_read_of_a_batch(file: Path, session: Session) -> None:
    dataset, loaded = batch_of(plain(file), session, 0, 1)
    ego = loaded["ego"]
    counts = [len(truth.boxes) for truth in ego["batch"].batch.truth]
    assert ego["object_bbx_mask"].sum(dim=1).tolist() == counts
    assert ego["origin_lidar"][0].shape[1] == 4
    assert len(ego["origin_lidar"][0]) == int(ego["batch"].batch.voxels.point_counts.sum())
    dataset.reinitialize()
    with pytest.raises(UserError, match="opencood visualize"):
        dataset.visualize_result(None)


def test_several_stages_are_refused_with_the_way_out(file: Path) -> None:
    with pytest.raises(UserError, match=r"pretrain, balance\. Pretrain with .*pretrain_only"):
        own_hypes(file)
    with pytest.raises(UserError, match="one stage"):
        own_hypes(file, ["turbotrain.strategy=pretrain_only"])


def test_a_host_s_file_stays_the_host_s(tmp_path: Path) -> None:
    file = tmp_path / "host.yaml"
    file.write_text("name: x\nmodel: {core_method: point_pillar_fcooper}\n", encoding="utf-8")
    assert own_hypes(file) is None


def test_a_teacher_is_refused(file: Path) -> None:
    fusion = "model.args.fusion={core_method: disconet, distill: {teacher: early}}"
    with pytest.raises(UserError, match="no place for a teacher"):
        plain(file, fusion)


@pytest.mark.parametrize(
    "schedule",
    [
        "{core_method: cosine, lr_min: 1e-4}",
        "{core_method: multistep, step_size: [1, 3], gamma: 0.5}",
        "{core_method: step, step_size: [2], gamma: 0.5}",
        "{core_method: exponential, gamma: 0.5}",
        "{core_method: none}",
    ],
)
def test_schedules_are_ours_at_the_start_of_every_epoch(
    file: Path, session: Session, schedule: str
) -> None:
    hypes = plain(file, f"lr_scheduler={schedule}", "train_params.epoches=5")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = session.modules.train_utils.setup_optimizer(
        hypes, torch.nn.ParameterList([parameter])
    )
    rates = session.host.make_scheduler(session.modules, hypes, optimizer, 4)
    base = hypes.config.optimizer.lr
    for epoch in range(5):
        session.host.epoch_begins(rates, hypes, epoch, 4)
        expected = learning_rate(hypes.config.lr_scheduler, base, epoch, 5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_a_warm_up_that_the_host_cannot_do_is_refused(file: Path) -> None:
    with pytest.raises(UserError, match="knows no warm-up"):
        plain(file, "lr_scheduler={core_method: step, step_size: [2], warmup_epoches: 1}")


def test_a_host_without_a_cosine_says_which_schedules_it_has(file: Path) -> None:
    with pytest.raises(UserError, match=r"no cosine schedule.*multistep"):
        own_hypes(file, [PLAIN, "lr_scheduler.core_method=cosine"], cosine=False)


def test_never_is_said_in_a_way_the_loops_understand(file: Path) -> None:
    """The loops divide by both numbers, and keep weights only where they are told to."""
    params = plain(file, "train_params.eval_freq=0", "train_params.save_freq=0")["train_params"]
    assert 1 % params["eval_freq"] != 0
    assert 1 % params["save_freq"] == 0


def test_optimisers_get_their_arguments(file: Path, session: Session) -> None:
    module = torch.nn.Linear(1, 1)
    setup = session.modules.train_utils.setup_optimizer
    adam = setup(plain(file), module).param_groups[0]
    keys = plain(file).config.optimizer
    assert (adam["lr"], adam["eps"], tuple(adam["betas"])) == (
        keys.lr,
        keys.args.eps,
        tuple(keys.args.betas),
    )
    sgd = setup(plain(file, "optimizer.core_method=SGD"), module)
    assert sgd.param_groups[0]["momentum"] == keys.args.betas[0]


def test_a_run_folder_is_read_back_whatever_the_command_line_names(
    file: Path, session: Session, tmp_path: Path
) -> None:
    text = plain(file, "optimizer.lr=0.0123").text()
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with registered(session, tmp_path):
        load = session.modules.yaml_utils.load_yaml
        found = load("another.yaml", Namespace(model_dir=str(tmp_path)))
        assert isinstance(found, OwnHypes)
        assert found["optimizer"]["lr"] == 0.0123
        assert yaml.safe_load(found.text()) == yaml.safe_load(text)
        criterion = session.modules.train_utils.create_loss(found)
        assert isinstance(criterion, OwnLoss)


def test_balancing_follows_the_strategy(file: Path, session: Session, tmp_path: Path) -> None:
    pretrained, source = tmp_path / "weights.pth", own_network(plain(file, "seed=99"))
    torch.save(source.state_dict(), pretrained)
    overrides = ["turbotrain.pretrain.epoches=0", f"turbotrain.pretrain.init={pretrained}"]
    balanced = own_hypes(file, overrides)
    assert balanced is not None
    with registered(session, tmp_path):
        model = session.modules.train_utils.create_model(balanced)
        for name, weight in model.fusion.state_dict().items():
            torch.testing.assert_close(weight, source.fusion.state_dict()[name], msg=name)
        criterion = session.modules.train_utils.create_loss(balanced)
        assert isinstance(criterion, TurbotrainBalanced)
        assert STEP_COUNTER in dict(model.named_buffers())
        plainly = session.modules.train_utils.create_model(plain(file))
        assert STEP_COUNTER not in dict(plainly.named_buffers())


def test_late_fusion_joins_the_objects_of_all_agents(file: Path, session: Session) -> None:
    """Every agent says every object: joined, each of them is said once."""
    hypes = plain(file, "model.args.fusion.core_method=late")
    dataset, loaded = batch_of(hypes, session, 0)
    batch = loaded["ego"]["batch"].batch
    agents = int(batch.record_len[0])
    assert agents > 1
    logits, codes = said(batch.targets)
    everyone = Predictions(
        logits.expand(agents, *logits.shape[1:]),
        codes.expand(agents, *codes.shape[1:]),
        None,
        rows=batch.record_len,
    )
    boxes, scores, truth = dataset.post_process(loaded, {"ego": {"predictions": everyone}})
    assert len(boxes) == len(scores) == len(truth)


def test_a_launched_script_refuses_several_stages(
    fake_host: Path, file: Path, tmp_path: Path
) -> None:
    with (
        enter(host_named("auto", fake_host), fake_host) as session,
        pytest.raises(UserError, match="one stage"),
    ):
        run_script(session, "train", ["--hypes_yaml", str(file)], tmp_path)


def test_overrides_reach_the_file(file: Path) -> None:
    assert load_hypes(file).optimizer.lr != 0.5
    assert plain(file, "optimizer.lr=0.5")["optimizer"]["lr"] == 0.5
