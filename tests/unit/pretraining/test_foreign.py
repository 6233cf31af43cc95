"""Somebody else's weights: OpenCOOD's names, both orders of axes, what fits and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import small_grid
from tests.helpers.made_models import second_grid, tiny_args
from turbotrain_plugin.config import NeckConfig, PretrainConfig
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.pretraining import (
    InitialWeights,
    MaskedPretrainer,
    load_initial,
    our_name,
)
from turbotrain_plugin.structures import UserError

_GRID = small_grid(8)
_SHARED = ("encoder", "neck", "temporal", "fusion")


def _network(seed: int = 0, fusion: str = "v2xpnp", channels: int = 16) -> CooperativeNetwork:
    torch.manual_seed(seed)
    args = tiny_args(fusion=fusion, neck="pre_temporal", channels=channels)
    return build_model(args, _GRID, hist_frames=2, future_steps=2, anchors_per_cell=2)


def _modules(network: CooperativeNetwork) -> dict[str, nn.Module]:
    return {name: getattr(network, name) for name in _SHARED}


def _load(
    state: dict[str, Tensor],
    network: CooperativeNetwork,
    *,
    min_coverage: float = 1.0,
    rename: tuple[str, ...] = (),
) -> InitialWeights:
    return load_initial(
        state, network, _modules(network), min_coverage=min_coverage, rename=rename, source="x.pth"
    )


def _unchanged(network: CooperativeNetwork, seed: int = 0) -> bool:
    fresh = _network(seed).state_dict()
    return all(torch.equal(value, fresh[name]) for name, value in network.state_dict().items())


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone_3d.conv_input.0.weight", "encoder.stem.0.weight"),
        ("backbone_3d.conv_input.1.running_mean", "encoder.stem.1.running_mean"),
        ("backbone_3d.conv1.0.0.weight", "encoder.stages.0.0.0.weight"),
        ("backbone_3d.conv2.0.1.bias", "encoder.stages.1.0.1.bias"),
        ("backbone_3d.conv1.1.conv1.weight", "encoder.stages.0.1.first.weight"),
        ("backbone_3d.conv3.2.bn1.running_var", "encoder.stages.2.2.first_norm.running_var"),
        ("backbone_3d.conv4.1.conv2.bias", "encoder.stages.3.1.second.bias"),
        ("backbone_3d.conv4.2.bn2.weight", "encoder.stages.3.2.second_norm.weight"),
        ("backbone_3d.conv_out.0.weight", "encoder.squeeze.0.weight"),
        ("backbone_2d.blocks.0.1.weight", "neck.levels.0.0.0.weight"),
        ("backbone_2d.blocks.0.2.running_var", "neck.levels.0.0.1.running_var"),
        ("backbone_2d.blocks.1.16.weight", "neck.levels.1.5.0.weight"),
        ("backbone.deblocks.1.0.weight", "neck.ups.1.0.weight"),
        ("backbone.deblocks.0.1.num_batches_tracked", "neck.ups.0.1.num_batches_tracked"),
        ("cls_head.weight", "cls_head.weight"),
        ("backbone_3d.conv5.0.weight", "backbone_3d.conv5.0.weight"),
        ("backbone_2d.blocks.0.3.weight", "backbone_2d.blocks.0.3.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert our_name(theirs) == ours


Shapes = dict[str, tuple[int, ...]]


def _norm(name: str, width: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    named: Shapes = {f"backbone_3d.{name}.{part}": (width,) for part in parts}
    return named | {f"backbone_3d.{name}.num_batches_tracked": ()}


def _block(name: str, width: int, inputs: int, size: tuple[int, ...] = (3, 3, 3)) -> Shapes:
    return {f"backbone_3d.{name}.0.weight": (width, *size, inputs), **_norm(f"{name}.1", width)}


def _residual_block(name: str, width: int) -> Shapes:
    shapes: Shapes = {}
    for number in (1, 2):
        shapes[f"backbone_3d.{name}.conv{number}.weight"] = (width, 3, 3, 3, width)
        shapes[f"backbone_3d.{name}.conv{number}.bias"] = (width,)
        shapes |= _norm(f"{name}.bn{number}", width)
    return shapes


def _their_second(residual: bool) -> Shapes:
    """Shapes of OpenCOOD's SECOND (spconv 2) as its layers are listed, widths 4-4-8-8."""
    shapes = _block("conv_input", 4, 4) | _block("conv_out", 16, 8, (3, 1, 1))
    widths = (4, 4, 8, 8)
    for number, width in enumerate(widths, start=1):
        first = int(number > 1)
        if first:
            shapes |= _block(f"conv{number}.0", width, widths[number - 2])
        for index in range(first, first + (2 if residual or first else 1)):
            name = f"conv{number}.{index}"
            shapes |= _residual_block(name, width) if residual else _block(name, width, width)
    return shapes


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("spconv_1", [True, False])
def test_a_whole_second_of_opencood_arrives(residual: bool, spconv_1: bool) -> None:
    pytest.importorskip("spconv")
    args = tiny_args(encoder="second", neck="pre_temporal")
    args = replace(args, encoder=replace(args.encoder, residual=residual))
    network = build_model(args, second_grid(8), hist_frames=2, future_steps=2, anchors_per_cell=2)
    state, expected = {}, {}
    for name, shape in _their_second(residual).items():
        value = torch.rand(shape)
        expected[our_name(name)] = value
        sparse = value.ndim == 5 and spconv_1
        state[name] = value.permute(1, 2, 3, 4, 0).contiguous() if sparse else value
    report = _load(state, network)
    (encoder,) = report.transfer.modules
    assert (encoder.name, encoder.coverage) == ("encoder", 1.0)
    assert set(encoder.loaded) == {k for k in network.state_dict() if k.startswith("encoder.")}
    own = network.state_dict()
    floats = {k: v for k, v in expected.items() if not k.endswith("num_batches_tracked")}
    assert all(torch.equal(own[name], value) for name, value in floats.items())
    assert report.absent == ("neck", "temporal", "fusion")
    assert len(report.renamed) == len(state)


