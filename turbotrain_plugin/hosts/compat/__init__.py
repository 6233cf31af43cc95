"""What a modern stack breaks in the hosts, each fault with a name; in force only around a host.

``safety.yaml`` is not in the table: it replaces a function of the host, once that is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from turbotrain_plugin.hosts.compat.attributes import (
    MATPLOTLIB_GET_CMAP,
    NUMPY_ALIASES,
    SCHEDULER_WARNINGS,
)
from turbotrain_plugin.hosts.compat.base import Shim
from turbotrain_plugin.hosts.compat.loading import CHECKPOINTS
from turbotrain_plugin.hosts.compat.missing import DISCO_FUSE
from turbotrain_plugin.hosts.compat.overlaps import BOX_OVERLAPS
from turbotrain_plugin.hosts.compat.packages import PACKAGES
from turbotrain_plugin.hosts.compat.processes import FORKED_LOADERS
from turbotrain_plugin.hosts.compat.sparse import PIXEL_UNSHUFFLE, SPCONV_CPU

SHIMS: Final[dict[str, Shim]] = {
    shim.name: shim
    for shim in (
        NUMPY_ALIASES,
        MATPLOTLIB_GET_CMAP,
        SCHEDULER_WARNINGS,
        *PACKAGES,
        SPCONV_CPU,
        PIXEL_UNSHUFFLE,
        BOX_OVERLAPS,
        DISCO_FUSE,
        FORKED_LOADERS,
        CHECKPOINTS,
    )
}
"""Name -> shim, in the order they are applied."""

__all__ = ["SHIMS", "Shim", "applied"]


@contextmanager
def applied(shims: Iterable[Shim]) -> Iterator[tuple[str, ...]]:
    """Apply those of ``shims`` that this machine needs; yield their names."""
    with ExitStack() as stack:
        names = []
        for shim in shims:
            if shim.needed():
                stack.enter_context(shim.applied())
                names.append(shim.name)
        yield tuple(names)
