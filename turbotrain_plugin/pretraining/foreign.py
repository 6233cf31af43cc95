"""Weights of somebody else: their names made ours, modules they lack left alone.

OpenCOOD, CooPre and OpenPCDet name the parts of SECOND alike (``backbone_3d.conv1 ... conv_out``,
``backbone_2d.blocks``, ``deblocks``), and our layers have the shapes of theirs, so that a table of
prefixes is all there is to it, and the order of axes, which changed between spconv 1 and 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.pretraining.transfer import (
    TransferReport,
    compare_states,
    copy_compared,
    unwrapped,
)
from turbotrain_plugin.structures import UserError

__all__ = ["InitialWeights", "load_initial", "our_name"]

_BLOCK: Final = {"conv1": "first", "bn1": "first_norm", "conv2": "second", "bn2": "second_norm"}
_SHOWN: Final = 3
_SPARSE: Final = 5
"""Axes of a sparse convolution's weights."""


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """What ``load_initial`` did.

    Attributes:
        transfer: Coverage of each module of which the source holds something.
        renamed: Our name -> the source's, where they differ.
        absent: Modules of which the source holds nothing; they start afresh.
        unused: Names in the source that fit nowhere.
    """

    transfer: TransferReport
    renamed: dict[str, str]
    absent: tuple[str, ...]
    unused: tuple[str, ...]

    def table(self) -> str:
        """Return the coverage and what happened to the names, a few lines of text."""
        lines = [self.transfer.table()]
        if self.absent:
            lines.append(f"not in the file: {', '.join(self.absent)}")
        if self.renamed:
            ours, theirs = next(iter(self.renamed.items()))
            lines.append(f"renamed: {len(self.renamed)} (such as {theirs} -> {ours})")
        if self.unused:
            lines.append(f"not used: {len(self.unused)} (such as {_some(self.unused)})")
        return "\n".join(lines)


def our_name(name: str) -> str:
    """Return what we call a tensor of OpenCOOD's SECOND; other names stay as they are."""
    head, _, rest = name.partition(".")
    if head == "backbone_3d":
        return _encoder_name(rest) or name
    if head in ("backbone_2d", "backbone"):
        return _neck_name(rest) or name
    return name


def _encoder_name(rest: str) -> str:
    found = re.fullmatch(r"conv_(input|out)\.([01]\..+)", rest)
    if found:
        part = "stem" if found[1] == "input" else "squeeze"
        return f"encoder.{part}.{found[2]}"
    found = re.fullmatch(r"conv([1-4])\.(\d+)\.(\w+)\.(.+)", rest)
    if not found:
        return ""
    layer = _BLOCK.get(found[3], found[3])
    return f"encoder.stages.{int(found[1]) - 1}.{found[2]}.{layer}.{found[4]}"


def _neck_name(rest: str) -> str:
    found = re.fullmatch(r"deblocks\.(\d+)\.([01])\.(.+)", rest)
    if found:
        return f"neck.ups.{found[1]}.{found[2]}.{found[3]}"
    found = re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", rest)
    if not found or int(found[2]) % 3 == 0:
        return ""
    # A padding comes first, then convolution, normalisation and ReLU in turn.
    layer, part = divmod(int(found[2]) - 1, 3)
    return f"neck.levels.{found[1]}.{layer}.{part}.{found[3]}"


def load_initial(
    state: Mapping[str, Tensor],
    network: CooperativeNetwork,
    modules: Mapping[str, nn.Module],
    *,
    min_coverage: float,
    rename: Sequence[str] = (),
    source: str = "the checkpoint",
) -> InitialWeights:
    """Copy what fits of somebody's weights into modules of a network.

    A module of which the source holds no name starts afresh and is reported; one that it holds in
    part must reach ``min_coverage``. Nothing is copied when any falls below, or when nothing fits.

    Args:
        state: Names to tensors, ours (a network or a ``MaskedPretrainer``) or OpenCOOD's.
        network: Receives the weights in place.
        modules: Modules of it to fill, by their attribute's name.
        min_coverage: Least share of the values of every module that the source knows.
        rename: ``old=new`` prefixes, the first that fits is replaced before anything else.
        source: What errors call the source.

    Raises:
        UserError: When nothing fits, a module is covered by less, or ``rename`` cannot be read.
    """
    theirs = {_renamed(name, rename): name for name in unwrapped(state)}
    known = unwrapped(state)
    own = network.state_dict()
    named = {our_name(name): original for name, original in theirs.items()}
    fitted = {name: _ordered(known[original], own.get(name)) for name, original in named.items()}
    present = {
        name: module
        for name, module in modules.items()
        if any(key.startswith(f"{name}.") and key in own for key in fitted)
    }
    compared = compare_states(fitted, network, present)
    if not any(module.loaded for module in compared):
        raise UserError(
            f"{source}: none of its {len(known)} tensors fits the network. It holds names such as "
            f"{_some(sorted(known)) or 'nothing'}; expected are names such as {_some(list(own))}, "
            "or OpenCOOD's backbone_3d and backbone_2d, in the sizes of model.args. Other prefixes "
            "can be renamed: turbotrain.pretrain.init_rename=[old=new]."
        )
    transfer = copy_compared(compared, fitted, network, min_coverage)
    loaded = {key for module in transfer.modules for key in module.loaded}
    return InitialWeights(
        transfer=transfer,
        renamed={name: named[name] for name in sorted(loaded) if named[name] != name},
        absent=tuple(name for name in modules if name not in present),
        unused=tuple(sorted(named[name] for name in named if name not in loaded)),
    )


def _renamed(name: str, rename: Sequence[str]) -> str:
    for entry in rename:
        old, equals, new = entry.partition("=")
        if not equals or not old:
            raise UserError(
                f"turbotrain.pretrain.init_rename must hold entries old=new. Found {entry!r}."
            )
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _ordered(found: Tensor, expected: Tensor | None) -> Tensor:
    """Return weights of spconv 1 (kz, ky, kx, in, out) as those of spconv 2 (out, kz, ky, kx, in).

    Told by the shapes alone; those that fit as they are stay.
    """
    if expected is None or found.ndim != _SPARSE or found.shape == expected.shape:
        return found
    turned = found.permute(4, 0, 1, 2, 3)
    return turned.contiguous() if turned.shape == expected.shape else found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN])
