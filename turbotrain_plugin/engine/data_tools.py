"""The `data` commands: make, verify, describe and convert data."""

from __future__ import annotations

from pathlib import Path

from turbotrain_plugin.data.convert import convert_roots
from turbotrain_plugin.data.inspect import root_stats, verify_root
from turbotrain_plugin.engine.records import Steps, emit, write_json
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import PRESETS, generate


def synthesise(
    preset: str, out: Path, *, seed: int, workers: int, tracks: Path | None, resume: bool
) -> int:
    """Make synthetic scenes and say where they are.

    Raises:
        UserError: For an unknown preset, a foreign folder or bad tracks.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}. Found {preset!r}.")
    root = generate(
        preset,
        out,
        seed=seed,
        workers=workers,
        tracks=tracks,
        resume=resume,
        progress=Steps("scenes"),
    )
    emit(f"synthetic scenes: {root}\nnext:  opencood data stats {root}")
    return 0


def verify(roots: list[Path], json_file: Path | None) -> int:
    """Print the findings; exit code 1 when something is wrong."""
    report = verify_root(roots, progress=Steps("verify"))
    if json_file is not None:
        write_json(json_file, report.to_json())
    emit(report.table())
    return 0 if report.ok else 1


def stats(roots: list[Path], json_file: Path | None) -> int:
    """Print what is in the data."""
    found = root_stats(roots)
    if json_file is not None:
        write_json(json_file, found.to_json())
    emit(found.table())
    return 0


def convert(roots: list[Path], source: str, target: str, out: Path) -> int:
    """Write data in another format and say where they are.

    Raises:
        UserError: For an unknown format, data that cannot be read, or a folder that is not empty.
    """
    done = convert_roots(roots, source, target, out, progress=Steps("convert"))
    emit(
        f"{target}: {out} ({done.scenes} scenes, {done.frames} label files, {done.clouds} clouds, "
        f"{done.maps} maps)\nnext:  opencood data verify {out}"
    )
    return 0
