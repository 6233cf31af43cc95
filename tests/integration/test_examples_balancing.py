"""The stand-alone examples run, and the pages show what they hold."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import re
import runpy
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = DOCS / "examples"
PAGES = {
    "balancing_lightning.md": "lightning_manual.py",
    "balancing_compile.md": "compiled_heads.py",
}


@pytest.fixture(autouse=True)
def _short_schedules() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    monkeypatch.setattr(sys, "argv", [name, *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run_here() -> None:
    named = {"plain_loop.py", "lightning_manual.py", "compiled_heads.py"}
    assert named <= {path.name for path in EXAMPLES.glob("*.py")}


def test_plain_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = run("plain_loop.py", monkeypatch, capsys, "--steps", "24")
    assert "Shared parameters (4 tensors, 1344 numbers): encoder (2), fusion (2)." in text
    assert "balanced steps of this cycle: 2" in text
    assert re.search(r"conflict rate, free: \{'detection/prediction': [\d.]+\}", text)


def test_without_lightning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    text = run("lightning_manual.py", monkeypatch, capsys, "--steps", "25")
    assert "with Lightning: False" in text
    assert "optimiser steps: 25" in text
    assert "conflict rate: {'detection/prediction'" in text


def test_with_lightning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    text = run("lightning_manual.py", monkeypatch, capsys, "--steps", "25")
    assert "with Lightning: True" in text
    assert "optimiser steps: 25" in text


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_heads(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run("compiled_heads.py", monkeypatch, capsys, "--steps", "23", "--backend", backend)
    assert "Shared parameters (4 tensors, 1344 numbers): trunk (4)." in text
    assert "Tensors only one task reaches: detection 4, prediction 4." in text
    assert "optimiser steps: 23" in text


def loop_of(function: object) -> list[str]:
    """Return the lines of a training function from its optimiser on."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()  # type: ignore[arg-type]
    first = next(i for i, line in enumerate(lines) if line.startswith("    optimizer ="))
    return [line[4:] for line in lines[first:]]


def test_the_page_of_the_plain_loop_is_the_diff_of_its_functions() -> None:
    example = loaded("plain_loop.py")
    before, after = loop_of(example.plain), loop_of(example.balanced)
    _, _, _, *changes = difflib.unified_diff(before, after, lineterm="", n=99)
    expected = [f"{line[0]} {line[1:]}" for line in changes]
    page = (DOCS / "balancing_plain_loop.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```diff\n(.*?)```", page, flags=re.DOTALL)
    assert shown.splitlines() == expected


@pytest.mark.parametrize(("page", "example"), PAGES.items())
def test_pages_quote_their_examples(page: str, example: str) -> None:
    source = (EXAMPLES / example).read_text(encoding="utf-8")
    lines = [line.strip() for line in source.splitlines()]
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        quoted = [line.strip() for line in block.splitlines()]
        starts = range(len(lines) - len(quoted) + 1)
        assert any(lines[i : i + len(quoted)] == quoted for i in starts), block
