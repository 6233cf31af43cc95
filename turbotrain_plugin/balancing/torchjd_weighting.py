"""Any weighting of TorchJD as a balance method: ``torchjd:UPGrad``, ``torchjd:MGDA`` and so on.

TorchJD (Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", 2024) is an optional
package: ``pip install torchjd``; some of its weightings need solvers beside it, and say which.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing.base import StepBalancer, TaskStep
from turbotrain_plugin.balancing.methods import TORCHJD_PREFIX, check_arguments
from turbotrain_plugin.structures import UserError

__all__ = ["TorchJDWeighting"]

SUFFIX: Final = "Weighting"

NEED_ROWS: Final = frozenset({"ExcessMTL"})
"""Weightings that look at single entries of the gradients; all others need inner products only."""

TWO_BATCHES: Final = frozenset({"MoDo", "SDMGrad"})
"""Weightings meant for the products of two batches' gradients."""

SCALE_FREE: Final = frozenset(
    {"AlignedMTL", "CAGrad", "DualProj", "GradVac", "IMTLG", "Krum", "MGDA", "PCGrad", "UPGrad"}
)
"""Weightings whose rule does not depend on a common scale of the gradients."""

VECTORS: Final = frozenset({"initial_weights", "pref_vector", "weights"})
"""Arguments that TorchJD takes as a tensor with one entry a task."""

COUNTERS: Final = ("_n_steps", "_state_key")
"""Attributes beside the buffers that a weighting changes while it runs."""


class TorchJDWeighting(StepBalancer):
    """Weighs with a TorchJD weighting, in float64 on the CPU.

    The weights are TorchJD's, so most of them sum to one and are those of a mean: a balanced step
    is then K times shorter than a free one (PCGrad, GradVac and Sum add up). What a weighting
    remembers and the random numbers it draws are part of the saved state.

    Args:
        weighting: Name in ``torchjd.aggregation`` without the ending ``Weighting``.
        seed: Of the random numbers.
        args: Arguments of the weighting by their TorchJD names; lists become tensors, the
            ``weighting`` of ``CRMOGM`` is the name of another one.

    Note:
        The Gramian of a weighting whose rule is free of scale is divided by its trace first:
        TorchJD's absolute thresholds would otherwise take small gradients for none. ``MoDo`` and
        ``SDMGrad`` are handed the Gramian of one batch where their papers want the products of two
        independent ones; a warning says so.

    Raises:
        UserError: If TorchJD or a package the weighting needs is missing, there is no such
            weighting, or it does not take the arguments.
    """

    def __init__(self, weighting: str, /, *, seed: int = 0, **args: Any) -> None:  # noqa: ANN401
        self.weighting = weighting
        self.needs_rows = weighting in NEED_ROWS or args.get("weighting") in NEED_ROWS
        if {weighting, args.get("weighting")} & TWO_BATCHES:
            warnings.warn(
                f"Balance method '{TORCHJD_PREFIX}{weighting}' is meant for the gradients of two "
                "independent batches; it gets one batch's, which its paper does not cover.",
                UserWarning,
                stacklevel=2,
            )
        self._fresh = _make(weighting, args)
        self._module = copy.deepcopy(self._fresh)
        self._start = torch.Generator().manual_seed(seed).get_state()
        self._random = self._start

    @property
    def title(self) -> str:
        """Name with its prefix."""
        return TORCHJD_PREFIX + self.weighting

    def weigh_step(self, step: TaskStep) -> Tensor:
        """Return (K,) float64 weights; see :meth:`StepBalancer.weigh_step`."""
        return self._run(copy.deepcopy(self._module), step)[0]

    def accept(self, step: TaskStep) -> None:
        """Let the weighting keep what it remembers of ``step``, and its random numbers move on."""
        _, self._random = self._run(self._module, step)

    def _run(self, module: nn.Module, step: TaskStep) -> tuple[Tensor, Tensor]:
        """Return weights and the state of the random numbers behind them."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            try:
                weights: Tensor = module(self._statistic(step))
            except ValueError as error:
                raise UserError(
                    f"Balance method '{TORCHJD_PREFIX}{self.weighting}' cannot weigh the tasks "
                    f"{', '.join(step.tasks)}: {error}"
                ) from error
            return weights.detach().to("cpu", torch.float64), torch.get_rng_state()

    def _statistic(self, step: TaskStep) -> Tensor:
        """Return the (K, K) Gramian or, where needed, the (K, D) gradients."""
        if not self.needs_rows:
            free = self.weighting in SCALE_FREE
            return step.gramian / step.gramian.trace() if free else step.gramian
        shapes = {name: row for rows in step.rows for name, row in rows.items()}
        return torch.stack(
            [
                torch.cat([rows.get(n, torch.zeros_like(o)).reshape(-1) for n, o in shapes.items()])
                for rows in step.rows
            ]
        ).to("cpu", torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Return the weighting's memory and the state of the random numbers."""
        memory = {
            f"{path}.{name}": value
            for path, module in self._module.named_modules()
            for name, value in _memory(module)
        }
        return {"memory": memory, "random": self._random.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; an empty mapping forgets everything."""
        self._module = copy.deepcopy(self._fresh)
        self._random = state["random"].cpu().clone() if state else self._start
        for key, value in state.get("memory", {}).items():
            path, _, name = key.rpartition(".")
            kept = value.cpu().clone() if isinstance(value, Tensor) else value
            setattr(self._module.get_submodule(path), name, kept)


def _memory(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (attribute, value) of what a weighting changes while it runs."""
    yield from ((name, value) for name, value in vars(module)["_buffers"].items())
    yield from ((name, vars(module)[name]) for name in COUNTERS if name in vars(module))


def _make(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Return the TorchJD weighting called ``name``."""
    what = f"Balance method '{TORCHJD_PREFIX}{name}'"
    try:
        room = importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise UserError(
            f"{what} needs TorchJD, which is not installed: pip install torchjd."
        ) from error
    names = [one.removesuffix(SUFFIX) for one in room.__all__ if one.endswith(SUFFIX)]
    names.remove("")  # the base class
    if name not in names:
        raise UserError(f"{what} is no weighting of TorchJD; choose one of {', '.join(names)}.")
    make = getattr(room, name + SUFFIX)
    check_arguments(what, make, args)
    try:
        module: nn.Module = make(**{key: _value(key, value) for key, value in args.items()})
    except ImportError as error:
        raise UserError(f"{what} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise UserError(f"{what} does not take these arguments: {error}") from error
    return module


def _value(key: str, value: object) -> object:
    """Return an argument as TorchJD wants it."""
    if key == "weighting" and isinstance(value, str):
        return _make(value, {})
    if isinstance(value, (tuple, list)):
        if key not in VECTORS and len(value) == 1:
            return value[0]
        return torch.tensor(value, dtype=torch.float64)
    return value
