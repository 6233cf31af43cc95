"""All checks of one scene, and what they come to; the checks themselves are in ``checks/``."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbotrain_plugin.data.checks.clouds import check_clouds
from turbotrain_plugin.data.checks.files import check_files
from turbotrain_plugin.data.checks.findings import Finding, Notes
from turbotrain_plugin.data.checks.labels import check_labels, check_poses, read_labels
from turbotrain_plugin.data.checks.maps import MapCheck
from turbotrain_plugin.data.checks.overlap import fingerprints
from turbotrain_plugin.data.checks.tracks import check_tracks
from turbotrain_plugin.data.formats.base import SceneIndex
from turbotrain_plugin.data.formats.sequence import SequenceReader

__all__ = ["SceneCheck", "check_scene"]


@dataclass(slots=True)
class SceneCheck:
    """Findings and numbers of one scene.

    Attributes:
        findings: In the order of the checks.
        label_step: Usual distance of label frames, in 10 Hz frames.
        cloud_step: The same of clouds.
        label_files: Label files read.
        clouds_read: Clouds read whole (a sample of all).
        points: Points in them.
        points_outside_z: Those outside the z range.
        ground_gaps_m: Height difference of the ground between two agents, per pair and frame.
        prints: A number per label file, equal where the content is.
    """

    findings: list[Finding] = field(default_factory=list)
    label_step: int = 1
    cloud_step: int = 1
    label_files: int = 0
    clouds_read: int = 0
    points: int = 0
    points_outside_z: int = 0
    ground_gaps_m: list[float] = field(default_factory=list)
    prints: frozenset[int] = frozenset()


def check_scene(
    scene: SceneIndex,
    reader: type[SequenceReader],
    maps: MapCheck,
    *,
    cloud_stride: int,
    z_range_m: tuple[float, float],
) -> SceneCheck:
    """Check files, times, poses, boxes, identities, clouds and map of a scene.

    Args:
        scene: From the reader's ``index``.
        reader: Of the scene's layout.
        maps: Shared by all scenes.
        cloud_stride: Read every n-th cloud whole; of the others only the size is checked.
        z_range_m: Heights in the LiDAR frame that the model will look at.
    """
    findings: list[Finding] = []
    notes = Notes(scene.name, findings)
    rhythm = check_files(scene, reader, notes)
    frames = read_labels(scene, reader, notes)
    check_poses(frames, notes)
    check_labels(frames, notes)
    check_tracks(frames, notes)
    clouds = check_clouds(
        scene, reader, frames, stride=cloud_stride, z_range_m=z_range_m, notes=notes
    )
    maps.check(scene, reader, frames, notes)
    return SceneCheck(
        findings=findings,
        label_step=rhythm.labels,
        cloud_step=rhythm.clouds,
        label_files=len(frames),
        clouds_read=clouds.clouds_read,
        points=clouds.points,
        points_outside_z=clouds.points_outside_z,
        ground_gaps_m=clouds.ground_gaps_m,
        prints=fingerprints(frames),
    )
