"""Scenes in the shape the hosts can read, from any data set that we can read.

Beside the OPV2V layout the hosts want every agent to have the ego's timestamps (a dropped frame is
a KeyError there), and handle one roadside unit: a second one would become the ego.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from turbotrain_plugin.data.convert import convert_roots
from turbotrain_plugin.data.formats.pcd import read_pcd

_LEAST_SHARE: Final = 0.5
"""An agent that would cost a scene more than half of its frames is left out instead."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was left out to fit.

    Attributes:
        agents: Agents.
        frames: Frames of agents that stay.
    """

    agents: int
    frames: int


def convert_for_hosts(
    roots: Sequence[Path], source: str, out: Path, *, clouds: str = "pcd"
) -> Fitted:
    """Write ``out/<split>/<scene>/<agent>/<timestamp>.{yaml,pcd}``, fit for the hosts.

    Args:
        roots: Roots or split folders.
        source: A name of ``FORMATS``, or ``auto``.
        out: A new or empty folder.
        clouds: ``pcd`` for OpenCOOD and HEAL, ``bin`` for V2X-Real and CooPre.

    Raises:
        UserError: As ``data convert``.
    """
    convert_roots(roots, source, "opv2v", out)
    fitted = fit_for_hosts(out)
    if clouds == "bin":
        for path in out.glob("*/*/*/*.pcd"):
            read_pcd(path).astype(np.float32).tofile(path.with_suffix(".bin"))
            path.unlink()
    return fitted


def fit_for_hosts(root: Path) -> Fitted:
    """Remove from ``root/<split>/<scene>`` what the hosts cannot read; these must be ours."""
    agents = frames = 0
    for scene in sorted(path for path in root.glob("*/*") if path.is_dir()):
        kept = {folder: _timestamps(folder) for folder in scene.iterdir() if folder.is_dir()}
        for folder in _left_out(kept):
            shutil.rmtree(folder)
            del kept[folder]
            agents += 1
        common = set.intersection(*kept.values())
        for folder, stamps in kept.items():
            for stamp in stamps - common:
                frames += 1
                for path in folder.glob(f"{stamp}.*"):
                    path.unlink()
    return Fitted(agents, frames)


def _timestamps(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.yaml")}


def _left_out(agents: dict[Path, set[str]]) -> list[Path]:
    """Return all roadside units but the first, and agents with too few frames in common."""
    roadside = sorted((folder for folder in agents if folder.name.startswith("-")), reverse=True)
    dropped = roadside[:-1]
    kept = {folder: stamps for folder, stamps in agents.items() if folder not in dropped}
    while len(kept) > 1:
        longest = max(len(stamps) for stamps in kept.values())
        if len(set.intersection(*kept.values())) >= _LEAST_SHARE * longest:
            break
        shortest = min(kept, key=lambda folder: (len(kept[folder]), folder.name))
        dropped.append(shortest)
        del kept[shortest]
    return dropped
