"""Findings: what a check says, how grave each kind is, and how a scene's checks write them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["KINDS", "SEVERITIES", "Finding", "Notes", "runs"]

SEVERITIES: Final = ("error", "warning", "info")
"""Training on it is wrong or impossible; it is survived, at a price; it is usual in recordings."""

KINDS: Final[dict[str, tuple[str, str]]] = {
    # Files and times.
    "empty-scene": ("error", "no agent has a frame with labels and a cloud"),
    "no-frames": ("warning", "an agent has no frame with labels and a cloud"),
    "label-without-cloud": ("warning", "label files without a cloud"),
    "cloud-without-label": ("warning", "clouds without a label file"),
    "frame-missing": ("info", "one or two frames in a row are missing"),
    "frame-gap": ("warning", "three or more frames in a row are missing"),
    "frames-differ": ("info", "some frames are not those of all agents"),
    "span-differs": ("warning", "an agent begins late or ends early"),
    "no-shared-frames": ("warning", "no two agents have a frame at the same time"),
    "off-grid-files": ("warning", "label files between the frames of 10 Hz"),
    "odd-file-name": ("warning", "label or cloud files that no reader takes for a frame"),
    "odd-folder": ("warning", "a folder with frames whose name is no agent number"),
    # Label files.
    "bad-label": ("error", "a label file cannot be read"),
    "bad-pose": ("error", "a pose is not finite and rigid"),
    "bad-object": ("error", "an object has an impossible value"),
    "odd-size": ("warning", "an object is smaller or larger than anything on a road"),
    "size-convention": ("warning", "cars have half or twice the size of cars"),
    "tilted-box": ("warning", "an object leans by more than 30 degrees"),
    "box-at-sensor": ("warning", "an object contains the LiDAR that labels it"),
    "no-objects": ("warning", "an agent labels nothing where others do"),
    "unknown-class": ("info", "a class name of no known data set"),
    "class-conflict": ("warning", "one object has several classes"),
    # Poses of agents.
    "tilted-sensor": ("warning", "a sensor leans by more than 30 degrees"),
    "pose-jump": ("warning", "an agent jumps or spins between two frames"),
    "roadside-moves": ("warning", "a roadside unit moves"),
    # Objects over agents and time.
    "duplicate-id": ("warning", "two ids for what is one object"),
    "label-conflict": ("warning", "two agents put one object in different places"),
    "track-jump": ("warning", "an object jumps between two frames"),
    "heading-flip": ("warning", "a heading turns round between two frames"),
    "heading-reversed": ("warning", "an object drives backwards all the time"),
    "heading-off": ("warning", "headings do not follow the motion"),
    # Clouds.
    "empty-cloud": ("error", "a cloud without points"),
    "truncated-cloud": ("error", "a cloud that ends in the middle of a point"),
    "bad-cloud": ("error", "a cloud cannot be read"),
    "nan-points": ("info", "points without a finite position"),
    "thin-cloud": ("warning", "a cloud of less than a tenth of the usual size"),
    "far-points": ("warning", "points farther than any LiDAR sees"),
    "points-outside-z": ("warning", "most points lie outside the z range of the model"),
    "frozen-cloud": ("warning", "a cloud is a copy of the one before it while labels move"),
    # Clouds against labels and against each other.
    "label-frame": ("error", "boxes are given in another frame than the format says"),
    "boxes-off-points": ("warning", "nearly no box near the sensor holds points"),
    "box-height": ("warning", "boxes float above the ground or are sunk into it"),
    "ground-gap": ("warning", "two agents see the ground at different heights"),
    "pose-convention": ("error", "a pose fits once a sign or axis is put right"),
    "poses-disagree": ("warning", "what stands still is in two places"),
    # Map.
    "map-missing": ("info", "the root has no map of the area"),
    "bad-map": ("error", "the map cannot be read"),
    "agent-off-map": ("warning", "an agent is far from every lane"),
    "objects-off-map": ("warning", "most moving vehicles are far from every lane"),
    "map-height": ("warning", "the map lies above or far below the vehicles"),
    # Scenes against each other.
    "scene-twice": ("error", "a scene name appears twice"),
    "split-overlap": ("error", "scenes of two splits hold the same frames"),
    "repeated-content": ("warning", "two scenes of a split hold the same frames"),
}
"""Kind of finding to its severity and meaning. Kinds are stable: scripts may look for them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation.

    Attributes:
        severity: One of ``SEVERITIES``.
        kind: A key of ``KINDS``.
        scene: Scene name.
        agent: Agent id, or None when the scene as a whole is meant.
        frame: First frame concerned, or None.
        message: One sentence.
    """

    severity: str
    kind: str
    scene: str
    agent: int | None
    frame: int | None
    message: str


class Notes:
    """Where the checks of a scene write."""

    def __init__(self, scene: str, findings: list[Finding]) -> None:
        self._scene = scene
        self._findings = findings

    def add(self, kind: str, agent: int | None, frame: int | None, message: str) -> None:
        """Add a finding; its severity is that of its kind."""
        severity, _ = KINDS[kind]
        self._findings.append(Finding(severity, kind, self._scene, agent, frame, message))


def runs(frames: Collection[int], step: int) -> list[Sequence[int]]:
    """Return frames sorted and split where the distance is more than ``step``."""
    found: list[list[int]] = []
    for frame in sorted(frames):
        if found and frame - found[-1][-1] <= step:
            found[-1].append(frame)
        else:
            found.append([frame])
    return list(found)
