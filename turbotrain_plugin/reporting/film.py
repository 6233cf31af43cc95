"""Scenes from above as a GIF, one picture in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image

from turbotrain_plugin.reporting.bev import SceneDrawing, scene_figure

_DPI: Final = 80
_COLOURS: Final = 96


def draw_film(drawings: Iterable[SceneDrawing], path: Path, *, frame_s: float) -> Path:
    """Draw scenes into a GIF that repeats; drawings are asked for one after the other.

    All drawings should have one ``range_m``, or the pictures differ in size.

    Args:
        drawings: At least one.
        path: GIF to write; its folder is made.
        frame_s: Seconds a picture stays.

    Returns:
        ``path``.
    """
    pictures = map(_picture, drawings)
    first = next(pictures, None)
    if first is None:
        raise ValueError("`drawings` must hold at least one scene. Found none.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=_fitting(pictures, first.size),
            duration=round(1000 * frame_s),
            loop=0,
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _picture(drawing: SceneDrawing) -> Image.Image:
    buffer = BytesIO()
    scene_figure(drawing).savefig(buffer, format="png", dpi=_DPI)
    with Image.open(buffer) as picture:
        return picture.convert("RGB").quantize(_COLOURS)


def _fitting(pictures: Iterator[Image.Image], size: tuple[int, int]) -> Iterator[Image.Image]:
    for picture in pictures:
        yield picture if picture.size == size else picture.resize(size)
