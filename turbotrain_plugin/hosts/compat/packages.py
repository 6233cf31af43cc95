"""Packages the hosts import and do not need for training: stand-ins where they are not installed.

A stand-in holds what training and evaluation use, written anew; anything else in it raises a
sentence that names the package to install.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.pcd import read_pcd
from turbotrain_plugin.hosts.compat.base import Shim, installed
from turbotrain_plugin.hosts.compat.cosine import CosineSchedule
from turbotrain_plugin.structures import UserError


class StandIn(types.ModuleType):
    """A module in place of a missing one."""

    def __init__(self, name: str, members: dict[str, object] | None = None) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []
        vars(self).update(members or {})

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__.partition(".")[0]
        raise UserError(
            f"The host asks for {self.__name__}.{name}, which needs the package {package}: "
            f"pip install {package}."
        )


@contextmanager
def modules(found: dict[str, types.ModuleType]) -> Iterator[None]:
    """Put modules into ``sys.modules``, and take them out again."""
    before = {name: sys.modules.get(name) for name in found}
    sys.modules.update(found)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


class PointCloud:
    """What ``open3d.io.read_point_cloud`` returns, as far as the hosts look.

    Attributes:
        points: (P, 3) float64.
        colors: (P, 3) float64; the intensity, which the hosts read from the red channel.
    """

    def __init__(self, points: NDArray[np.float32]) -> None:
        self.points = points[:, :3].astype(np.float64)
        self.colors = np.repeat(points[:, 3:4].astype(np.float64), 3, axis=1)


def _read_point_cloud(path: str) -> PointCloud:
    """Read a PCD file; unlike open3d, a missing file is an error and not an empty cloud."""
    return PointCloud(read_pcd(Path(path)))


def _open3d() -> dict[str, types.ModuleType]:
    io = StandIn("open3d.io", {"read_point_cloud": _read_point_cloud})
    return {"open3d": StandIn("open3d", {"io": io}), "open3d.io": io}


def _tensorboardx() -> dict[str, types.ModuleType]:
    from torch.utils.tensorboard import SummaryWriter

    return {"tensorboardX": StandIn("tensorboardX", {"SummaryWriter": SummaryWriter})}


def _timm() -> dict[str, types.ModuleType]:
    cosine = StandIn("timm.scheduler.cosine_lr", {"CosineLRScheduler": CosineSchedule})
    scheduler = StandIn("timm.scheduler", {"cosine_lr": cosine})
    return {
        "timm": StandIn("timm", {"scheduler": scheduler}),
        "timm.scheduler": scheduler,
        "timm.scheduler.cosine_lr": cosine,
    }


def _icecream() -> dict[str, types.ModuleType]:
    def passed_on(*values: Any) -> Any:  # noqa: ANN401 - what it was given
        return values[0] if len(values) == 1 else values

    return {"icecream": StandIn("icecream", {"ic": passed_on})}


def _empty(*names: str) -> Callable[[], dict[str, types.ModuleType]]:
    def make() -> dict[str, types.ModuleType]:
        found: dict[str, types.ModuleType] = {name: StandIn(name) for name in names}
        for name, module in found.items():
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(found[parent], child, module)
        return found

    return make


def _shim(package: str, reason: str, make: Callable[[], dict[str, types.ModuleType]]) -> Shim:
    def applied() -> AbstractContextManager[None]:
        return modules(make())

    return Shim(f"package.{package}", reason, lambda: not installed(package), applied)


PACKAGES: Final = (
    _shim("open3d", "Clouds (.pcd) are read by our reader; drawing needs open3d.", _open3d),
    _shim("cv2", "Imported by vis_utils, used for drawing only.", _empty("cv2")),
    _shim("tensorboardX", "Its SummaryWriter is that of torch.", _tensorboardx),
    _shim("timm", "Its cosine schedule, by its formula; nothing else is used.", _timm),
    _shim("icecream", "Debug printing: values are passed on.", _icecream),
)
"""Stand-ins that every host may need."""
