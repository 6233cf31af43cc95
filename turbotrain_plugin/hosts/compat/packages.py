"""Packages the hosts import and do not need for training: stand-ins where they are not installed.

A stand-in holds what training and evaluation use, written anew; anything else in it raises a
sentence that names the package to install.
"""

from __future__ import annotations

import importlib.abc
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

_UNUSED: Final = (
    "cv2",
    "einops",
    "efficientnet_pytorch",
    "fvcore",
    "h5py",
    "pandas",
    "pypcd",
    "pyquaternion",
    "seaborn",
    "sklearn",
    "torch_scatter",
    "torchvision",
)
"""Imported somewhere, needed by few models or by drawing only."""
_INSTALL: Final = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
"""Module -> distribution, where they differ."""


class _Missing:
    """Something of a package that is not installed; an error when a function of the host uses it.

    What a host does with it while its modules are loaded is put off: HEAL builds torchvision
    transforms there, which LiDAR models never call.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_args: object, **_kwargs: object) -> _Missing:
        if sys._getframe(1).f_code.co_name == "<module>":
            return self
        package = self._name.partition(".")[0]
        raise UserError(
            f"The host uses {self._name}, and the package {package} is not installed: "
            f"pip install {_INSTALL.get(package, package)}."
        )

    def __getattr__(self, name: str) -> _Missing:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        """Let a class of the host be derived from it: nothing is inherited."""
        return (_MissingBase,)


class _MissingBase:
    """Base of a host's classes whose own base is missing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs


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
        return _Missing(f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for every module of one package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a specification for the package and what lies in it."""
        del path, target
        if fullname.partition(".")[0] != self._package:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return a stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: it is complete."""


@contextmanager
def _found_empty(package: str) -> Iterator[None]:
    """Let every module of ``package`` be a stand-in."""
    finder = _Finder(package)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            del sys.modules[name]


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


def supplied(name: str, members: dict[str, object]) -> AbstractContextManager[None]:
    """Return a context in which the module ``name`` is a stand-in that holds ``members``."""
    return modules({name: StandIn(name, members)})


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


def _shim(package: str, reason: str, make: Callable[[], dict[str, types.ModuleType]]) -> Shim:
    def applied() -> AbstractContextManager[None]:
        return modules(make())

    return Shim(f"package.{package}", reason, lambda: not installed(package), applied)


def _empty(package: str) -> Shim:
    return Shim(
        f"package.{package}",
        "Imported by hosts; an error that names it when it is used.",
        lambda: not installed(package),
        lambda: _found_empty(package),
    )


PACKAGES: Final = (
    _shim("open3d", "Clouds (.pcd) are read by our reader; drawing needs open3d.", _open3d),
    _shim("tensorboardX", "Its SummaryWriter is that of torch.", _tensorboardx),
    _shim("timm", "Its cosine schedule, by its formula; nothing else is used.", _timm),
    _shim("icecream", "Debug printing: values are passed on.", _icecream),
    *(_empty(package) for package in _UNUSED),
)
"""Stand-ins that hosts may need."""
