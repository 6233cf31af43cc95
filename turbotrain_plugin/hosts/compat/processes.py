"""Loader processes of a host are forked, as they were by default when the hosts were written."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from turbotrain_plugin.hosts.compat.base import Shim

_FORK: Final = "fork"


def _starts_otherwise() -> bool:
    methods = multiprocessing.get_all_start_methods()  # the first is the default
    chosen = multiprocessing.get_start_method(allow_none=True) or methods[0]
    return _FORK in methods and chosen != _FORK


@contextmanager
def _forked() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(_FORK, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


FORKED_LOADERS: Final = Shim(
    "processes.fork",
    "From Python 3.14 on processes start afresh, and a host's data set cannot be sent to them.",
    _starts_otherwise,
    _forked,
)
