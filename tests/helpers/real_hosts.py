"""Real checkouts, named by variables of the environment, and hypes small enough for a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.hosts.compat.loading import read_hypes
from turbotrain_plugin.hosts.scenes import convert_for_hosts
from turbotrain_plugin.synthetic import PRESETS, generate

RANGE: Final = [-25.6, -12.8, -3.0, 25.6, 12.8, 1.0]
_PRESET: Final = "host_test"


@dataclass(frozen=True)
class RealHost:
    """A checkout and one of its hypes files.

    Attributes:
        name: In ``HOSTS``.
        variable: Names the checkout.
        hypes: Path below ``opencood/hypes_yaml``.
        shrink: Makes the hypes small.
        network: Keys of our detector that differ.
    """

    name: str
    variable: str
    hypes: str
    shrink: Callable[[dict[str, Any]], None]
    network: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path | None:
        """Return the checkout, None when the variable is not set."""
        value = os.environ.get(self.variable)
        return Path(value).resolve() if value else None

    def small_hypes(self, data: Path, epoches: int) -> dict[str, Any]:
        """Return the host's own hypes over ``data``, on a small range."""
        assert self.root is not None
        hypes = read_hypes(self.root / "opencood" / "hypes_yaml" / self.hypes)
        hypes["root_dir"], hypes["validate_dir"] = str(data / "train"), str(data / "validate")
        hypes["test_dir"] = str(data / "validate")
        hypes["train_params"]["epoches"] = epoches
        set_everywhere(hypes, ("cav_lidar_range", "lidar_range", "gt_range"), RANGE)
        self.shrink(hypes)
        return hypes


def set_everywhere(tree: Any, names: tuple[str, ...], value: Any) -> None:  # noqa: ANN401
    """Set keys at every depth."""
    if isinstance(tree, dict):
        for key, item in tree.items():
            if key in names:
                tree[key] = list(value) if isinstance(value, list) else value
            else:
                set_everywhere(item, names, value)
    elif isinstance(tree, list):
        for item in tree:
            set_everywhere(item, names, value)


def _few_layers(hypes: dict[str, Any]) -> None:
    set_everywhere(hypes["model"]["args"], ("layer_nums",), [1, 1, 1])


def host_scenes(folder: Path) -> Path:
    """Make synthetic scenes the hosts can read: 10 frames in train and validate each."""
    preset = replace(PRESETS["tiny"], name=_PRESET, scenes=(1, 1, 0), frames=51)
    PRESETS[_PRESET] = preset
    try:
        generate(_PRESET, folder / "made", seed=0, workers=1)
    finally:
        del PRESETS[_PRESET]
    convert_for_hosts([folder / "made"], "auto", folder / "opv2v")
    return folder / "opv2v"


REAL_HOSTS: Final = (
    RealHost("opencood", "OPENCOOD_ROOT", "point_pillar_fcooper.yaml", _few_layers),
)
