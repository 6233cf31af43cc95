"""Look a dataset over before hours of training: what is wrong with it, and what is in it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from turbotrain_plugin.data.checks.findings import KINDS, SEVERITIES, Finding
from turbotrain_plugin.data.checks.maps import MapCheck
from turbotrain_plugin.data.checks.overlap import check_overlaps
from turbotrain_plugin.data.formats import find_reader
from turbotrain_plugin.data.formats.folders import scene_folders, split_folders
from turbotrain_plugin.data.root_stats import ClassStats, RootStats, SplitStats, root_stats
from turbotrain_plugin.data.scene_checks import SceneCheck, check_scene

__all__ = [
    "ClassStats",
    "Finding",
    "Progress",
    "RootStats",
    "SplitStats",
    "VerifyReport",
    "root_stats",
    "verify_root",
]

Progress = Callable[[int, int, str], None]
"""Called with scenes done, scenes in all, and the name of the scene begun."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ``verify_root`` found.

    Attributes:
        roots: Folders as given.
        scenes: Scenes looked at.
        label_steps: Usual distance of label frames in 10 Hz frames; several where scenes differ.
        cloud_steps: The same of clouds.
        label_files: Label files read without error.
        clouds_read: Clouds read whole.
        points_outside_z: Share of points outside ``z_range_m``, of the clouds read.
        z_range_m: The z range meant.
        ground_gap_m: Median over scenes of how far two agents disagree on the height of the ground;
            None where no two agents see the same ground.
        worst_ground_gap_m: The largest of any scene.
        findings: Errors first, notes (``info``) last.
    """

    roots: tuple[str, ...]
    scenes: int
    label_steps: tuple[int, ...]
    cloud_steps: tuple[int, ...]
    label_files: int
    clouds_read: int
    points_outside_z: float
    z_range_m: tuple[float, float]
    ground_gap_m: float | None
    worst_ground_gap_m: float | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Return whether nothing was found that training would stumble over."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Return errors and warnings: all but what is usual in recordings."""
        return tuple(finding for finding in self.findings if finding.severity != "info")

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        counts = Counter(finding.kind for finding in self.findings)
        kinds = {
            kind: {"severity": KINDS[kind][0], "meaning": KINDS[kind][1], "findings": count}
            for kind, count in sorted(counts.items())
        }
        return {"schema": 1, "ok": self.ok, "kinds": kinds, **dataclasses.asdict(self)}

    def table(self, limit: int = 50) -> str:
        """Return the report as text.

        Args:
            limit: Findings that are listed; the rest is counted.
        """
        low, high = self.z_range_m
        kinds = Counter(finding.severity for finding in self.findings)
        lines = [
            f"scenes            {self.scenes}",
            f"frame steps       labels {_joined(self.label_steps)}, clouds "
            f"{_joined(self.cloud_steps)} (1 is 10 Hz)",
            f"label files       {self.label_files}",
            f"clouds read       {self.clouds_read}",
            f"points outside z  {self.points_outside_z:.1%} (z in [{low:g}, {high:g}] m)",
            f"ground agreement  {_metres(self.ground_gap_m)} median, "
            f"{_metres(self.worst_ground_gap_m)} worst scene",
            f"findings          {kinds['error']} errors, {kinds['warning']} warnings, "
            f"{kinds['info']} notes",
        ]
        for finding in self.findings[:limit]:
            agent = "" if finding.agent is None else f" agent {finding.agent}"
            frame = "" if finding.frame is None else f" frame {finding.frame:06d}"
            place = f"{finding.scene}{agent}{frame}"
            lines.append(f"{finding.severity:<8}{finding.kind:<20}{place}: {finding.message}")
        if len(self.findings) > limit:
            lines.append(f"... and {len(self.findings) - limit} more")
        return "\n".join(lines)


def verify_root(
    roots: Sequence[Path],
    *,
    progress: Progress | None = None,
    cloud_stride: int = 10,
    z_range_m: tuple[float, float] = (-5.0, 3.0),
) -> VerifyReport:
    """Check every scene of dataset folders; reads only, and never uses the label cache.

    Args:
        roots: Roots or split folders, as for ``open_root``.
        progress: Called before every scene, and once at the end.
        cloud_stride: Read every n-th cloud whole (all of them are checked for their size).
        z_range_m: Heights in the LiDAR frame that the model will look at.

    Raises:
        UserError: When a folder is missing or holds no scene; damaged scenes are findings instead.
    """
    folders = [folder for root in roots for folder in split_folders(Path(root))]
    reader = find_reader(roots)
    scenes = [reader.index(path) for folder in folders for path in scene_folders(folder)]
    checks: list[SceneCheck] = []
    maps = MapCheck()
    for done, scene in enumerate(scenes):
        if progress is not None:
            progress(done, len(scenes), scene.name)
        checks.append(
            check_scene(scene, reader, maps, cloud_stride=cloud_stride, z_range_m=z_range_m)
        )
    if progress is not None:
        progress(len(scenes), len(scenes), "")
    prints = {row: check.prints for row, check in enumerate(checks)}
    findings = check_overlaps(scenes, prints)
    findings += [finding for check in checks for finding in check.findings]
    points = sum(check.points for check in checks)
    gaps = [float(np.median(c.ground_gaps_m)) for c in checks if c.ground_gaps_m]
    return VerifyReport(
        roots=tuple(str(root) for root in roots),
        scenes=len(scenes),
        label_steps=tuple(sorted({check.label_step for check in checks})),
        cloud_steps=tuple(sorted({check.cloud_step for check in checks})),
        label_files=sum(check.label_files for check in checks),
        clouds_read=sum(check.clouds_read for check in checks),
        points_outside_z=sum(check.points_outside_z for check in checks) / max(points, 1),
        z_range_m=z_range_m,
        ground_gap_m=float(np.median(gaps)) if gaps else None,
        worst_ground_gap_m=max(gaps, default=None),
        findings=tuple(sorted(findings, key=lambda one: SEVERITIES.index(one.severity))),
    )


def _joined(numbers: Sequence[int]) -> str:
    return "/".join(map(str, numbers))


def _metres(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} m"
