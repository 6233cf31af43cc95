"""Names that numpy and matplotlib have dropped and the hosts still use."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from turbotrain_plugin.hosts.compat.base import Shim, attributes, installed

_ALIASES: Final[dict[str, object]] = {
    "Inf": np.inf,
    "int": int,
    "float": float,
    "bool": bool,
    "object": object,
}


def _missing_aliases() -> dict[str, object]:
    return {name: value for name, value in _ALIASES.items() if name not in vars(np)}


@contextmanager
def _numpy_aliases() -> Iterator[None]:
    with attributes(np, _missing_aliases()):
        yield


def _get_cmap(name: str | None = None, lut: int | None = None) -> Any:  # noqa: ANN401 - a colormap
    """Return a colour map by name, as matplotlib did before 3.9."""
    import matplotlib as mpl

    found = mpl.colormaps[name or mpl.rcParams["image.cmap"]]
    return found if lut is None else found.resampled(lut)


def _lacks_get_cmap() -> bool:
    if not installed("matplotlib"):
        return False
    import matplotlib.cm

    return not hasattr(matplotlib.cm, "get_cmap")


@contextmanager
def _matplotlib_get_cmap() -> Iterator[None]:
    import matplotlib.cm

    with attributes(matplotlib.cm, {"get_cmap": _get_cmap}):
        yield


@contextmanager
def _silent_schedulers() -> Iterator[None]:
    with warnings.catch_warnings():
        for start in ("Detected call of `lr_scheduler.step", "The epoch parameter in `scheduler"):
            warnings.filterwarnings("ignore", message=re.escape(start), category=UserWarning)
        yield


SCHEDULER_WARNINGS: Final = Shim(
    "torch.scheduler_warnings",
    "The hosts step the schedule before the optimiser and by epoch; torch warns of both each time.",
    lambda: True,
    _silent_schedulers,
)
NUMPY_ALIASES: Final = Shim(
    "numpy.aliases",
    "numpy 1.24 and 2 dropped np.int, np.bool, np.float, np.Inf; they are Python's own again.",
    lambda: bool(_missing_aliases()),
    _numpy_aliases,
)
MATPLOTLIB_GET_CMAP: Final = Shim(
    "matplotlib.get_cmap",
    "matplotlib 3.9 dropped cm.get_cmap, which vis_utils calls when it is imported.",
    _lacks_get_cmap,
    _matplotlib_get_cmap,
)
