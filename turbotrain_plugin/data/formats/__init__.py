"""On-disk layouts, one per file; ``FORMATS`` is the only place that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from turbotrain_plugin.data.formats.base import (
    AgentFrames,
    ReaderType,
    ScenarioReader,
    SceneIndex,
)
from turbotrain_plugin.data.formats.v2xpnp_seq import V2XPnPSeqReader
from turbotrain_plugin.structures import UserError

__all__ = [
    "FORMATS",
    "AgentFrames",
    "ReaderType",
    "ScenarioReader",
    "SceneIndex",
    "V2XPnPSeqReader",
    "open_root",
]

FORMATS: Final[dict[str, ReaderType]] = {
    "v2xpnp_seq": V2XPnPSeqReader,
    "v2xreal": V2XPnPSeqReader,
}
"""Format name, as in ``turbotrain.data.format``, to its reader."""


def open_root(
    roots: Sequence[Path],
    format: str = "auto",
    *,
    split: str | None = None,
    cache_dir: Path | None = None,
) -> ScenarioReader:
    """Return a reader over dataset folders.

    Args:
        roots: Dataset roots or split folders.
        format: A name of ``FORMATS``, or ``auto`` to look at the files.
        split: ``train``, ``validate`` or ``test``: which split of a root; None takes all of them.
            A split folder given directly is always taken.
        cache_dir: Where parsed labels are kept; None: inside each root.

    Raises:
        UserError: When a folder is missing or empty, or the format is unknown.
    """
    if format == "auto":
        format = _detect([Path(root) for root in roots])
    if format not in FORMATS:
        raise UserError(f"Unknown data format {format!r}; known are auto, {', '.join(FORMATS)}.")
    return FORMATS[format](roots, split=split, cache_dir=cache_dir)


def _detect(roots: Sequence[Path]) -> str:
    """Return the only layout there is, or explain why the files are of another one."""
    for root in roots:
        clouds = next(root.glob("*/*/*.pcd"), None) or next(root.glob("*/*/*/*.pcd"), None)
        if clouds is not None and not clouds.with_suffix(".bin").exists():
            raise UserError(
                f"{clouds}: .pcd clouds belong to OPV2V, V2XSet or V2V4Real, which are not read "
                "yet; V2XPnP-Seq and V2X-Real have .bin clouds."
            )
    return "v2xpnp_seq"
