"""The rules of the house, read from the sources: who imports whom, how long files may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "turbotrain_plugin"
NAME = PACKAGE.name
LONGEST_FILE = 400

# Room -> rooms it may import. `errors` is below everything; structures re-exports it.
_GROUND = {"errors", "structures", "config", "geometry"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "structures": {"errors"},
    "config": {"errors"},
    "geometry": {"errors"},
    "data": _GROUND,
    "models": _GROUND,
    "losses": _GROUND,
    "balancing": _GROUND,
    "evaluation": _GROUND,
    "reporting": _GROUND,
    "synthetic": _GROUND | {"data"},
    "pretraining": _GROUND | {"models", "losses"},
}
ALLOWED["engine"] = _GROUND | set(ALLOWED)
ALLOWED["hosts"] = ALLOWED["engine"] | {"engine"}
ALLOWED["cli"] = ALLOWED["hosts"] | {"hosts"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = {"balancing", "config", "models", "pretraining"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_modules(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module) of every import, the lazy ones inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = [NAME, *path.relative_to(PACKAGE).parts[: -node.level]]
                yield node.lineno, ".".join([*package, node.module or ""]).rstrip(".")
            else:
                yield node.lineno, node.module or ""
                if node.module == NAME:
                    for alias in node.names:
                        yield node.lineno, f"{NAME}.{alias.name}"


def violations(path: Path, source: str) -> list[str]:
    room = room_of(path)
    found = []
    for line, module in imported_modules(ast.parse(source), path):
        top, _, rest = module.partition(".")
        if top == "opencood" and room != "hosts":
            found.append(f"{path.name}:{line} imports opencood outside hosts/")
        if top == NAME and rest:
            target = rest.split(".")[0]
            if target != room and target in ALLOWED and target not in ALLOWED[room]:
                found.append(f"{path.name}:{line} {room} imports {target}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    assert room_of(path) in ALLOWED, f"the room {room_of(path)} has no place in the layers"
    assert violations(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/x.py", "from turbotrain_plugin.models import build_model"),
        ("data/x.py", "from ..models import build_model"),
        ("losses/x.py", "def f():\n    import turbotrain_plugin.engine.steps"),
        ("geometry/x.py", "from turbotrain_plugin import cli"),
        ("engine/x.py", "import opencood.tools"),
        ("config/x.py", "import turbotrain_plugin.structures"),
    ],
)
def test_a_forbidden_import_is_seen(file: str, source: str) -> None:
    assert violations(PACKAGE / file, source)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_too_long(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{lines} lines; split it along its ideas"


def test_importing_the_package_loads_neither_torch_nor_a_host() -> None:
    import subprocess
    import sys

    code = (
        "import sys, turbotrain_plugin, turbotrain_plugin.cli\n"
        "heavy = {'torch', 'numpy', 'opencood', 'matplotlib', 'spconv'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reporting_works_without_torch() -> None:
    rooms = [path for path in FILES if room_of(path) == "reporting"]
    for path in rooms:
        modules = {m.split(".")[0] for _, m in imported_modules(ast.parse(path.read_text()), path)}
        assert "torch" not in modules, path
        assert f"{NAME}.structures" not in {
            m for _, m in imported_modules(ast.parse(path.read_text()), path)
        }, path