def test_a_bev_backbone_of_opencood_arrives_but_for_the_last_convolution() -> None:
    """Blocks begin with a padding, so convolutions have numbers 1, 4, 7 ..."""
    network = _network()
    state = {}
    for name, value in network.neck.state_dict().items():
        part, level, *rest = name.split(".")
        if part == "levels":
            layer, inner, leaf = rest
            state[f"backbone_2d.blocks.{level}.{3 * int(layer) + 1 + int(inner)}.{leaf}"] = value
        elif part == "ups":
            state[f"backbone_2d.deblocks.{level}.{'.'.join(rest)}"] = value
    with pytest.raises(UserError, match=r"module 'neck'.*neck\.project\.0\.weight: missing"):
        _load(state, network)
    report = _load(state, network, min_coverage=0.3)
    (neck,) = report.transfer.modules
    assert all(".project." in key for key in neck.missing)


# ------------------------------------------------------------------------------------------ our own


def test_a_network_of_ours_arrives_whole_and_needs_no_new_names() -> None:
    source, target = _network(1), _network(0)
    state = MaskedPretrainer(source, _GRID, PretrainConfig()).state_dict()
    report = _load(state, target)
    for name, module in _modules(target).items():
        own, theirs = module.state_dict(), _modules(source)[name].state_dict()
        assert all(torch.equal(own[key], theirs[key]) for key in own)
    assert report.renamed == {}
    assert report.absent == ()
    assert all(name.split(".")[0] in ("map_fusion", "detection", "prediction")
               for name in report.unused)  # fmt: skip
    assert report.transfer.left_at_initialisation == ("map_fusion", "detection", "prediction")


def test_modules_the_file_knows_nothing_of_start_afresh() -> None:
    source, target = _network(1), _network(0)
    state = {k: v for k, v in source.state_dict().items() if k.startswith("encoder.")}
    report = _load(state, target)
    assert report.absent == ("neck", "temporal", "fusion")
    assert torch.equal(next(target.temporal.parameters()), next(_network(0).temporal.parameters()))
    text = report.table()
    assert "not in the file: neck, temporal, fusion" in text
    assert "encoder" in text
    assert "100.0 %" in text


def test_a_module_known_in_part_is_refused_and_nothing_is_copied() -> None:
    target = _network(0)
    state = _network(1).state_dict()
    del state["temporal.time_embedding"]
    with pytest.raises(UserError, match=r"module 'temporal'.*temporal\.time_embedding: missing"):
        _load(state, target)
    assert _unchanged(target)
    assert _load(state, target, min_coverage=0.9).absent == ()


def test_other_sizes_are_refused_with_both_shapes() -> None:
    target = _network(0)
    with pytest.raises(UserError, match=r"none of its \d+ tensors fits|expected shape"):
        _load(_network(1, channels=8).state_dict(), target)
    assert _unchanged(target)


def test_prefixes_can_be_renamed() -> None:
    source, target = _network(1), _network(0)
    state = {f"student.net.{k}": v for k, v in source.state_dict().items()}
    report = _load(state, target, rename=("teacher.=x.", "student.net.="))
    assert report.renamed["temporal.time_embedding"] == "student.net.temporal.time_embedding"
    assert torch.equal(target.temporal.time_embedding, source.temporal.time_embedding)
    assert "renamed: " in report.table()


@pytest.mark.parametrize("entry", ["backbone", "=encoder"])
def test_a_rename_without_both_sides_is_refused(entry: str) -> None:
    with pytest.raises(UserError, match=r"init_rename must hold entries old=new\. Found"):
        _load(_network(1).state_dict(), _network(0), rename=(entry,))


@pytest.mark.parametrize(
    "state", [{}, {"a.b": torch.zeros(3)}, {"encoder.other.weight": torch.zeros(3)}]
)
def test_a_file_that_fits_nowhere_is_refused_and_says_what_is_expected(
    state: dict[str, Tensor],
) -> None:
    target = _network(0)
    with pytest.raises(UserError) as caught:
        _load(state, target)
    text = str(caught.value)
    assert f"x.pth: none of its {len(state)} tensors fits" in text
    assert next(iter(target.state_dict())) in text
    assert "init_rename" in text
    assert _unchanged(target)


def test_default_necks_have_opencoods_sizes() -> None:
    """Else the table of names would be of no use at the paper's size."""
    neck = NeckConfig()
    assert neck.layers == (6, 6)
    assert neck.filters == (128, 256)
