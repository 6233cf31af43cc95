"""The example of docs/pretraining.md runs as it stands, and learns."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers.tiny_run import environment

_ROOT = Path(__file__).parents[2]
_EXAMPLE = _ROOT / "docs" / "examples" / "pretrain_own_encoder.py"
_PAGE = _ROOT / "docs" / "pretraining.md"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_own_encoder", _EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_runs_and_leaves_an_encoder_that_loads(
    example: ModuleType, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(_EXAMPLE), "3"],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(_ROOT)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"loss \d\.\d{3} -> \d\.\d{3}; encoder\.pth\n", done.stdout)
    state = torch.load(tmp_path / "encoder.pth", weights_only=True)
    example.HeightMapEncoder().load_state_dict(state)


def test_the_loss_falls_and_the_encoder_has_learnt(example: ModuleType) -> None:
    encoder, history = example.pretrain(40)
    torch.manual_seed(0)
    fresh = example.HeightMapEncoder()
    assert sum(history[-5:]) < 0.75 * sum(history[:5])
    first = encoder.layers[0].weight
    assert (first - fresh.layers[0].weight).abs().max() > 1e-3


def test_the_page_shows_what_the_script_holds() -> None:
    """Every line of the page's Python stands in the script, in this order."""
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = [line.strip() for line in "".join(blocks).splitlines() if line.strip()]
    held = [line.strip() for line in _EXAMPLE.read_text(encoding="utf-8").splitlines()]
    assert len(shown) > 10
    position = 0
    for line in shown:
        if line == "...":
            continue
        assert line in held[position:], line
        position = held.index(line, position) + 1
