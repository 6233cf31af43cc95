"""The `data` commands: make, verify, describe and convert data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from turbotrain_plugin.data.convert import convert_roots
from turbotrain_plugin.data.inspect import root_stats, verify_root
from turbotrain_plugin.data.layout import check_root
from turbotrain_plugin.engine.data_views import plot_stats
from turbotrain_plugin.engine.records import Steps, emit, write_json
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import PRESETS, LabelNoise, generate


def synthesise(
    preset: str,
    out: Path,
    *,
    seed: int,
    workers: int,
    tracks: Path | None,
    resume: bool,
    cloud_stride: int | None = None,
    noise: str | None = None,
) -> int:
    """Make synthetic scenes and say where they are.

    Raises:
        UserError: For an unknown preset or noise, a stride that does not fit the labels, a foreign
            folder or bad tracks.
    """
    if preset not in PRESETS:
        raise UserError(f"--preset must be one of {', '.join(PRESETS)}. Found {preset!r}.")
    wanted = PRESETS[preset]
    if noise is not None:
        wanted = replace(wanted, noise=LabelNoise.parse(noise))
    if cloud_stride is not None:
        if cloud_stride < 1 or cloud_stride % wanted.label_stride:
            raise UserError(
                f"--cloud-stride must be a multiple of {wanted.label_stride}, the label stride of "
                f"{preset}. Found {cloud_stride}."
            )
        wanted = replace(wanted, cloud_stride=cloud_stride)
    root = generate(
        wanted,
        out,
        seed=seed,
        workers=workers,
        tracks=tracks,
        resume=resume,
        progress=Steps("scenes"),
    )
    emit(f"synthetic scenes: {root}\nnext:  opencood data stats {root}")
    return 0


def verify(
    roots: list[Path], json_file: Path | None, *, stride: int = 10, strict: bool = False
) -> int:
    """Print the findings; exit code 1 when something is wrong.

    Args:
        roots: Roots or split folders.
        json_file: Also write the report here.
        stride: Every n-th cloud is read whole.
        strict: Take warnings for errors.

    Raises:
        UserError: When a folder is missing or holds no scene.
    """
    if stride < 1:
        raise UserError(f"--stride must be at least 1. Found {stride}.")
    for root in roots:
        check_root(root)
    report = verify_root(roots, progress=Steps("verify"), cloud_stride=stride)
    if json_file is not None:
        write_json(json_file, report.to_json())
    emit(report.table())
    return 0 if report.ok and not (strict and report.problems) else 1


def stats(
    roots: list[Path], json_file: Path | None, *, plots: Path | None = None, stride: int = 10
) -> int:
    """Print what is in the data.

    Args:
        roots: Roots or split folders.
        json_file: Also write the numbers here.
        plots: Also draw a page of plots here.
        stride: Points are counted in every n-th cloud.

    Raises:
        UserError: When the data cannot be read, or a file not be written.
    """
    if stride < 1:
        raise UserError(f"--stride must be at least 1. Found {stride}.")
    if plots is not None and plots.suffix != ".png":
        raise UserError(f"--plots must name a .png file. Found {plots.name!r}.")
    for root in roots:
        check_root(root)
    found = root_stats(roots, progress=Steps("stats"), cloud_stride=stride)
    if json_file is not None:
        write_json(json_file, found.to_json())
    emit(found.table())
    if plots is not None:
        emit(f"\nplots: {plot_stats(found, roots, plots)}")
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
