"""Real checkouts, named by variables of the environment, and hypes small enough for a CPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from turbotrain_plugin.hosts.compat.loading import read_hypes
from turbotrain_plugin.hosts.scenes import convert_for_hosts, fit_for_hosts
from turbotrain_plugin.synthetic import PRESETS, generate

_SIDES: Final = (-25.6, -12.8, 25.6, 12.8)
_VOXEL_M: Final = 0.8
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
        clouds: ``pcd`` or ``bin``.
        seed: What its train.py seeds with, where it does.
    """

    name: str
    variable: str
    hypes: str
    shrink: Callable[[dict[str, Any]], None]
    network: dict[str, Any] = field(default_factory=dict)
    clouds: str = "pcd"
    seed: int = 5

    @property
    def root(self) -> Path | None:
        """Return the checkout, None when the variable is not set."""
        value = os.environ.get(self.variable)
        return Path(value).resolve() if value else None

    def small_hypes(self, scenes: dict[str, Path], epoches: int) -> dict[str, Any]:
        """Return the host's own hypes over the scenes, on a small range."""
        assert self.root is not None
        data = scenes[self.clouds]
        hypes = read_hypes(self.root / "opencood" / "hypes_yaml" / self.hypes)
        hypes["root_dir"], hypes["validate_dir"] = str(data / "train"), str(data / "validate")
        hypes["test_dir"] = str(data / "validate")
        hypes["train_params"]["epoches"] = epoches
        hypes["train_params"] |= {"eval_freq": 2, "save_freq": 1}
        low, high = hypes["preprocess"]["cav_lidar_range"][2::3]
        x, y, far_x, far_y = _SIDES
        extent = [x, y, low, far_x, far_y, high]
        set_everywhere(hypes, ("cav_lidar_range", "lidar_range", "gt_range"), extent)
        tall = hypes["preprocess"]["args"]["voxel_size"][2]
        set_everywhere(hypes, ("voxel_size",), [_VOXEL_M, _VOXEL_M, tall])
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
    set_everywhere(hypes["model"]["args"], ("layer_nums",), [0, 0, 0])
    set_everywhere(hypes["model"]["args"], ("num_filters",), [16, 16, 16])
    hypes["model"]["args"]["pillar_vfe"]["num_filters"] = [64]


def _classes(hypes: dict[str, Any]) -> None:
    _few_layers(hypes)
    hypes["dataset_mode"] = "vc"


def _second(hypes: dict[str, Any]) -> None:
    hypes["dataset_mode"] = "vc"
    hypes["train_params"]["batch_size"] = hypes["model"]["args"]["batch_size"] = 2
    set_everywhere(hypes, ("layer_nums",), [0, 0])
    set_everywhere(hypes, ("num_filters",), [16, 16])


def _max_fusion(hypes: dict[str, Any]) -> None:
    """F-Cooper in place of DiscoNet, whose ``disco_fuse`` is not in the repository."""
    _few_layers(hypes)
    del hypes["kd_flag"]
    hypes["model"]["core_method"] = "point_pillar_baseline"
    hypes["model"]["args"]["fusion_method"] = "max"
    hypes["loss"]["core_method"] = "point_pillar_loss"


def _windows(hypes: dict[str, Any]) -> None:
    """V2X-ViT, its windows no larger than the small map."""
    _few_layers(hypes)
    set_everywhere(hypes["model"]["args"], ("window_size",), [2, 4, 8])


def _disconet(hypes: dict[str, Any]) -> None:
    """DiscoNet taught by the labels alone; its joined clouds stay in the batch."""
    _few_layers(hypes)
    hypes["loss"]["core_method"] = "point_pillar_loss"


def host_scenes(folder: Path) -> dict[str, Path]:
    """Make synthetic scenes the hosts can read: 10 frames in train and validate each.

    Returns:
        Kind of cloud -> root; ``made``: as they were made, in the V2XPnP-Seq layout.
    """
    preset = replace(PRESETS["tiny"], name=_PRESET, scenes=(1, 1, 0), frames=51)
    PRESETS[_PRESET] = preset
    try:
        generate(_PRESET, folder / "made", seed=0, workers=1)
    finally:
        del PRESETS[_PRESET]
    for kind in ("pcd", "bin"):
        convert_for_hosts([folder / "made"], "auto", folder / kind, clouds=kind)
    return {"pcd": folder / "pcd", "bin": folder / "bin", "made": folder / "made"}


def native_root(real: RealHost, scenes: dict[str, Path]) -> Path:
    """Return scenes that the host reads and so do we: OPV2V files, or V2XPnP-Seq made to fit."""
    if real.clouds == "pcd":
        return scenes["pcd"]
    root = scenes["made"].with_name("fitted")
    if not root.exists():
        for split, source in (("train", "train"), ("validate", "val")):
            shutil.copytree(scenes["made"] / source, root / split)
        fit_for_hosts(root)
    return root


REAL_HOSTS: Final = (
    RealHost("opencood", "OPENCOOD_ROOT", "point_pillar_fcooper.yaml", _few_layers),
    RealHost(
        "v2xreal",
        "V2XREAL_ROOT",
        "point_pillar_fcooper.yaml",
        _classes,
        network={"num_class": 3},
        clouds="bin",
    ),
    RealHost(
        "coopre",
        "COOPRE_ROOT",
        "second_intermediate_fusion.yaml",
        _second,
        network={"num_class": 3, "feature_stride": 8},
        clouds="bin",
        seed=42,
    ),
    RealHost("heal", "HEAL_ROOT", "opv2v/LiDAROnly/lidar_disco.yaml", _max_fusion),
)

MORE_MODELS: Final = (
    RealHost("opencood", "OPENCOOD_ROOT", "point_pillar_intermediate_fusion.yaml", _few_layers),
    RealHost("opencood", "OPENCOOD_ROOT", "second_intermediate_fusion.yaml", _second),
    RealHost("opencood", "OPENCOOD_ROOT", "point_pillar_v2xvit.yaml", _windows),
    RealHost("heal", "HEAL_ROOT", "opv2v/LiDAROnly/lidar_disco.yaml", _disconet),
)
"""Further models that are pretrained and fine-tuned; V2X-ViT needs ``einops``."""
