"""On-disk layouts, one per file; ``FORMATS`` is the only place that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from turbotrain_plugin.data.formats.base import AgentFrames, ScenarioReader, SceneIndex
from turbotrain_plugin.data.formats.detect import detect_format
from turbotrain_plugin.data.formats.opv2v import OPV2VReader
from turbotrain_plugin.data.formats.sequence import SequenceReader
from turbotrain_plugin.data.formats.v2v4real import V2V4RealReader
from turbotrain_plugin.data.formats.v2xpnp_seq import V2XPnPSeqReader
from turbotrain_plugin.structures import UserError

__all__ = [
    "FORMATS",
    "AgentFrames",
    "OPV2VReader",
    "ScenarioReader",
    "SceneIndex",
    "SequenceReader",
    "V2V4RealReader",
    "V2XPnPSeqReader",
    "find_reader",
    "open_root",
]

FORMATS: Final[dict[str, type[SequenceReader]]] = {
    "v2xpnp_seq": V2XPnPSeqReader,
    "v2xreal": V2XPnPSeqReader,
    "opv2v": OPV2VReader,
    "v2xset": OPV2VReader,
    "v2v4real": V2V4RealReader,
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
    return find_reader(roots, format)(roots, split=split, cache_dir=cache_dir)


def find_reader(roots: Sequence[Path], format: str = "auto") -> type[SequenceReader]:
    """Return the reader of a format, without opening the folders for reading.

    Raises:
        UserError: As ``open_root``.
    """
    if format == "auto":
        format = detect_format([Path(root) for root in roots])
    if format not in FORMATS:
        raise UserError(f"Unknown data format {format!r}; known are auto, {', '.join(FORMATS)}.")
    return FORMATS[format]
