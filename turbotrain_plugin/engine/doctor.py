"""`opencood doctor`: what this machine has, and the exact fix for what it lacks."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import yaml

from turbotrain_plugin.engine.records import emit, version_of

_OK: Final = "ok"
_WARN: Final = "warn"
_FAIL: Final = "FAIL"

_SPCONV_WHEELS: Final = ("spconv", "spconv-cu118", "spconv-cu120", "spconv-cu124", "spconv-cu126")
_GIBIBYTE: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: state (ok, warn, FAIL), what was looked at, what was found."""

    state: str
    what: str
    found: str
    fix: str = ""


def examine(further: Sequence[Callable[[], Iterator[Finding]]] = ()) -> int:
    """Print the findings; exit code 1 when something that is needed does not work.

    Args:
        further: Looks of rooms above this one.
    """
    findings = [finding for look in (*_LOOKS, *further) for finding in look()]
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        emit(f"{finding.state:>4}  {finding.what:<{width}}  {finding.found}")
        if finding.fix:
            emit(f"      {'':<{width}}  fix: {finding.fix}")
    return 1 if any(finding.state == _FAIL for finding in findings) else 0


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    fix = "" if good else "use Python 3.10 to 3.13; other versions are not tested"
    yield Finding(_OK if good else _WARN, "Python", f"{version} on {platform.system()}", fix)


def _torch() -> Iterator[Finding]:
    old = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 3)
    yield Finding(
        _FAIL if old else _OK,
        "torch",
        f"{torch.__version__}, {torch.get_num_threads()} threads",
        "pip install 'torch>=2.3'" if old else "",
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        fix = (
            f"this torch was built for CUDA {built}; check the driver with `nvidia-smi`"
            if built
            else "for a GPU install a CUDA build of torch; everything also runs on the CPU"
        )
        yield Finding(_WARN, "CUDA", "no device", fix)
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / _GIBIBYTE
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(_OK, f"CUDA {index}", f"{properties.name}, {memory:.0f} GiB, {half}")


def _spconv() -> Iterator[Finding]:
    installed = [name for name in _SPCONV_WHEELS if version_of(name)]
    if not installed:
        yield Finding(
            _WARN,
            "spconv",
            "not installed; encoder `pillars` works, `second` does not",
            f"pip install 'turbotrain_plugin[{_spconv_extra()}]'",
        )
        return
    listed = ", ".join(f"{name} {version_of(name)}" for name in installed)
    if len(installed) > 1:
        yield Finding(
            _FAIL,
            "spconv",
            f"{listed}: these wheels overwrite one another",
            f"pip uninstall -y {' '.join(installed)} and install one of them",
        )
        return
    from turbotrain_plugin.models.spconv_support import spconv_self_test

    test = spconv_self_test()
    yield Finding(
        _OK if test.ok else _FAIL,
        "spconv",
        f"{listed}; {test.message}",
        "" if test.ok else f"pip install --force-reinstall 'turbotrain_plugin[{_spconv_extra()}]'",
    )


def _spconv_extra() -> str:
    """Return the extra for this machine; wheels exist for CUDA 11.8, 12.0, 12.4 and 12.6."""
    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "cpu"
    major, minor = (int(part) for part in torch.version.cuda.split(".")[:2])
    if major < 12:
        return "cu118"
    # A wheel for an older 12.x runs on a newer driver, never the other way round.
    return "cu126" if minor >= 6 or major > 12 else "cu124" if minor >= 4 else "cu120"


def _yaml() -> Iterator[Finding]:
    fast = hasattr(yaml, "CSafeLoader")
    yield Finding(
        _OK if fast else _WARN,
        "PyYAML",
        f"{yaml.__version__}, " + ("with libyaml" if fast else "without libyaml: 10 x slower"),
        "" if fast else "pip install --force-reinstall pyyaml (a wheel brings libyaml)",
    )


def _optional() -> Iterator[Finding]:
    for name, use in (("torchjd", "further balancers"), ("tensorboard", "TensorBoard events")):
        version = version_of(name)
        fix = "" if version else f"pip install {name}"
        yield Finding(_OK if version else _WARN, name, version or f"not installed ({use})", fix)


def _opencood() -> Iterator[Finding]:
    root = os.environ.get("OPENCOOD_ROOT")
    if root:
        good = (Path(root) / "opencood").is_dir()
        fix = "" if good else "point OPENCOOD_ROOT at the folder that holds the folder `opencood`"
        yield Finding(_OK if good else _WARN, "OpenCOOD", f"OPENCOOD_ROOT={root}", fix)
    elif importlib.util.find_spec("opencood") is not None:
        yield Finding(_OK, "OpenCOOD", "importable")
    else:
        yield Finding(
            _OK,
            "OpenCOOD",
            "no checkout found; not needed unless you train its models "
            "(then set OPENCOOD_ROOT=/path/to/OpenCOOD)",
        )


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / _GIBIBYTE
    low = free < 5
    yield Finding(
        _WARN if low else _OK,
        "disk",
        f"{free:.0f} GiB free here",
        "runs and synthetic scenes want a few GiB" if low else "",
    )
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            pass
    except OSError as error:
        yield Finding(
            _WARN, "folder", f"not writable ({error.strerror})", "set turbotrain.logging.log_dir"
        )


_LOOKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _python,
    _torch,
    _spconv,
    _yaml,
    _optional,
    _opencood,
    _disk,
)
