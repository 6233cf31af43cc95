"""Patches: added lines only, unknown files refused, exact bytes back, and they work."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.made_host import FAKE_HOST, host_hypes, write_hypes
from turbotrain_plugin.cli import main
from turbotrain_plugin.hosts import patching
from turbotrain_plugin.hosts.checkout import tree_hash
from turbotrain_plugin.hosts.patching import parse, patches_dir, shipped_patch
from turbotrain_plugin.structures import UserError

LINE = "import turbotrain_plugin.hosts.plug  # noqa: F401"


def patch_text(root: Path) -> str:
    """Return a patch in the shape of the shipped ones, for the checkout at ``root``."""
    parts = [f"# some/host {'0' * 40}"]
    for script in ("train", "inference"):
        path = f"opencood/tools/{script}.py"
        plain = (root / path).read_bytes().replace(b"\r\n", b"\n")
        parts += [f"# sha256 {hashlib.sha256(plain).hexdigest()} {path}", f"--- a/{path}"]
        parts += [f"+++ b/{path}", "@@ -0,0 +1 @@", f"+{LINE}"]
    return "\n".join(parts) + "\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    shutil.copytree(FAKE_HOST, root, ignore=shutil.ignore_patterns("__pycache__"))
    return root


@pytest.mark.parametrize("windows", [False, True])
def test_apply_adds_a_line_and_revert_restores_the_bytes(checkout: Path, windows: bool) -> None:
    script = checkout / "opencood" / "tools" / "train.py"
    if windows:
        script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    script.chmod(0o755)
    patch, before = parse(patch_text(checkout)), tree_hash(checkout)
    assert set(patch.states(checkout).values()) == {"original"}
    assert patch.apply(checkout) == 2
    assert set(patch.states(checkout).values()) == {"patched"}
    assert script.read_bytes().splitlines()[0].decode() == LINE
    assert patch.apply(checkout) == 0
    assert patch.revert(checkout) == 2
    assert tree_hash(checkout) == before
    assert script.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("action", ["apply", "revert"])
def test_an_unknown_file_is_refused_and_nothing_written(checkout: Path, action: str) -> None:
    patch = parse(patch_text(checkout))
    if action == "revert":
        patch.apply(checkout)
    script = checkout / "opencood" / "tools" / "inference.py"
    script.write_text(script.read_text() + "# mine\n")
    before = tree_hash(checkout)
    with pytest.raises(UserError, match=r"inference\.py is not the file of some/host"):
        getattr(patch, action)(checkout)
    assert tree_hash(checkout) == before


def test_a_patch_with_context_or_removals_is_refused() -> None:
    with pytest.raises(ValueError, match="added lines only"):
        parse("--- a/x\n+++ b/x\n@@ -1,0 +1 @@\n old line\n")


def test_the_shipped_patches_hold_one_line_of_ours_and_nothing_of_a_host() -> None:
    names = sorted(path.stem for path in patches_dir().glob("*.patch"))
    assert names == ["coopre", "heal", "opencood", "v2xreal"]
    for name in names:
        for file in shipped_patch(name).files:
            assert file.insertions == ((0, LINE),)


def test_the_command_checks_applies_and_reverts(
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "opencood.patch").write_text(patch_text(checkout))
    monkeypatch.setattr(patching, "patches_dir", lambda: tmp_path)
    before = tree_hash(checkout)
    for action, state in (("check", "original"), ("apply", "patched"), ("revert", "original")):
        assert main(["host", action, "--checkout", str(checkout)]) == 0
        assert capsys.readouterr().out.count(f"  {state:<8}") == 2
    assert tree_hash(checkout) == before


def test_a_patched_script_knows_our_loss(checkout: Path, frames: Path, tmp_path: Path) -> None:
    parse(patch_text(checkout)).apply(checkout)
    args = {"core_method": "tiny_loss", "args": {"reg": 2.0}}
    changed = host_hypes(frames, loss={"core_method": "turbotrain_balanced", "args": args})
    changed["train_params"]["epoches"] = 1
    hypes = write_hypes(tmp_path / "hypes.yaml", changed)
    path = os.pathsep.join([str(checkout), str(Path(patching.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "opencood/tools/train.py", "--hypes_yaml", str(hypes)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (checkout / "opencood" / "logs" / "tiny" / "net_epoch1.pth").is_file()


def test_plug_is_for_patched_scripts_only() -> None:
    with pytest.raises(UserError, match="patched scripts"):
        importlib.import_module("turbotrain_plugin.hosts.plug")
