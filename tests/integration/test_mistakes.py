"""Mistakes of the user: one clear sentence, exit code 2, no traceback, nothing overwritten."""

from __future__ import annotations

import hashlib
import pickle
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.tiny_run import command, environment, run_command, tiny_config, write_hypes
from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.engine.records import make_run_folder
from turbotrain_plugin.engine.trainer import Trainer
from turbotrain_plugin.errors import UserError

SCENE = "2023-03-17-15-53-02_1_0"


def tree_hash(folder: Path) -> str:
    """Return a hash over names and bytes, the label caches (which may be written) left out."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if ".turbotrain_cache" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def assert_one_sentence(done: Any, *words: str) -> None:  # noqa: ANN401 - CompletedProcess
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last, last


class Foreign:
    """Pickles to a call that leaves a file behind when it is executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def train_folder(data: Path) -> Path:
    return data / "data" / "train" / SCENE


def remove_root(folder: Path) -> None:
    shutil.rmtree(folder / "data" / "train")
    (folder / "data").rename(folder / "elsewhere")


def empty_scene(folder: Path) -> None:
    for file in train_folder(folder).rglob("*.bin"):
        file.unlink()


def truncated_cloud(folder: Path) -> None:
    for file in train_folder(folder).glob("1/*.bin"):
        file.write_bytes(file.read_bytes()[:-5])


def not_a_number(folder: Path) -> None:
    for file in train_folder(folder).glob("*/*.bin"):
        points = np.fromfile(file, dtype="<f4")
        points[:] = np.nan
        points.tofile(file)


def python_tag(folder: Path) -> None:
    for file in train_folder(folder).glob("1/*.yaml"):
        file.write_text(
            file.read_text() + f"extra: !!python/object/apply:os.mkdir [{folder / 'executed'}]\n"
        )


def foreign_pickle(folder: Path) -> None:
    for file in (folder / "data" / "map").glob("*.pkl"):
        file.write_bytes(pickle.dumps(Foreign(folder / "executed"), protocol=2))


DEFECTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "missing folder": (remove_root, ("there is no such data folder",)),
    "empty scene": (empty_scene, (SCENE,)),
    "truncated cloud": (truncated_cloud, (".bin", "16")),
    "python tag": (python_tag, (".yaml", "nothing is executed")),
    "foreign pickle": (foreign_pickle, (".pkl",)),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defective_data(name: str, tmp_path: Path) -> None:
    file = write_hypes(tmp_path)
    spoil, words = DEFECTS[name]
    spoil(tmp_path)
    before = tree_hash(tmp_path)
    done = run_command("train", "--hypes", file, "--device", "cpu", cwd=tmp_path)
    assert_one_sentence(done, *words)
    assert not (tmp_path / "executed").exists()
    shutil.rmtree(tmp_path / "logs", ignore_errors=True)
    assert tree_hash(tmp_path) == before


def test_points_that_are_no_numbers_are_dropped_not_learnt(tmp_path: Path) -> None:
    """An agent whose cloud is all NaN is an agent without points, never a NaN loss."""
    config = tiny_config(tmp_path, ["turbotrain.strategy=one_time", "train_params.epoches=1"])
    for file in train_folder(tmp_path).glob("2/*.bin"):
        points = np.fromfile(file, dtype="<f4")
        points[:] = np.nan
        points.tofile(file)
    records = Trainer(config, make_run_folder(config), torch.device("cpu")).run(resume=False)
    assert np.isfinite(records[0]["last_loss"])


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("optimizer.lrr=1", "Did you mean 'lr'"),
        ("optimizer.lr=quick", "must be a number"),
        ("turbotrain.strategy=turbo", "must be one of"),
    ],
)
def test_bad_keys(override: str, word: str, tmp_path: Path) -> None:
    file = write_hypes(tmp_path)
    done = run_command("train", "--hypes", file, "-o", override, cwd=tmp_path)
    assert_one_sentence(done, word)
    assert not (tmp_path / "logs").exists()


def test_missing_hypes_and_folders(tmp_path: Path) -> None:
    assert_one_sentence(run_command("train", cwd=tmp_path), "--hypes")
    done = run_command("train", "--hypes", "turbotrain_v2xpn.yaml", cwd=tmp_path)
    assert_one_sentence(done, "Did you mean 'turbotrain_v2xpnp.yaml'")
    done = run_command("evaluate", "--model_dir", tmp_path, cwd=tmp_path)
    assert_one_sentence(done, "not a run folder")
    done = run_command("train", "--model_dir", tmp_path / "none", cwd=tmp_path)
    assert_one_sentence(done, "no such run folder")
    done = run_command("train", "--device", "cuda:99", cwd=tmp_path)
    assert_one_sentence(done, "cuda:99")


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, ["turbotrain.strategy=one_time", "train_params.epoches=1"])
    run = make_run_folder(config)
    Trainer(config, run, torch.device("cpu")).run(resume=False)
    other = (run / "config.yaml").read_text().replace("channels: 16", "channels: 32", 1)
    assert "channels: 32" in other
    (run / "config.yaml").write_text(other)
    before = tree_hash(run)
    done = run_command("evaluate", "--model_dir", run, "--device", "cpu", cwd=tmp_path)
    assert_one_sentence(done, "belongs to another model", "of another shape")
    assert tree_hash(run) == before
    (run / "best.ckpt").write_bytes(b"no checkpoint at all")
    done = run_command("evaluate", "--model_dir", run, "--device", "cpu", cwd=tmp_path)
    assert_one_sentence(done, "best.ckpt", "not a readable checkpoint")


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"format": 1, "model": Foreign(marker)}, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoints.load(tmp_path / "bad.ckpt")
    assert not marker.exists()


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """Files may not grow beyond a limit (the kernel says so as on a full disk)."""
    config = tiny_config(tmp_path, ["turbotrain.strategy=one_time", "train_params.epoches=1"])
    run = make_run_folder(config)
    Trainer(config, run, torch.device("cpu")).run(resume=False)
    limit = (run / "last.ckpt").stat().st_size // 2
    # The next epoch would write last.ckpt again; give it one that is not finished yet.
    text = (run / "config.yaml").read_text().replace("epoches: 1,", "epoches: 9,", 1)
    (run / "config.yaml").write_text(text.replace("epoches: 1\n", "epoches: 9\n", 1))
    before = (run / "last.ckpt").read_bytes()

    def cap() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        command("train", "--resume", "--model_dir", run, "--device", "cpu"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=cap,
        timeout=120,
        check=False,
    )
    assert_one_sentence(done, "last.ckpt", "cannot be written", "previous last.ckpt is untouched")
    assert (run / "last.ckpt").read_bytes() == before
    checkpoints.load_run_state(run / "last.ckpt")
    assert not list(run.glob("*.tmp")) + list(run.glob(".*.tmp"))
