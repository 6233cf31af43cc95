"""Which parameters are shared between tasks, and what to call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from turbotrain_plugin.balancing.gradients import TaskGradients, total
from turbotrain_plugin.balancing.graph import Leaves, reached_by_several
from turbotrain_plugin.balancing.modules import modules_of
from turbotrain_plugin.balancing.parameters import match_patterns, parameter_names, summarise
from turbotrain_plugin.structures import UserError

__all__ = ["SharedParameters"]


class SharedParameters:
    """The parameters that balanced steps weigh: found from the graph, or set by name.

    Parameters that the optimiser does not hold are never balanced: they get their ordinary
    gradient, as from ``loss.backward()``.

    Args:
        optimizer: Whose parameters may be balanced.
        patterns: See :func:`match_patterns`; None or empty: those two or more losses reach.
        named_parameters: Names, as of ``module.named_parameters()``.
        modules: Module of the figures -> name patterns; others count to the first part of a name.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        patterns: Sequence[str] | None,
        named_parameters: Iterable[tuple[str, Tensor]] | None,
        modules: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns or ())
        if self._patterns and named_parameters is None:
            raise ValueError(
                "Parameter `named_parameters` should be given together with `shared`, for instance "
                "model.named_parameters(). Found None."
            )
        self._named = tuple(named_parameters or ())
        self._modules = dict(modules or {})
        self._found: set[Tensor] = set()
        self._own: dict[str, int] = {}
        self.refresh(optimizer)

    def refresh(self, optimizer: Optimizer) -> None:
        """Read the parameters of ``optimizer`` (again)."""
        self._name_of = parameter_names(optimizer, self._named)
        self._chosen = match_patterns(self._patterns, self._name_of) if self._patterns else None
        everything = {**self._name_of, **{parameter: name for name, parameter in self._named}}
        self._module_of = modules_of(everything, self._modules)

    @property
    def set_by_name(self) -> bool:
        """Whether patterns say what is shared."""
        return self._chosen is not None

    @property
    def known(self) -> tuple[Tensor, ...]:
        """All parameters of the optimiser, then those that only have a name."""
        return tuple(dict.fromkeys([*self._name_of, *(parameter for _, parameter in self._named)]))

    @property
    def found(self) -> frozenset[Tensor]:
        """The shared parameters seen so far."""
        return frozenset(self._found)

    def below(self, patterns: Sequence[str]) -> frozenset[Tensor]:
        """Return the parameters of the optimiser below a cut.

        Args:
            patterns: See :func:`match_patterns`; frozen parameters count as a match.

        Raises:
            ValueError: If there are no names.
            UserError: If a pattern means no parameter.
        """
        if not self._named:
            raise ValueError(
                "Parameter `named_parameters` should be given together with source 'cut', for "
                "instance model.named_parameters(). Found None."
            )
        names = {parameter: name for name, parameter in self._named}
        return frozenset(match_patterns(patterns, names, "cut").intersection(self._name_of))

    @property
    def examined(self) -> bool:
        """Whether the losses of two tasks have been traced yet."""
        return bool(self._own)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the shared parameters seen so far, in the order of the optimiser."""
        return tuple(name for leaf, name in self._name_of.items() if leaf in self._found)

    def examine(self, leaves: Leaves) -> None:
        """Note which of the traced parameters are shared.

        A task that shared parameters before may stop doing so (an empty sample): it is then
        without a gradient there. A task that never did is a mistake.

        Args:
            leaves: Task -> leaves, of two or more tasks.

        Raises:
            UserError: If a task seen for the first time reaches no shared parameter.
        """
        candidates = reached_by_several(leaves) if self._chosen is None else self._chosen
        shared = {leaf for leaf in candidates if leaf in self._name_of}
        for task, reached in leaves.items():
            found = shared.intersection(reached)
            if not found and task not in self._own:
                raise UserError(self._apart(task, [other for other in leaves if other != task]))
            self._found |= found
            self._own.setdefault(task, len(reached) - len(found))

    def _apart(self, task: str, others: Sequence[str]) -> str:
        """Return the sentence about a task that shares nothing."""
        if self._chosen is not None:
            return (
                f"The loss of task {task!r} reaches none of the shared parameters "
                f"{', '.join(self._patterns)}; correct the patterns, or leave them out."
            )
        return (
            f"The loss of task {task!r} shares no trained parameter of the optimizer with "
            f"{', '.join(others)}: there is nothing to balance; check for a detached feature or a "
            "frozen trunk, or train with balance method 'none'."
        )

    def select(self, gradients: TaskGradients) -> list[Tensor]:
        """Return the parameters to weigh, given what was gathered for this step."""
        if self._chosen is not None:
            return [leaf for leaf in self._name_of if leaf in self._chosen]
        return [leaf for leaf in gradients.received_by_several() if leaf in self._name_of]

    def named(self, leaves: Iterable[Tensor]) -> dict[Tensor, str]:
        """Return leaf -> name of parameters that :meth:`select` returned."""
        return {leaf: self._name_of[leaf] for leaf in leaves}

    def by_module(self, blocks: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return module -> sum of what its parameters have, modules in the order of the optimiser.

        Args:
            blocks: Parameter -> (K, K) float64, of parameters that :meth:`select` returned.
        """
        parts: dict[str, list[Tensor]] = {}
        for leaf in self._name_of:
            if leaf in blocks:
                parts.setdefault(self._module_of[leaf], []).append(blocks[leaf])
        return {name: total(found, len(found[0])) for name, found in parts.items()}

    def describe(self) -> str:
        """Return one or two lines for the log."""
        if not self.examined:
            return "Shared parameters: found at the first backward pass."
        numbers = sum(leaf.numel() for leaf in self._found)
        own = ", ".join(f"{task} {count}" for task, count in self._own.items())
        return (
            f"Shared parameters ({len(self._found)} tensors, {numbers} numbers): "
            f"{summarise(self.names)}.\nTensors only one task reaches: {own}."
        )
