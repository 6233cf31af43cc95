"""Frozen modules: no gradient, no update, and BatchNorm statistics that stand still."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from turbotrain_plugin.models import CooperativeNetwork


def freeze(network: CooperativeNetwork, names: Iterable[str]) -> None:
    """Freeze modules, given as attributes of the network; those it lacks (None) are passed over.

    Their parameters want no gradient any more, and they are in eval mode: BatchNorm uses its
    running statistics and leaves them alone, dropout is off. ``network.train()`` undoes the latter,
    so call this again after it.
    """
    for name in names:
        module: nn.Module | None = getattr(network, name)
        if module is not None:
            module.requires_grad_(False).eval()
