"""The command: verbs, aliases, exit codes, and what goes to which stream."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from turbotrain_plugin import cli
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import load_hypes
from turbotrain_plugin.engine import data_tools, doctor, evaluate, run
from turbotrain_plugin.engine.run import TrainRequest
from turbotrain_plugin.errors import UserError

VERBS = [
    [],
    ["train"],
    ["evaluate"],
    ["inference"],
    ["visualize"],
    ["data"],
    ["data", "synth"],
    ["data", "verify"],
    ["data", "stats"],
    ["data", "browse"],
    ["data", "tree"],
    ["data", "convert"],
    ["config"],
    ["config", "show"],
    ["config", "check"],
    ["config", "diff"],
    ["config", "explain"],
    ["doctor"],
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*verb, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    names = ["evaluate" if name == "inference" else name for name in verb]
    assert out.startswith(" ".join(["usage: opencood", *names, "["]))
    assert "-h, --help" in out


@pytest.mark.parametrize(
    "wrong",
    [[], ["trian"], ["data"], ["evaluate"], ["train", "--seed", "x"], ["config", "show"],
     ["evaluate", "--model_dir", "x", "--split", "dev"], ["data", "synth"]],
)  # fmt: skip
def test_wrong_command_lines_exit_with_2(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(wrong)
    assert end.value.code == 2
    assert "usage: opencood" in capsys.readouterr().err


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[TrainRequest]:
    asked: list[TrainRequest] = []

    def train(request: TrainRequest) -> int:
        asked.append(request)
        return 0

    monkeypatch.setattr(run, "train", train)
    return asked


@pytest.mark.parametrize("flag", ["--hypes", "--hypes_yaml", "-y"])
def test_names_of_the_hypes_option(flag: str, requests: list[TrainRequest]) -> None:
    assert main(["train", flag, "x.yaml"]) == 0
    assert requests == [
        TrainRequest(
            hypes="x.yaml",
            model_dir=None,
            resume=False,
            overrides=[],
            device="auto",
            seed=None,
            half=False,
            dry_run=False,
        )
    ]


@pytest.mark.parametrize("dry", ["--dry-run", "--dry_run"])
def test_train_options_arrive(dry: str, requests: list[TrainRequest]) -> None:
    line = f"train --model_dir d --resume --device cuda:1 --seed 3 --half {dry} -o a=1 -o b.c=2"
    assert main(line.split()) == 0
    assert requests == [
        TrainRequest(
            hypes=None,
            model_dir=Path("d"),
            resume=True,
            overrides=["a=1", "b.c=2"],
            device="cuda:1",
            seed=3,
            half=True,
            dry_run=True,
        )
    ]


@pytest.mark.parametrize("verb", ["evaluate", "inference"])
def test_evaluate_options_arrive(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        evaluate, "evaluate_run", lambda folder, **keys: asked.update(folder=folder, **keys)
    )
    line = f"{verb} --model_dir d --epoch 4 --split validate --dataset_mode ic --device cpu --out o"
    assert main([*line.split(), "-o", "seed=1"]) == 0
    assert asked.pop("device").type == "cpu"
    assert asked == {
        "folder": Path("d"),
        "epoch": 4,
        "split": "validate",
        "overrides": ["seed=1", "dataset_mode=ic"],
        "out": Path("o"),
    }


def test_exit_codes_of_the_rooms_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _further: 1)
    assert main(["doctor"]) == 1
    monkeypatch.setattr(data_tools, "verify", lambda roots, file, **_: len(roots) + (file is None))
    assert main(["data", "verify", "a", "b"]) == 3


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("a.yaml:3: wrong."), 2, "error: a.yaml:3: wrong.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_one_line(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_further: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    assert main(["doctor"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", text)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _further: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_config_show_prints_what_loads_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "turbotrain_v2xpnp.yaml", "-o", "optimizer.lr=1e-4"]) == 0
    file = tmp_path / "shown.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_hypes(file) == load_hypes("turbotrain_v2xpnp.yaml", ["optimizer.lr=1e-4"])


def test_config_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "turbotrain_fcooper.yaml"]) == 0
    assert capsys.readouterr().out.endswith("turbotrain_fcooper.yaml: valid\n")
    file = tmp_path / "bad.yaml"
    file.write_text("optimizer:\n  lrr: 1\n")
    assert main(["config", "check", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {file}:2: unknown key 'optimizer.lrr'")


def test_config_diff(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "diff", "turbotrain_fcooper.yaml", "turbotrain_v2xpnp.yaml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name: 'turbotrain_fcooper' -> 'turbotrain_v2xpnp'",
        "model.args.fusion.core_method: 'fcooper' -> 'v2xpnp'",
    ]
    assert main(["config", "diff", "turbotrain_fcooper.yaml", "turbotrain_fcooper.yaml"]) == 0
    assert capsys.readouterr().out == ""


def test_config_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "turbotrain.balance"]) == 0
    out = capsys.readouterr().out
    assert "turbotrain.balance.free_steps = 2000\n    Free steps n of a cycle (paper).\n" in out
    assert "turbotrain.pretrain" not in out
    assert main(["config", "explain", "nope"]) == 2
    assert "no key begins with 'nope'" in capsys.readouterr().err


def test_help_and_settings_load_no_torch() -> None:
    """They must answer at once."""
    code = (
        "import sys\n"
        "from turbotrain_plugin.cli import main\n"
        "main(['config', 'check', 'turbotrain_v2xpnp.yaml'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_closed_pipe_is_no_error() -> None:
    """`opencood config explain | head -1` must not end in a complaint of the interpreter."""
    code = (
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "from turbotrain_plugin.cli import main\n"
        "sys.exit(main(['config', 'explain']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_program_is_named_as_it_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for argument, name in (("/bin/turbotrain", "turbotrain"), ("__main__.py", "opencood")):
        monkeypatch.setattr(sys, "argv", [argument])
        assert cli._parser().prog == name
