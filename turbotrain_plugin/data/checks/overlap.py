"""The same recording twice: by name, or by content under another name."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

import numpy as np

from turbotrain_plugin.data.checks.findings import Finding, Notes
from turbotrain_plugin.data.checks.labels import Frames
from turbotrain_plugin.data.formats.base import SceneIndex

__all__ = ["check_overlaps", "fingerprints"]

_SAME: Final = 3
"""Shared frames from which two scenes are taken for one recording."""
_MILLIMETRES: Final = 1000.0


def fingerprints(frames: Frames) -> frozenset[int]:
    """Return a number per label file: pose and boxes to the millimetre, without ids and time.

    Eight bytes a frame, whatever its size. Files without objects are left out: a roadside unit
    with nothing in sight looks alike in all its recordings.
    """
    prints = set()
    for labels in frames.values():
        if len(labels.object_ids):
            boxes = labels.world_boxes[np.lexsort(labels.world_boxes.T)]
            values = np.concatenate([labels.world_SE3_lidar.ravel(), boxes.ravel()])
            rounded = np.rint(values * _MILLIMETRES).astype(np.int64) + 0  # no minus zero
            digest = hashlib.blake2b(rounded.tobytes(), digest_size=8).digest()
            prints.add(int.from_bytes(digest, "little"))
    return frozenset(prints)


def check_overlaps(
    scenes: Sequence[SceneIndex], prints: Mapping[int, frozenset[int]]
) -> list[Finding]:
    """Find scenes that appear twice: in two splits (the test set leaks), or twice in one.

    Args:
        scenes: All scenes.
        prints: Place in ``scenes`` to ``fingerprints``.
    """
    places: dict[str, list[SceneIndex]] = defaultdict(list)
    for scene in scenes:
        places[scene.name].append(scene)
    findings: list[Finding] = []
    for name, found in places.items():
        if len(found) > 1:
            message = f"the scene is in {_listed(found)}: splits overlap"
            Notes(name, findings).add("scene-twice", None, None, message)
    for (a, b), shared in _shared(prints).items():
        first, second = scenes[a], scenes[b]
        if shared >= _SAME and first.name != second.name:
            kind = "repeated-content" if first.split == second.split else "split-overlap"
            message = (
                f"{shared} label files hold the same poses and boxes as those of "
                f"{second.split}/{second.name}"
            )
            Notes(first.name, findings).add(kind, None, None, message)
    return findings


def _shared(prints: Mapping[int, frozenset[int]]) -> dict[tuple[int, int], int]:
    """Return how many fingerprints two scenes share, for those that share any."""
    owners: dict[int, list[int]] = defaultdict(list)
    for scene, found in prints.items():
        for one in found:
            owners[one].append(scene)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for scenes in owners.values():
        for pair in combinations(sorted(scenes), 2):
            shared[pair] += 1
    return shared


def _listed(scenes: Sequence[SceneIndex]) -> str:
    return " and ".join(str(scene.folder.parent) for scene in scenes)
