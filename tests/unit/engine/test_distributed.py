"""Who is who among the processes of a run, who speaks, and why a run ended."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import pytest
import torch

from turbotrain_plugin.engine import distributed, launch
from turbotrain_plugin.engine.distributed import (
    LostProcess,
    Place,
    first_host,
    is_launched,
    is_lost,
    place_of,
    rendezvous_variables,
    run_together,
)
from turbotrain_plugin.engine.interrupts import StopRequest
from turbotrain_plugin.engine.position import Position
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.errors import UserError

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
SLURM = {
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[003-006,009],login1",
}


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("environ", "launched"),
    [
        ({}, False),
        ({"WORLD_SIZE": "4"}, False),  # some clusters set it, and launch nothing
        (TORCHRUN, True),
        ({**TORCHRUN, "WORLD_SIZE": "1"}, False),
        (SLURM, True),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}, False),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "1"}, False),  # torchrun inside of a Slurm job
    ],
)
def test_when_there_are_several_processes(environ: dict[str, str], launched: bool) -> None:
    assert is_launched(environ) == launched


def test_slurm_says_what_torchrun_would() -> None:
    assert rendezvous_variables(SLURM) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": "18456",
    }
    chosen = {"MASTER_ADDR": "head", "MASTER_PORT": "1"}
    assert rendezvous_variables({**SLURM, **chosen}).items() >= chosen.items()
    assert rendezvous_variables({**SLURM, **TORCHRUN}) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[003-006,009],login1", "gpu003"),
        ("a1,a2", "a1"),
        ("n[1,3]-ib", "n1-ib"),
        ("rack2-[10-12]", "rack2-10"),
    ],
)
def test_the_first_machine_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    for device in ("auto", "cuda"):
        assert place_of(TORCHRUN, device) == Place(3, 4, 1, torch.device("cuda", 1))
    assert place_of(TORCHRUN, "cpu").device == torch.device("cpu")
    with pytest.raises(UserError, match="cannot share one GPU"):
        place_of(TORCHRUN, "cuda:0")
    with pytest.raises(UserError, match="Process 2 of this machine has no GPU: there are 2"):
        place_of({**TORCHRUN, "LOCAL_RANK": "2"}, "auto")


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    assert run_together(lambda device: len(device.type), "cpu") == 3
    assert not torch.distributed.is_initialized()


class Store:
    """What all processes see."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, key: str, amount: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + amount
        return self.counts[key]


class Gone(Store):
    """It went with the process that kept it."""

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError(f"{key} {amount}: Connection reset by peer")


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Let the next process of a run meet the others in a store."""
    for name, value in {**TORCHRUN, "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return lambda store: monkeypatch.setattr(distributed, "_meet", lambda _place: store)


def fail(error: Exception) -> Any:  # noqa: ANN401
    def work(_device: torch.device) -> int:
        raise error

    return work


def test_what_several_processes_find_is_said_once(
    meet: Any,  # noqa: ANN401
    capsys: pytest.CaptureFixture[str],
) -> None:
    meet(Store())
    assert [run_together(fail(UserError("a")), "cpu") for _ in range(3)] == [2, 2, 2]
    assert capsys.readouterr().err == "error: a\n"
    assert run_together(fail(UserError("b")), "cpu") == 2
    assert run_together(fail(LostProcess("c")), "cpu") == 1
    assert capsys.readouterr().err == "error: b\nerror: c\n"
    meet(Gone())
    assert run_together(fail(LostProcess("c")), "cpu") == 1
    assert capsys.readouterr().err == "error: c\n"


def test_only_the_first_process_logs(meet: Any) -> None:  # noqa: ANN401
    meet(Store())
    heard: list[bool] = []

    def work(_device: torch.device) -> int:
        heard.append(LOG.isEnabledFor(logging.INFO))
        return 0

    LOG.setLevel(logging.INFO)
    assert run_together(work, "cpu") == 0
    LOG.setLevel(logging.INFO)
    os.environ["RANK"] = "0"
    assert run_together(work, "cpu") == 0
    assert heard == [False, True]


def test_which_errors_mean_that_a_process_is_gone() -> None:
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"
    assert is_lost(RuntimeError(gloo))
    assert is_lost(torch.distributed.DistBackendError("NCCL error"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(ValueError(gloo))


@pytest.mark.parametrize(
    ("codes", "code", "text"),
    [
        ({0: 1, 1: -9}, 137, "process 1 was killed by SIGKILL"),
        ({0: 2, 1: 1}, 2, ""),
        ({1: 143}, 143, ""),
        ({0: 1}, 1, "processes [0] failed"),
    ],
)
def test_why_a_run_ended(
    codes: dict[int, int], code: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(LOG, "error", lambda form, *args: said.append(form % args))
    assert launch.explain(codes) == code
    assert len(said) == bool(text)
    assert all(text in line for line in said)


@pytest.mark.parametrize(
    ("count", "processes", "device", "message"),
    [
        (0, 2, "auto", "--gpus 2 --device cpu runs 2 processes on the CPU"),
        (2, 3, "auto", "there are 2 CUDA devices"),
        (2, 2, "cuda:0", "needs one of its own"),
        (2, 0, "cuda", "must be at least 1"),
    ],
)
def test_gpus_that_do_not_suffice(
    count: int, processes: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(UserError, match=message):
        launch.check_gpus(processes, device)


def test_gpus_that_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    launch.check_gpus(2, "cuda")
    launch.check_gpus(9, "cpu")


def test_a_patient_request_takes_a_repeated_signal_for_the_same() -> None:
    with StopRequest(patient=True) as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_another_number_of_processes_leaves_no_sample_out(
    before: int, after: int, batch_size: int
) -> None:
    """By the loader's own rule: an epoch is one order, cut into batches of all processes."""
    order = list(range(97))
    for done in range(8):
        seen = order[: done * before * batch_size]
        position = Position(epoch=3, batch=done, stage_step=50)
        position.spread(before, after)
        rest = order[position.batch * after * batch_size :]
        assert set(seen) | set(rest) == set(order)
        assert len(set(seen) & set(rest)) < after * batch_size
        assert (position.epoch, position.stage_step) == (3, 50)
