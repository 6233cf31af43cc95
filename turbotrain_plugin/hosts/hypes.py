"""A host's hypes file: the host's own part, and our ``turbotrain`` block beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from turbotrain_plugin.config import HOST_READS, HostBlock, host_block, load_tree, to_plain
from turbotrain_plugin.config.host import BLOCK
from turbotrain_plugin.hosts.base import Host, HostModules
from turbotrain_plugin.hosts.compat.loading import parsed
from turbotrain_plugin.hosts.reader import with_split_folders
from turbotrain_plugin.structures import UserError

_NEEDED: Final = ("name", "train_params", "fusion", "postprocess", "model", "loss", "optimizer")


@dataclass(frozen=True, slots=True)
class HostHypes:
    """A host's hypes file.

    Attributes:
        plain: The host's keys, as written.
        block: Ours. A file without one repeats the host's own training: its arithmetic, its order,
            its random numbers.
        source: The file.
    """

    plain: dict[str, Any]
    block: HostBlock
    source: str

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.plain["name"])

    def parsed(self, host: Host, modules: HostModules) -> dict[str, Any]:
        """Return what the host's scripts work with: a copy, run through the host's parser."""
        hypes = parsed(copy.deepcopy(self.plain), modules.yaml_utils, self.source)
        host.prepare(hypes)
        if self.block.host.data.format != HOST_READS:
            hypes[BLOCK] = to_plain(self.block)
            with_split_folders(hypes)
        return hypes

    def text(self) -> str:
        """Return the file again; the host's inference.py reads it as well as we do."""
        whole = {**self.plain, BLOCK: to_plain(self.block)}
        text: str = yaml.safe_dump(whole, sort_keys=False, default_flow_style=None, width=100)
        return text


def read(name: str | Path, overrides: Sequence[str] = (), seed: int | None = None) -> HostHypes:
    """Read a host's hypes file.

    Args:
        name: The file.
        overrides: ``key.sub=value`` entries, for the host's keys and ours.
        seed: Takes the place of ``turbotrain.host.seed``.

    Raises:
        UserError: When it is no plain YAML, lacks a section, or our block has unknown keys.
    """
    tree = load_tree(name, overrides)
    if not isinstance(tree.value, dict):
        raise UserError(f"{name}: a hypes file must be a mapping.")
    host_part = {key: item.plain() for key, item in tree.value.items() if key != BLOCK}
    missing = [key for key in _NEEDED if key not in host_part]
    if missing:
        raise UserError(f"{tree.source}: a host's hypes file needs {', '.join(missing)}.")
    block = host_block(tree)
    if seed is not None:
        block = replace(block, host=replace(block.host, seed=seed))
    return HostHypes(host_part, block, tree.source)
