"""The keys of loading act: number of processes, how long they live, how far they work ahead."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_scenes import junction_scene, write_root
from turbotrain_plugin.config import (
    DataConfig,
    Preprocess,
    RunConfig,
    TurboTrainBlock,
)
from turbotrain_plugin.config.data import PreprocessArgs
from turbotrain_plugin.data import CooperativeDataset, PreparedSample, SampleKey, make_loader
from turbotrain_plugin.data import loader as loader_module

FRAMES = 8
HOW: dict[str, Any] = {"batch_size": 1, "shuffle": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = junction_scene("2023-01-01-00-00-00_1_0", frames=FRAMES)
    return write_root(tmp_path_factory.mktemp("workers"), {"train": [made]})


class Witness(CooperativeDataset):
    """Leaves a file per sample that says who made it and when."""

    notes: Path
    pause_s = 0.0

    def __getitem__(self, key: SampleKey) -> PreparedSample:
        (self.notes / f"{key.epoch}_{key.index}").write_text(str(os.getpid()))
        time.sleep(self.pause_s)
        return super().__getitem__(key)

    def makers(self, epoch: int) -> set[int]:
        return {int(path.read_text()) for path in self.notes.glob(f"{epoch}_*")}


def witness(root: Path, notes: Path, **data: Any) -> Witness:  # noqa: ANN401 - keys of DataConfig
    keys = {"hist_frames": 1, "future_steps": 1, "use_map": False, **data}
    config = RunConfig(
        preprocess=Preprocess(
            cav_lidar_range=(-51.2, -38.4, -8.0, 51.2, 38.4, 0.0),
            args=PreprocessArgs(voxel_size=(0.8, 0.8, 0.8)),
        ),
        turbotrain=TurboTrainBlock(data=DataConfig(**keys)),
    )
    dataset = Witness(config, [root], split="train", purpose="train")
    notes.mkdir(parents=True, exist_ok=True)
    dataset.notes = notes
    return dataset


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True)
def _no_workers_left() -> Any:  # noqa: ANN401 - a generator
    yield
    loader_module._WORKERS.clear()


def test_number_of_processes(root: Path, tmp_path: Path) -> None:
    for count in (0, 1, 2):
        data = witness(root, tmp_path / str(count), num_workers=count)
        list(make_loader(data, epoch=0, **HOW))
        makers = data.makers(0)
        assert (makers == {os.getpid()}) if count == 0 else (len(makers) == count)
        assert (os.getpid() in makers) == (count == 0)


@pytest.mark.parametrize("persistent", [True, False])
def test_processes_stay_from_epoch_to_epoch(root: Path, tmp_path: Path, persistent: bool) -> None:
    data = witness(root, tmp_path, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        list(make_loader(data, epoch=epoch, **HOW))
    first, second, third = (data.makers(epoch) for epoch in range(3))
    assert len(first) == 2
    assert (first == second == third) == persistent
    assert bool(first & second) == persistent
    assert all(map(alive, third)) == persistent


def test_no_more_processes_than_batches(root: Path, tmp_path: Path) -> None:
    data = witness(root, tmp_path, num_workers=4)
    list(make_loader(data, epoch=0, start_batch=FRAMES - 2, **HOW))
    assert len(data.makers(0)) == 2
    assert not loader_module._WORKERS  # too few to be worth keeping


@pytest.mark.parametrize(("factor", "ahead"), [(1, 2), (3, 4)])
def test_how_far_they_work_ahead(root: Path, tmp_path: Path, factor: int, ahead: int) -> None:
    """One process: what has been handed over, and ``prefetch_factor`` batches in the making."""
    data = witness(root, tmp_path, num_workers=1, prefetch_factor=factor)
    walk = iter(make_loader(data, epoch=0, **HOW))
    next(walk)
    deadline = time.monotonic() + 5
    while len(list(tmp_path.iterdir())) < ahead and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == ahead
    walk.close()  # type: ignore[attr-defined]


def test_an_epoch_left_in_the_middle_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    """Batches that kept processes have prepared ahead are not those of the next walk."""
    data = witness(root, tmp_path / "a", num_workers=2)
    walk = iter(make_loader(data, epoch=0, **HOW))
    next(walk)
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    again = list(make_loader(data, epoch=1, **HOW))
    plain = list(make_loader(witness(root, tmp_path / "b", num_workers=0), epoch=1, **HOW))
    assert data.makers(0) == data.makers(1)
    assert [batch.keys for batch in again] == [batch.keys for batch in plain]
    for one, two in zip(again, plain, strict=True):
        assert torch.equal(one.voxels.points, two.voxels.points)


def test_two_walks_at_a_time_do_not_share_processes(root: Path, tmp_path: Path) -> None:
    data = witness(root, tmp_path, num_workers=2)
    loader = make_loader(data, epoch=0, **HOW)
    for one, two in zip(loader, loader, strict=True):
        assert one.keys == two.keys


def test_processes_of_two_data_sets_are_kept_and_older_ones_end(root: Path, tmp_path: Path) -> None:
    makers = []
    for number in range(3):
        data = witness(root, tmp_path / str(number), num_workers=1)
        list(make_loader(data, epoch=0, **HOW))
        (maker,) = data.makers(0)
        makers.append(maker)
    assert len(loader_module._WORKERS) == 2
    assert [alive(maker) for maker in makers] == [False, True, True]


def test_waiting_is_counted(root: Path, tmp_path: Path) -> None:
    data = witness(root, tmp_path, num_workers=0)
    data.pause_s = 0.05
    slow = make_loader(data, epoch=0, **HOW)
    for _ in slow:
        time.sleep(0.02)  # the step itself is not waiting
    assert FRAMES * 0.05 <= slow.waited_s < FRAMES * 0.05 + 2.0
    begin = time.perf_counter()
    data.pause_s = 0.0
    quick = make_loader(data, epoch=1, **HOW)
    for _ in quick:
        time.sleep(0.05)
    assert quick.waited_s <= time.perf_counter() - begin - FRAMES * 0.05


def test_a_program_with_kept_processes_ends(root: Path, tmp_path: Path) -> None:
    """They ignore SIGTERM, by which multiprocessing ends its children at exit."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.data.test_loader_workers import HOW, witness\n"
        "from turbotrain_plugin.data import make_loader\n"
        "data = witness(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=2)\n"
        "walk = iter(make_loader(data, epoch=0, **HOW)); next(walk); print(*data.makers(0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), str(tmp_path / "notes")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not any(alive(int(pid)) for pid in done.stdout.split())
