"""Hypes of every fusion with every encoder, in the paper's setting and in the demo's."""

from __future__ import annotations

from dataclasses import fields

import pytest

from turbotrain_plugin.config import (
    FusionConfig,
    RunConfig,
    difference,
    find_hypes,
    load_hypes,
    shipped_hypes,
    shipped_hypes_dir,
)
from turbotrain_plugin.config.keys import CHOICES
from turbotrain_plugin.errors import UserError

FUSIONS = next(f.metadata[CHOICES] for f in fields(FusionConfig) if f.name == "core_method")

SETTINGS = {
    "turbotrain_{}.yaml": ("", "second"),
    "turbotrain_{}_pillars.yaml": ("pillars", "pillars"),
    "turbotrain_{}_tiny.yaml": ("tiny", "pillars"),
    "turbotrain_{}_tiny_second.yaml": ("tiny_second", "second"),
}
"""Name -> folder and encoder."""

FUSION = "model.args.fusion"
VOXELS = "preprocess.args"
OWN: dict[str, dict[str, set[str]]] = {
    "turbotrain_{}.yaml": {
        "early": {f"{VOXELS}.max_voxel_train", f"{VOXELS}.max_voxel_test"},
        "v2xvit": {f"{FUSION}.ffn", f"{FUSION}.dropout"},
    },
    "turbotrain_{}_tiny.yaml": {
        "early": {f"{VOXELS}.max_voxel_train", f"{VOXELS}.max_voxel_test"},
        "ffnet": {f"{FUSION}.codec"},
    },
}
OWN["turbotrain_{}_pillars.yaml"] = OWN["turbotrain_{}.yaml"]
OWN["turbotrain_{}_tiny_second.yaml"] = OWN["turbotrain_{}_tiny.yaml"]
"""What a fusion's file says beside its name and method."""

ENCODER = "model.args.encoder."
OF_THE_ENCODER = (ENCODER, f"{VOXELS}.voxel_size", f"{VOXELS}.max_points_per_voxel")
STRIDE = "postprocess.anchor_args.feature_stride"


def changed(first: RunConfig, second: RunConfig) -> set[str]:
    return {key for key, _, _ in difference(first, second)}


def cell_m(config: RunConfig) -> tuple[float, float]:
    stride = config.postprocess.anchor_args.feature_stride
    x, y, _ = config.preprocess.args.voxel_size
    return round(x * stride, 6), round(y * stride, 6)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_has_its_file_in_every_setting(fusion: str, setting: str) -> None:
    name = setting.format(fusion)
    folder, encoder = SETTINGS[setting]
    assert find_hypes(name) == shipped_hypes_dir() / folder / name
    config = load_hypes(name)
    assert config.name == name.removesuffix(".yaml")
    assert config.model.args.fusion.core_method == fusion
    assert config.model.args.encoder.core_method == encoder
    assert config.turbotrain.strategy == "turbotrain"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_of_a_setting_differ_in_the_fusion_alone(fusion: str, setting: str) -> None:
    """The same data, budget, losses and optimisers, or a table of them would compare these."""
    found = changed(load_hypes(setting.format(fusion)), load_hypes(setting.format("v2xpnp")))
    own = OWN[setting].get(fusion, set())
    method = set() if fusion == "v2xpnp" else {"name", f"{FUSION}.core_method"}
    assert found == method | own


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("turbotrain_{}.yaml", "turbotrain_{}_pillars.yaml"),
        ("turbotrain_{}_tiny.yaml", "turbotrain_{}_tiny_second.yaml"),
    ],
)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_encoders_of_a_setting_differ_in_the_encoder_alone(
    fusion: str, one: str, other: str
) -> None:
    first, second = load_hypes(one.format(fusion)), load_hypes(other.format(fusion))
    rest = {key for key in changed(first, second) if not key.startswith(OF_THE_ENCODER)}
    assert rest == {"name", STRIDE}
    assert cell_m(first) == cell_m(second)


def test_a_file_is_found_by_its_folder_too() -> None:
    path = shipped_hypes()["turbotrain_late_tiny.yaml"]
    assert find_hypes("tiny/turbotrain_late_tiny.yaml") == path


def test_compression_needs_maps_to_compress() -> None:
    for fusion in ("early", "late"):
        with pytest.raises(UserError, match=r"compression\.ratio must be 0 with early or late"):
            load_hypes(f"turbotrain_{fusion}.yaml", ["model.args.compression.ratio=4"])
    load_hypes("turbotrain_fcooper.yaml", ["model.args.compression.ratio=4"])
