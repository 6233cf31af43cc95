"""Carry pretrained weights into the fine-tuning network, and say how much of it arrived."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from turbotrain_plugin.structures import UserError

if TYPE_CHECKING:
    from turbotrain_plugin.models import CooperativeNetwork

_WRAPPERS: Final = ("module.", "network.")
"""What DistributedDataParallel and ``MaskedPretrainer`` put before the network's own names."""
_NOT_PRETRAINED: Final = ("compressor",)
"""Shared modules that pretraining does not run: it sends whole maps."""
_SHOWN: Final = 3
"""Mismatching keys an error names."""


@dataclass(frozen=True, slots=True)
class ModuleTransfer:
    """What happened to one shared module.

    Attributes:
        name: Name of the module in ``network.shared_modules()``.
        loaded: Keys that were copied, BatchNorm statistics included.
        missing: Keys the source does not have.
        mismatched: Keys with (expected, found) shapes that differ.
        coverage: Share of the module's values that were copied, 1 for a module without any.
    """

    name: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    coverage: float

    def complaints(self) -> list[str]:
        """Return one phrase per key that was not copied."""
        shapes = [
            f"{key}: expected shape {expected}, found {found}"
            for key, (expected, found) in self.mismatched.items()
        ]
        return [*shapes, *(f"{key}: missing" for key in self.missing)]


@dataclass(frozen=True, slots=True)
class TransferReport:
    """What ``transfer_weights`` did.

    Attributes:
        modules: One entry per transferred module.
        left_at_initialisation: Top-level modules of the network with values of which none came from
            the source, for instance task heads and map encoder.
    """

    modules: tuple[ModuleTransfer, ...]
    left_at_initialisation: tuple[str, ...]

    def table(self) -> str:
        """Return a text table, one line a module."""
        rows = [("module", "loaded", "missing", "shape differs", "coverage")]
        rows += [
            (
                module.name,
                str(len(module.loaded)),
                str(len(module.missing)),
                str(len(module.mismatched)),
                _percent(module.coverage),
            )
            for module in self.modules
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        left = ", ".join(self.left_at_initialisation) or "none"
        return "\n".join([*lines, f"left at initialisation: {left}"])


def transfer_weights(
    source_state: Mapping[str, Tensor],
    target_network: CooperativeNetwork,
    *,
    min_coverage: float,
    not_pretrained: Collection[str] = _NOT_PRETRAINED,
    modules: Mapping[str, nn.Module] | None = None,
) -> TransferReport:
    """Copy encoder (neck included), temporal fusion and agent fusion; BatchNorm statistics too.

    Mask token and reconstruction heads stay behind (supplement B.3). Nothing is copied when any
    module falls below the threshold.

    Args:
        source_state: State of a ``MaskedPretrainer`` or of a network, wrapped in
            DistributedDataParallel or not.
        target_network: Receives the weights in place.
        min_coverage: Least share of every module's values that must be found in the same shape.
        not_pretrained: Names of shared modules to leave at their initialisation.
        modules: Modules of ``target_network`` to fill in place of its shared ones, by the names
            that the report gives them.

    Raises:
        UserError: When a module is covered by less, naming it and its first keys at fault.
    """
    source = unwrapped(source_state)
    if modules is None:
        shared = target_network.shared_modules()
        modules = {name: shared[name] for name in shared if name not in not_pretrained}
    compared = compare_states(source, target_network, modules)
    return copy_compared(compared, source, target_network, min_coverage)


def compare_states(
    source: Mapping[str, Tensor],
    target_network: CooperativeNetwork,
    modules: Mapping[str, nn.Module],
) -> tuple[ModuleTransfer, ...]:
    """Return what a source under the network's own names would fill of each module."""
    names = {id(module): name for name, module in target_network.named_modules()}
    return tuple(
        _compare(name, names[id(module)], module.state_dict(), source)
        for name, module in modules.items()
    )


def copy_compared(
    compared: tuple[ModuleTransfer, ...],
    source: Mapping[str, Tensor],
    target_network: CooperativeNetwork,
    min_coverage: float,
) -> TransferReport:
    """Copy what ``compare_states`` found to fit.

    Raises:
        UserError: When a module is covered by less; nothing is copied then.
    """
    for transfer in compared:
        _demand(transfer, min_coverage)
    loaded = {key: source[key] for transfer in compared for key in transfer.loaded}
    target_network.load_state_dict(loaded, strict=False)
    left = tuple(
        name
        for name, module in target_network.named_children()
        if module.state_dict() and not any(key.startswith(f"{name}.") for key in loaded)
    )
    return TransferReport(compared, left)


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of the bare network under its own names."""
    entries = dict(state)
    for wrapper in _WRAPPERS:
        inner = {
            key.removeprefix(wrapper): value
            for key, value in entries.items()
            if key.startswith(wrapper)
        }
        entries = inner or entries
    return entries


def _compare(
    name: str, prefix: str, wanted: Mapping[str, Tensor], source: Mapping[str, Tensor]
) -> ModuleTransfer:
    expected = {f"{prefix}.{key}": tuple(value.shape) for key, value in wanted.items()}
    sizes = {f"{prefix}.{key}": value.numel() for key, value in wanted.items()}
    missing = tuple(key for key in expected if key not in source)
    mismatched = {
        key: (shape, tuple(source[key].shape))
        for key, shape in expected.items()
        if key in source and tuple(source[key].shape) != shape
    }
    loaded = tuple(key for key in expected if key in source and key not in mismatched)
    total = sum(sizes.values())
    coverage = sum(sizes[key] for key in loaded) / total if total else 1.0
    return ModuleTransfer(name, loaded, missing, mismatched, coverage)


def _demand(transfer: ModuleTransfer, min_coverage: float) -> None:
    if transfer.coverage >= min_coverage:
        return
    complaints = transfer.complaints()
    more = len(complaints) - _SHOWN
    listed = "; ".join(complaints[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
        f"The pretrained weights cover {_percent(transfer.coverage)} of the module "
        f"{transfer.name!r}, but turbotrain.pretrain.min_coverage asks for "
        f"{_percent(min_coverage)} ({listed}). Pretrain with the same model.args, or lower "
        "turbotrain.pretrain.min_coverage."
    )


def _percent(share: float) -> str:
    """Return a share as text, never rounded up to 100 %."""
    return f"{int(share * 1000) / 10:.1f} %"
