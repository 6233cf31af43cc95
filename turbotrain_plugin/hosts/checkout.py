"""The user's checkout of a host: where it is, and a proof that it was left as it was."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Final

from turbotrain_plugin.structures import UserError

ROOT_VARIABLE: Final = "OPENCOOD_ROOT"
PACKAGE: Final = "opencood"


def locate(root: str = "") -> Path:
    """Return the folder that holds the package ``opencood``.

    Args:
        root: ``turbotrain.host.root``; empty: the variable ``OPENCOOD_ROOT``, else where Python
            would import the package from.

    Raises:
        UserError: When there is none, with what to do.
    """
    named = root or os.environ.get(ROOT_VARIABLE, "")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / PACKAGE).is_dir():
            raise UserError(
                f"{folder}: no checkout of OpenCOOD, there is no folder `{PACKAGE}` in it; "
                f"{ROOT_VARIABLE} or turbotrain.host.root names the folder above it."
            )
        return folder
    loaded = sys.modules.get(PACKAGE)
    spec = importlib.util.find_spec(PACKAGE) if loaded is None else loaded.__spec__
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise UserError(
            "This needs your own checkout of OpenCOOD or one of its forks, which is not shipped: "
            "`git clone https://github.com/DerrickXuNu/OpenCOOD` and set "
            f"{ROOT_VARIABLE}=/path/to/OpenCOOD."
        )
    return Path(places[0]).resolve().parent


def tree_hash(root: Path) -> str:
    """Return a SHA-256 over names and bytes of every file below ``root``, ``.git`` left out."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if relative.parts[0] == ".git" or not path.is_file():
            continue
        digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
