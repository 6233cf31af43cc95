"""An optimiser that is another one to the outside."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = ["OptimizerWrapper"]


class OptimizerWrapper(Optimizer):
    """Has ``param_groups``, ``state`` and ``defaults`` of another optimiser, the same objects.

    Learning rate schedulers, ``GradScaler`` and clipping work on either.

    Args:
        optimizer: Any torch optimiser that is not wrapped yet.

    Attributes:
        inner: The wrapped optimiser.

    Raises:
        ValueError: If ``optimizer`` is something else.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, OptimizerWrapper):
            raise ValueError(
                "Parameter `optimizer` should be a torch optimizer that is not wrapped yet. "
                f"Found {type(optimizer).__name__}."
            )
        self.inner = optimizer
        # As torch makes an optimiser from a pickle: hooks and profiling, but no groups of its own.
        super().__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the wrapped optimiser (the same objects)."""
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.inner.param_groups = value

    @property
    def state(self) -> Any:  # noqa: ANN401 - torch's own annotation varies between versions
        """State of the wrapped optimiser (the same object)."""
        return self.inner.state

    @state.setter
    def state(self, value: Any) -> None:  # noqa: ANN401
        self.inner.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the wrapped optimiser (the same object)."""
        return self.inner.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.inner.defaults = value

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler replaces ``step`` on the instance by a local function, which cannot be copied.
        return {name: value for name, value in self.__dict__.items() if name != "step"}
