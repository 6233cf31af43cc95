"""Every direction on the real checkouts that variables name (minutes each, skipped without)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.made_host import forget_host, step_lines, write_hypes
from tests.helpers.real_hosts import (
    MORE_MODELS,
    REAL_HOSTS,
    RealHost,
    host_scenes,
    native_root,
)
from tests.helpers.tiny_run import environment
from tests.helpers.tiny_run import write_hypes as write_own_hypes
from tests.hosts.test_launcher import recorded_losses
from turbotrain_plugin.cli import main
from turbotrain_plugin.engine.checkpoints import STEP_COUNTER
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.__main__ import main as launch
from turbotrain_plugin.hosts.checkout import tree_hash
from turbotrain_plugin.hosts.hypes import read
from turbotrain_plugin.hosts.randomness import seed_all
from turbotrain_plugin.hosts.sequences import own_hypes, own_network
from turbotrain_plugin.hosts.session import enter
from turbotrain_plugin.structures import UserError

pytestmark = pytest.mark.timeout(1800)

BLOCK: dict[str, Any] = {
    "host": {"workers": 0, "evaluate": False},
    "balance": {"free_steps": 2, "balance_steps": 2},
    "logging": {"tensorboard": False, "save_steps": 3},
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return host_scenes(tmp_path_factory.mktemp("host_scenes"))


@pytest.fixture(params=REAL_HOSTS, ids=lambda host: host.name)
def real(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealHost]:
    """Return a real host whose checkout is the same before and after."""
    host: RealHost = request.param
    root = host.root
    if root is None:
        pytest.skip(f"{host.variable} names no checkout")
    forget_host()
    monkeypatch.setenv("OPENCOOD_ROOT", str(root))
    before = tree_hash(root)
    monkeypatch.setenv(host.variable, str(root))
    yield host
    forget_host()
    assert tree_hash(root) == before, "the checkout was changed"


def root_of(host: RealHost) -> Path:
    return Path(os.environ["OPENCOOD_ROOT"]) if host.name else Path()


def test_the_checkout_is_recognised(real: RealHost) -> None:
    assert host_named("auto", root_of(real)).name == real.name


def test_plain_losses_are_the_host_s_to_the_bit(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    """Four epochs of five steps and their validations, without our block."""
    hypes = write_hypes(tmp_path / "hypes.yaml", real.small_hypes(scenes, epoches=4))
    theirs = recorded_losses(root_of(real), hypes, tmp_path / "theirs", seed=real.seed)
    folder = tmp_path / "ours"
    folder.mkdir()
    arguments = ["--hypes", str(hypes), "--model_dir", str(folder), "--device", "cpu"]
    assert main(["train", *arguments, "--seed", str(real.seed)]) == 0
    steps = [line["losses"] for line in step_lines(folder) if "losses" in line]
    assert len(steps) == 20
    regression = [value for name, value in theirs if name == "Regression_loss"]
    confidence = [value for name, value in theirs if name == "Confidence_loss"]
    assert regression == [line["reg_loss"] for line in steps]
    assert confidence == [line.get("conf_loss", line.get("cls_loss")) for line in steps]
    validated = [line["loss"] for line in step_lines(folder) if "event" in line]
    assert validated == [value for name, value in theirs if name == "Validate_Loss"]
    results = json.loads((folder / "results.json").read_text())
    assert results["detection"]["n_gt"] > 0
    assert any(name.startswith("ap_0.50") for name in results["host"])


def test_a_balanced_run_survives_sigkill(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    """Twenty steps, ten of them balanced; another process is killed on the way and resumed."""
    hypes = real.small_hypes(scenes, epoches=4) | {"turbotrain": BLOCK}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        write_hypes(folder / "config.yaml", hypes)
    assert main(["train", "--model_dir", str(whole), "--device", "cpu"]) == 0
    command = [sys.executable, "-m", "turbotrain_plugin", "train", "--device", "cpu"]
    running = subprocess.Popen([*command, "--model_dir", str(broken)])
    deadline = time.monotonic() + 600
    while not (broken / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.kill()
    assert running.wait() == -9
    assert len(step_lines(broken)) < len(step_lines(whole))
    assert main(["train", "--resume", "--model_dir", str(broken), "--device", "cpu"]) == 0
    assert step_lines(whole) == step_lines(broken)
    steps = [line for line in step_lines(whole) if "losses" in line]
    assert [line["balanced"] for line in steps] == [False, False, True, True] * 5
    assert steps[-1]["loss"] < steps[0]["loss"]


def with_balanced_loss(hypes: dict[str, Any]) -> dict[str, Any]:
    """Return hypes whose loss is the host's own, balanced in every other step."""
    balance = {"free_steps": 1, "balance_steps": 1}
    args = {**hypes["loss"], "balance": balance}
    return {**hypes, "loss": {"core_method": "turbotrain_balanced", "args": args}}


