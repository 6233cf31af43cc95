"""Data sets made once and kept for this user."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turbotrain_plugin.synthetic.generate import Progress, find_preset, generate, is_complete
from turbotrain_plugin.synthetic.presets import SPEC_VERSION

__all__ = ["cache_root", "ensure_dataset"]


def cache_root() -> Path:
    """Return ``$TURBOTRAIN_CACHE``, or ``~/.cache/turbotrain_plugin``."""
    given = os.environ.get("TURBOTRAIN_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "turbotrain_plugin"


def ensure_dataset(
    preset: str,
    seed: int = 0,
    cache_dir: Path | None = None,
    *,
    progress: Progress | None = None,
) -> Path:
    """Return the root of a preset's data set, making it first when it is not there yet.

    The folder's name carries a digest of the preset, so that a release with another preset of the
    same name makes its own data instead of reading what an older one left.

    Two processes may call this at once: the second waits for the first. Without file locks
    (Windows) both build, and the scenes of either are moved into place whole.

    Args:
        preset: Name in ``PRESETS``.
        seed: Seed of the data set.
        cache_dir: Parent folder; None: ``synthetic`` in the user's cache.
        progress: As for ``generate``; not called when the data set is there.

    Raises:
        UserError: For an unknown preset.
    """
    parent = cache_root() / "synthetic" if cache_dir is None else Path(cache_dir)
    digest = find_preset(preset).digest()[:8]
    root = parent / f"{preset}-{seed}-v{SPEC_VERSION}-{digest}"
    if is_complete(root):
        return root
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.with_name(f"{root.name}.lock")):
        if not is_complete(root):
            workers = max(1, min(16, os.cpu_count() or 1))
            generate(preset, root, seed=seed, workers=workers, resume=True, progress=progress)
    return root


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` where the platform has file locks."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
