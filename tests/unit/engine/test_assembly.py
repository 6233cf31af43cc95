"""From settings to folders, devices and seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.engine import assembly
from turbotrain_plugin.engine.assembly import (
    derive_seed,
    pick_device,
    prepare_torch,
    resolve_roots,
    split_entries,
)
from turbotrain_plugin.errors import UserError


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    seeds = [derive_seed(0, "a", 1), derive_seed(1, "a", 1), derive_seed(0, "b", 1), derive_seed(0)]
    assert len(set(seeds)) == 4
    assert derive_seed(0, "a", 1) == seeds[0]
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Pinned: a checkpoint of another day or process must find the same draws.
    assert derive_seed(0, "weights") == 133441691874178746


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"--device cuda: this torch sees no CUDA device"):
        pick_device("cuda")
    for name in ("gpu", "cuda:x", "", "meta", "mps"):
        with pytest.raises(UserError, match="--device must be auto, cpu, cuda or cuda:N"):
            pick_device(name)


def test_devices_where_there_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"--device cuda:2: there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_entries_of_a_split() -> None:
    config = RunConfig(root_dir=("a",), validate_dir=("b",), test_dir=("c", "d"))
    assert split_entries(config, "train") == (("a",), "train")
    assert split_entries(config, "validate") == (("b",), "validate")
    assert split_entries(config, "test") == (("c", "d"), "test")


def test_the_validation_split_stands_in_for_the_test_split() -> None:
    assert split_entries(RunConfig(validate_dir=("b",)), "test") == (("b",), "validate")


@pytest.mark.parametrize(
    ("split", "key"),
    [("train", "root_dir"), ("validate", "validate_dir"), ("test", "validate_dir")],
)
def test_a_split_without_a_folder(split: str, key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is empty.*synthetic:tiny"):
        split_entries(RunConfig(), split)


@pytest.mark.parametrize(
    ("made", "split", "found"),
    [
        (("train", "val", "test"), "train", "train"),
        (("train", "val", "test"), "validate", "val"),
        (("train", "validate", "test"), "validate", "validate"),
        (("train", "val", "test"), "test", "test"),
        (("some_scene",), "train", ""),  # OpenCOOD's habit: the split's own folder
        (("val", "validate"), "validate", "val"),
    ],
)
def test_roots_and_split_folders(
    made: tuple[str, ...], split: str, found: str, tmp_path: Path
) -> None:
    for name in made:
        (tmp_path / name).mkdir()
    assert resolve_roots((str(tmp_path),), split) == [tmp_path / found]


def test_several_roots_keep_their_order_and_a_missing_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    entries = (str(tmp_path / "b"), str(tmp_path / "a"))
    assert resolve_roots(entries, "train") == [tmp_path / "b", tmp_path / "a"]
    with pytest.raises(UserError, match=r"none: there is no such data folder"):
        resolve_roots((*entries, str(tmp_path / "none")), "train")


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    assert resolve_roots(("~/data",), "train") == [tmp_path / "data"]


def test_synthetic_roots_are_made_with_one_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ensure(preset: str, seed: int, progress: object) -> Path:
        assert callable(progress)
        asked.append((preset, seed))
        (tmp_path / "val").mkdir()
        return tmp_path

    monkeypatch.setattr(assembly, "ensure_dataset", ensure)
    assert resolve_roots(("synthetic:tiny",), "validate") == [tmp_path / "val"]
    assert asked == [("tiny", 0)]


def test_an_unknown_synthetic_preset() -> None:
    with pytest.raises(UserError, match="nope"):
        resolve_roots(("synthetic:nope",), "train")


def test_threads_are_set_only_when_asked() -> None:
    before = torch.get_num_threads()
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        prepare_torch(RunConfig())
        assert torch.get_num_threads() == before
        assert torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        block = replace(RunConfig().turbotrain, deterministic=False, threads=before + 1)
        prepare_torch(RunConfig(turbotrain=block))
        assert torch.get_num_threads() == before + 1
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=True)
