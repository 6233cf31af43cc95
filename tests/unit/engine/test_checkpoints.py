"""Checkpoints: whole or not at all, fitting or refused, found by the names OpenCOOD uses."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import nn

from turbotrain_plugin.engine import checkpoints
from turbotrain_plugin.errors import UserError


def test_round_trip(tmp_path: Path) -> None:
    state = {"format": 1, "model": {"w": torch.arange(3)}, "list": [1, 2.5, "x", None]}
    checkpoints.save(tmp_path / "a.ckpt", state)
    loaded = checkpoints.load_run_state(tmp_path / "a.ckpt")
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert loaded["list"] == state["list"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("x\ny")])
def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, error: Exception
) -> None:
    target = tmp_path / "a.ckpt"
    target.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(UserError, match=r"a\.ckpt: cannot be written .*untouched"):
        checkpoints.atomic_write(target, fail)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_write_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        checkpoints.save(tmp_path / "none" / "a.ckpt", {})


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such checkpoint"):
        checkpoints.load(tmp_path / "none.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(b"\x80\x04 garbage")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoints.load(tmp_path / "bad.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"must hold a dictionary. Found list"):
        checkpoints.load(tmp_path / "list.ckpt")
    torch.save({"model": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"not a run checkpoint of format 1. Found None"):
        checkpoints.load_run_state(tmp_path / "foreign.ckpt")


def test_truncated_checkpoint(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a.ckpt", {"format": 1, "w": torch.zeros(1000)})
    whole = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoints.load(tmp_path / "a.ckpt")


def test_weights_must_fit_entirely() -> None:
    model = nn.Linear(2, 3)
    source = Path("x.pth")
    good = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    checkpoints.load_weights(model, good, source)
    assert torch.equal(model.weight, torch.ones(3, 2))
    with pytest.raises(UserError, match=r"1 missing \(such as bias\)"):
        checkpoints.load_weights(model, {"weight": good["weight"]}, source)
    with pytest.raises(UserError, match=r"1 foreign \(such as other\)"):
        checkpoints.load_weights(model, {**good, "other": torch.ones(1)}, source)
    with pytest.raises(UserError, match=r"weight \(4, 2\) in place of \(3, 2\)"):
        checkpoints.load_weights(model, {**good, "weight": torch.ones(4, 2)}, source)


def test_weights_of_either_kind_of_file() -> None:
    tensor = torch.ones(1)
    assert checkpoints.model_weights({"w": tensor}) == {"w": tensor}
    assert checkpoints.model_weights({"model": {"w": tensor}, "epoch": 3}) == {"w": tensor}


def test_finding_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.find_weights(tmp_path)
    for name in ("last.ckpt", "net_epoch2.pth", "net_epoch10.pth", "net_epoch_bestval_at3.pth"):
        (tmp_path / name).touch()
    assert list(checkpoints.epoch_files(tmp_path)) == [2, 10]
    assert checkpoints.find_weights(tmp_path).name == "last.ckpt"  # never older than an epoch's
    (tmp_path / "last.ckpt").unlink()
    assert checkpoints.find_weights(tmp_path).name == "net_epoch10.pth"
    assert checkpoints.find_weights(tmp_path, 2).name == "net_epoch2.pth"
    with pytest.raises(UserError, match=r"no net_epoch3\.pth. Found epochs \[2, 10\]"):
        checkpoints.find_weights(tmp_path, 3)
    (tmp_path / "best.ckpt").touch()
    assert checkpoints.find_weights(tmp_path).name == "best.ckpt"
