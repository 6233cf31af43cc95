"""The doctor's findings, their states, and the exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

from turbotrain_plugin.engine import doctor
from turbotrain_plugin.engine.doctor import Finding, examine
from turbotrain_plugin.engine.records import version_of
from turbotrain_plugin.models import spconv_support

LINE = re.compile(r"^(  ok|warn|FAIL)  (\S+(?: \d+)?)\s+(.*)$")


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Return what -> (state, found) of the printed lines."""
    lines = [line for line in capsys.readouterr().out.splitlines() if "  fix: " not in line]
    matches = [LINE.match(line) for line in lines]
    assert all(matches), lines
    return {match[2]: (match[1].strip(), match[3]) for match in matches if match}


def hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Make a package look as if it were not installed."""
    version = version_of
    monkeypatch.setattr(
        doctor, "version_of", lambda name: None if name.startswith(hidden) else version(name)
    )


def has_spconv() -> bool:
    return any(version_of(name) for name in doctor._SPCONV_WHEELS)


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = examine()
    found = report(capsys)
    assert {"Python", "torch", "spconv", "PyYAML", "OpenCOOD", "disk"} <= set(found)
    assert torch.__version__ in found["torch"][1]
    assert code == int(any(state == "FAIL" for state, _ in found.values()))
    if has_spconv():
        assert found["spconv"][0] == "ok"
        assert "agrees with dense convolution" in found["spconv"][1]


def test_without_spconv_there_is_a_way_on_and_a_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "spconv")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert examine() == 0
    out = capsys.readouterr().out
    assert "warn  spconv" in out
    assert "encoder `pillars` works" in out
    assert "fix: pip install 'turbotrain_plugin[cpu]'" in out


def test_an_spconv_that_computes_wrongly_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: "2.3.8" if name == "spconv" else None)
    wrong = spconv_support.SelfTest(False, "differs by 0.1", 0.1)
    monkeypatch.setattr(spconv_support, "spconv_self_test", lambda: wrong)
    assert examine() == 1
    out = capsys.readouterr().out
    assert "FAIL  spconv" in out
    assert "fix: pip install --force-reinstall" in out


def test_two_spconv_wheels_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("spconv", "spconv-cu124")
    monkeypatch.setattr(doctor, "version_of", lambda name: "2.3.8" if name in both else None)
    assert examine() == 1
    assert "fix: pip uninstall -y spconv spconv-cu124" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cuda", "extra"),
    [
        (None, "cpu"),
        ("11.8", "cu118"),
        ("12.1", "cu120"),
        ("12.4", "cu124"),
        ("12.6", "cu126"),
        ("12.8", "cu126"),
        ("13.0", "cu126"),
    ],
)
def test_the_extra_for_a_cuda(
    cuda: str | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert doctor._spconv_extra() == extra


def test_the_extras_are_declared() -> None:
    """Every extra that a fix names can be installed."""
    declared = set(metadata.metadata("turbotrain_plugin").get_all("Provides-Extra") or [])
    assert {"cpu", "cu118", "cu120", "cu124", "cu126"} <= declared


def test_an_old_torch_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.2.1+cu118")
    monkeypatch.setattr(doctor, "_LOOKS", (doctor._torch,))
    assert examine() == 1
    assert "fix: pip install 'torch>=2.3'" in capsys.readouterr().out


@pytest.mark.parametrize(("made", "state"), [(True, "ok"), (False, "warn")])
def test_the_checkout_of_the_host(
    made: bool,
    state: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if made:
        (tmp_path / "opencood").mkdir()
    monkeypatch.setenv("OPENCOOD_ROOT", str(tmp_path))
    monkeypatch.setattr(doctor, "_LOOKS", (doctor._opencood,))
    assert examine() == 0
    assert report(capsys)["OpenCOOD"][0] == state


def test_only_a_failure_changes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look() -> Iterator[Finding]:
        yield Finding("ok", "one", "fine")
        yield Finding("warn", "two", "so so", "do this")

    def fail() -> Iterator[Finding]:
        yield Finding("FAIL", "three", "broken")

    monkeypatch.setattr(doctor, "_LOOKS", (look,))
    assert examine() == 0
    assert capsys.readouterr().out == (
        "  ok  one  fine\nwarn  two  so so\n           fix: do this\n"
    )
    monkeypatch.setattr(doctor, "_LOOKS", (look, fail))
    assert examine() == 1