def test_the_host_s_model_balanced_through_a_patch(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    """A patched copy, started as its users start it, and the copy's bytes after ``revert``."""
    copy, folder = tmp_path / "checkout", tmp_path / "run"
    shutil.copytree(root_of(real), copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    before = tree_hash(copy)
    folder.mkdir()
    hypes = with_balanced_loss(real.small_hypes(scenes, epoches=4))
    file = write_hypes(folder / "config.yaml", hypes)
    assert main(["host", "apply", "--checkout", str(copy)]) == 0
    subprocess.run(
        [sys.executable, "opencood/tools/train.py", "--hypes_yaml", file, "--model_dir", folder],
        cwd=copy,
        env=environment(PYTHONPATH=f"{copy}:{Path.cwd()}", PYTHONDONTWRITEBYTECODE="1"),
        check=True,
    )
    weights = torch.load(folder / "net_epoch4.pth", weights_only=True)
    assert int(weights[STEP_COUNTER]) == 20
    assert main(["host", "revert", "--checkout", str(copy)]) == 0
    assert tree_hash(copy) == before


def test_our_network_and_loss_in_the_host_s_own_loop(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    hypes = with_balanced_loss(real.small_hypes(scenes, epoches=4))
    theirs = hypes["model"]["args"]
    hypes["fusion"]["args"] = {"proj_first": True}
    hypes["model"] = {
        "core_method": "turbotrain_detector",
        "args": {
            "voxel_size": hypes["preprocess"]["args"]["voxel_size"],
            "lidar_range": hypes["preprocess"]["cav_lidar_range"],
            "anchor_number": theirs.get("anchor_number", 2),
            "point_pillar_scatter": {},  # the host's parser puts the grid size there
            "dir_args": theirs.get("dir_args"),
            "feature_stride": 2,
            "network": {
                "channels": 16,
                "encoder": {
                    "core_method": "pillars",
                    "pillar_channels": 16,
                    "pillar_blocks": [1] * real.network.get("feature_stride", 2).bit_length(),
                },
                "neck": {"layers": [1], "filters": [16], "upsample_filters": [16]},
                "temporal": {"heads": 1, "ffn": 16},
                "fusion": {"core_method": "attfuse"},
            },
            **real.network,
        },
    }
    file = write_hypes(tmp_path / "hypes.yaml", hypes)
    log_dir = ["--log_dir", str(tmp_path / "logs"), "--run_seed", "1"]
    assert launch(["train", *log_dir, "--hypes_yaml", str(file)]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    if real.name == "heal" and importlib.util.find_spec("cv2") is None:
        pytest.skip("trained; HEAL's inference.py draws the first frame with opencv")
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0
    assert next(folder.glob("eval*.yaml"), None)


def test_our_own_hypes_file_in_the_host_s_loop(real: RealHost, tmp_path: Path) -> None:
    """Four epochs of five steps with sequences, map and prediction, half of them balanced."""
    file, logs = write_own_hypes(tmp_path), tmp_path / "logs"
    plainly = own_hypes(file, ["turbotrain.strategy=one_time"])
    assert plainly is not None
    torch.save(own_network(plainly).state_dict(), tmp_path / "weights.pth")
    keys = (
        "train_params.epoches=4",
        "lr_scheduler.core_method=multistep",
        "turbotrain.pretrain.epoches=0",
        f"turbotrain.pretrain.init={tmp_path / 'weights.pth'}",
    )
    overrides = [part for key in keys for part in ("-o", key)]
    log_dir = ["--log_dir", str(logs), "--run_seed", "1"]
    assert launch(["train", *log_dir, *overrides, "--hypes_yaml", str(file)]) == 0
    (folder,) = logs.iterdir()
    weights = torch.load(folder / "net_epoch4.pth", weights_only=True)
    assert int(weights[STEP_COUNTER]) == 20
    assert main(["evaluate", "--model_dir", str(folder), "--device", "cpu"]) == 0
    if real.name == "heal" and importlib.util.find_spec("cv2") is None:
        pytest.skip("trained and evaluated; HEAL's inference.py draws with opencv")
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0
    assert next(folder.glob("eval*.yaml"), None)


@pytest.mark.parametrize(
    "real", [*REAL_HOSTS, *MORE_MODELS], ids=lambda host: f"{host.name}-{host.hypes}", indirect=True
)
def test_pretraining_around_the_host_s_encoder(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    """Two epochs of five masked steps, then two of balanced fine-tuning of the same model."""
    if "v2xvit" in real.hypes and importlib.util.find_spec("einops") is None:
        pytest.skip("V2X-ViT of the hosts needs einops")
    pretrain = {"epoches": 2, "optimizer": {"lr": 0.002}}
    block = BLOCK | {"strategy": "turbotrain", "pretrain": pretrain}
    folder = tmp_path / "run"
    folder.mkdir()
    write_hypes(folder / "config.yaml", real.small_hypes(scenes, epoches=2) | {"turbotrain": block})
    assert main(["train", "--model_dir", str(folder), "--device", "cpu"]) == 0
    steps = [line for line in step_lines(folder) if "losses" in line]
    assert [line["stage"] for line in steps] == ["pretrain"] * 10 + ["balance"] * 10
    assert set(steps[0]["losses"]) == {"points", "occupancy"}
    assert steps[9]["loss"] < steps[0]["loss"]


# -------------------------------------------------------------------------------------- our reader


def read_all(root: Path, file: Path, *, train: bool) -> list[Any]:
    """Return every batch of two samples of a split, as for training and as for inference."""
    hypes = read(file)
    with enter(host_named("auto", root), root) as session:
        parsed = hypes.parsed(session.host, session.modules)
        seed_all(3)
        made = session.modules.datasets.build_dataset(parsed, visualize=False, train=train)
        batches = []
        for index in range(0, len(made) - 1, 2):
            seed_all(index)
            pair = [made[index], made[index + 1]]
            batches.append(made.collate_batch_train(pair))
        seed_all(1)
        if not train:
            batches.append(made.collate_batch_test([made[1]]))
        return [len(made), *batches]


def assert_equal(found: Any, expected: Any, where: str) -> None:  # noqa: ANN401
    """Compare structures with equal types and dtypes, numbers to 1e-9 and integers exactly."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, item in expected.items():
            assert_equal(found[key], item, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for number, item in enumerate(expected):
            assert_equal(found[number], item, f"{where}[{number}]")
    elif isinstance(expected, torch.Tensor | np.ndarray):
        assert found.dtype == expected.dtype, where
        assert found.shape == expected.shape, where
        left, right = np.asarray(found), np.asarray(expected)
        if left.dtype.kind == "f":
            np.testing.assert_allclose(left, right, rtol=0, atol=1e-9, err_msg=where)
        else:
            assert np.array_equal(left, right), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("kind", ["intermediate", "early", "late"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "validate"])
def test_our_reader_fills_the_host_s_batches_as_the_host_does(
    real: RealHost,
    scenes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    train: bool,
) -> None:
    """The host's own layout: OPV2V, and V2XPnP-Seq for V2X-Real and CooPre; every key and dtype."""
    hypes = real.small_hypes(scenes, epoches=1)
    native = native_root(real, scenes)
    hypes["root_dir"], hypes["validate_dir"] = (str(native / one) for one in ("train", "validate"))
    heal = real.name == "heal"
    hypes["fusion"]["core_method"] = kind if heal else f"{kind.capitalize()}FusionDataset"
    listed = os.listdir
    # HEAL shuffles what the file system lists; ours shuffles the agents by name.
    monkeypatch.setattr(os, "listdir", lambda *args: sorted(listed(*args)))
    theirs = read_all(root_of(real), write_hypes(tmp_path / "theirs.yaml", hypes), train=train)
    data = {"format": "auto", "classes": []}
    hypes["turbotrain"] = {"host": {"data": data}}
    ours = read_all(root_of(real), write_hypes(tmp_path / "ours.yaml", hypes), train=train)
    assert ours[0] >= 9
    assert_equal(ours, theirs, "")


def test_a_host_s_model_trains_on_files_that_the_host_cannot_read(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    """Five steps on V2XPnP-Seq files with frames that not every agent has; then evaluation."""
    made = scenes["made"]
    hypes = real.small_hypes(scenes, epoches=1)
    hypes["root_dir"] = hypes["validate_dir"] = hypes["test_dir"] = str(made)
    plain = hypes | {"validate_dir": str(made / "train")}
    with pytest.raises((KeyError, UserError)):  # a frame that one lacks; no .pcd
        read_all(root_of(real), write_hypes(tmp_path / "plain.yaml", plain), train=False)
    block = BLOCK | {"host": {"workers": 2, "data": {"format": "auto"}}}
    folder = tmp_path / "run"
    folder.mkdir()
    write_hypes(folder / "config.yaml", hypes | {"turbotrain": block})
    assert main(["train", "--model_dir", str(folder), "--device", "cpu"]) == 0
    steps = [line for line in step_lines(folder) if "losses" in line]
    assert len(steps) >= 5
    results = json.loads((folder / "results.json").read_text())
    assert results["protocol"]["frames"] >= 9
    assert results["detection"]["n_gt"] > 0


def test_the_host_s_train_script_runs_on_our_reader(
    real: RealHost, scenes: dict[str, Path], tmp_path: Path
) -> None:
    hypes = real.small_hypes(scenes, epoches=1)
    hypes["root_dir"] = hypes["validate_dir"] = hypes["test_dir"] = str(scenes["made"])
    hypes["turbotrain"] = {"host": {"data": {"format": "v2xpnp_seq"}}}
    file = write_hypes(tmp_path / "hypes.yaml", hypes)
    log_dir = ["--log_dir", str(tmp_path / "logs"), "--run_seed", "1"]
    assert launch(["train", *log_dir, "--hypes_yaml", str(file)]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    assert list(folder.glob("net_epoch*.pth"))
    if real.name == "heal" and importlib.util.find_spec("cv2") is None:
        pytest.skip("trained; HEAL's inference.py draws the first frame with opencv")
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0
    assert next(folder.glob("eval*.yaml"), None)
