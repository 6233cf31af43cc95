"""A balanced step the way other libraries take it, for a comparison of what it costs.

TorchJD: ``mtl_backward`` with one task at a time (its default, vmap, fails with spconv), then its
PCGrad. LibMTL: its own ``PCGrad`` class, run from the user's checkout (a work tree, or a bare
repository, which is unpacked into a temporary folder); none of it is part of this project.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

__all__ = ["libmtl_backward", "load_libmtl", "torchjd_backward"]

Backward = Callable[[dict[str, Tensor], Tensor], None]
"""Losses and the feature their paths meet at -> finished ``.grad``."""


def torchjd_backward(shared: Sequence[nn.Parameter]) -> Backward:
    """Return TorchJD's way; raises ImportError without it."""
    from torchjd.aggregation import PCGrad
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = PCGrad()

    def backward(losses: dict[str, Tensor], feature: Tensor) -> None:
        mtl_backward(
            list(losses.values()), features=feature, shared_params=shared, parallel_chunk_size=1
        )
        jac_to_grad(list(shared), aggregator)

    return backward


def libmtl_backward(shared: Sequence[nn.Parameter], tasks: int, pcgrad: Any) -> Backward:  # noqa: ANN401
    """Return LibMTL's way.

    Args:
        shared: Shared parameters.
        tasks: K.
        pcgrad: The class that :func:`load_libmtl` returned.
    """
    weighting = pcgrad()
    weighting.task_num, weighting.rep_grad = tasks, False
    weighting.device = shared[0].device
    weighting.get_share_params = lambda: iter(shared)

    def zero() -> None:
        for parameter in shared:
            if parameter.grad is not None:
                parameter.grad.zero_()

    weighting.zero_grad_share_params = zero

    def backward(losses: dict[str, Tensor], feature: Tensor) -> None:
        del feature
        weighting.backward(list(losses.values()))

    return backward


def load_libmtl(place: Path, name: str = "PCGrad") -> Any:  # noqa: ANN401
    """Return a weighting class of LibMTL from a checkout or a bare repository."""
    if not (place / "LibMTL").is_dir():
        folder = tempfile.mkdtemp()
        archive = subprocess.run(
            ["git", f"--git-dir={place}", "archive", "HEAD", "LibMTL"],
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        place = Path(folder)
    # Its packages import every method, and with them solvers that nothing here needs.
    for path in ("LibMTL", "LibMTL.weighting"):
        package = types.ModuleType(path)
        package.__path__ = [str(place / path.replace(".", "/"))]
        sys.modules[path] = package
    return getattr(importlib.import_module(f"LibMTL.weighting.{name}"), name)
