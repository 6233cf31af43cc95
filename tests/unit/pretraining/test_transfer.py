"""Transfer of pretrained weights: what is copied, what stays, what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import small_grid
from turbotrain_plugin.config import (
    EncoderConfig,
    FusionConfig,
    MapConfig,
    MessageConfig,
    ModelArgs,
    NeckConfig,
    PretrainConfig,
    TemporalConfig,
)
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.pretraining import MaskedPretrainer, transfer_weights
from turbotrain_plugin.structures import UserError

_GRID = small_grid(8)
_ARGS = ModelArgs(
    channels=16,
    encoder=EncoderConfig(core_method="pillars", pillar_channels=8, pillar_blocks=(1, 1)),
    neck=NeckConfig(layers=(1,), filters=(16,), upsample_filters=(16,)),
    temporal=TemporalConfig(heads=2, ffn=16),
    fusion=FusionConfig(windows=(2,), window_heads=(2,), heads=2, ffn=16),
    map=MapConfig(heads=2, ffn=16),
)
_PRETRAINED = ("encoder", "neck", "temporal", "fusion")


def _network(seed: int, args: ModelArgs = _ARGS) -> CooperativeNetwork:
    torch.manual_seed(seed)
    network = build_model(args, _GRID, hist_frames=2, future_steps=6, anchors_per_cell=2)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return network


def _source(seed: int = 1, args: ModelArgs = _ARGS) -> dict[str, Tensor]:
    return MaskedPretrainer(_network(seed, args), _GRID, PretrainConfig()).state_dict()


def _same(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_pretrained_modules_arrive_whole_and_the_rest_stays() -> None:
    target, source = _network(0), _network(1)
    before = copy.deepcopy(target)
    state = MaskedPretrainer(source, _GRID, PretrainConfig()).state_dict()
    report = transfer_weights(state, target, min_coverage=1.0)
    for name, module in target.named_children():
        origin = source if name in _PRETRAINED else before
        assert _same(module, origin.get_submodule(name)), name
    assert tuple(module.name for module in report.modules) == _PRETRAINED
    assert all(module.coverage == 1 for module in report.modules)
    assert report.left_at_initialisation == ("map_fusion", "detection", "prediction")


def test_batch_norm_statistics_come_along() -> None:
    target, state = _network(0), _source()
    report = transfer_weights(state, target, min_coverage=1.0)
    loaded = {key for module in report.modules for key in module.loaded}
    statistics = [key for key in loaded if key.endswith(("running_mean", "running_var"))]
    assert statistics
    own = target.state_dict()
    assert all(torch.equal(own[key], state[f"network.{key}"]) for key in statistics)


def test_the_network_keeps_its_own_tensors() -> None:
    """An optimiser built before the transfer must still hold the network's parameters."""
    target, state = _network(0), _source()
    before = {name: id(p) for name, p in target.named_parameters()}
    transfer_weights(state, target, min_coverage=1.0)
    assert {name: id(p) for name, p in target.named_parameters()} == before
    weight = next(target.encoder.parameters())
    stored = {value.data_ptr() for value in state.values()}
    assert weight.data_ptr() not in stored


@pytest.mark.parametrize("prefix", ["", "network.", "module.network.", "module."])
def test_wrapped_states_are_understood(prefix: str) -> None:
    source, target = _network(1), _network(0)
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()}
    transfer_weights(state, target, min_coverage=1.0)
    assert all(_same(target.get_submodule(n), source.get_submodule(n)) for n in _PRETRAINED)


def test_the_compressor_stays_and_does_not_count() -> None:
    args = replace(_ARGS, compression=MessageConfig(ratio=4))
    target = _network(0, args)
    before = copy.deepcopy(target)
    report = transfer_weights(_source(), target, min_coverage=1.0)
    assert target.compressor is not None
    assert before.compressor is not None
    assert _same(target.compressor, before.compressor)
    assert "compressor" in report.left_at_initialisation


def test_modules_that_were_not_pretrained_can_be_named() -> None:
    target = _network(0)
    before = copy.deepcopy(target)
    report = transfer_weights(_source(), target, min_coverage=1.0, not_pretrained=("fusion",))
    assert _same(target.fusion, before.fusion)
    assert "fusion" in report.left_at_initialisation


def test_the_modules_to_fill_can_be_given() -> None:
    """Task heads too, which pretraining never hands on."""
    target, source = _network(0), _network(1)
    before = copy.deepcopy(target)
    chosen = {"encoder": target.encoder, "head": target.detection}
    report = transfer_weights(source.state_dict(), target, min_coverage=1.0, modules=chosen)
    for name, module in target.named_children():
        origin = source if name in ("encoder", "detection") else before
        assert _same(module, origin.get_submodule(name)), name
    assert tuple(module.name for module in report.modules) == ("encoder", "head")


def test_a_fusion_without_weights_is_covered() -> None:
    args = replace(_ARGS, fusion=FusionConfig(core_method="fcooper"))
    report = transfer_weights(_source(args=args), _network(0, args), min_coverage=1.0)
    fusion = next(module for module in report.modules if module.name == "fusion")
    assert (fusion.loaded, fusion.coverage) == ((), 1.0)


def test_another_shape_is_refused_by_name_and_nothing_is_copied() -> None:
    wide = replace(_ARGS, temporal=TemporalConfig(heads=2, ffn=32))
    target = _network(0)
    before = copy.deepcopy(target)
    with pytest.raises(UserError, match=r"'temporal'.*min_coverage") as caught:
        transfer_weights(_source(args=wide), target, min_coverage=1.0)
    message = str(caught.value)
    assert "temporal." in message
    assert "32" in message
    assert "expected shape" in message
    assert "found (" in message
    assert _same(target, before)


def test_missing_keys_are_refused_by_name() -> None:
    state = _source()
    missing = [key for key in state if key.startswith("network.encoder.points")]
    for key in missing:
        del state[key]
    with pytest.raises(UserError, match=r"'encoder'.*encoder\.points\.0\.weight: missing"):
        transfer_weights(state, _network(0), min_coverage=1.0)


def test_long_lists_of_complaints_are_cut() -> None:
    with pytest.raises(UserError, match=r"cover 0\.0 % of the module 'encoder'.*; and \d+ more\)"):
        transfer_weights({}, _network(0), min_coverage=1.0)


def test_a_lower_threshold_loads_what_fits() -> None:
    state, target = _source(), _network(0)
    key = "network.encoder.points.0.weight"
    state[key] = state[key][:, :5]
    report = transfer_weights(state, target, min_coverage=0.1)
    encoder = report.modules[0]
    values = {k: v.numel() for k, v in target.encoder.state_dict().items()}
    assert encoder.mismatched == {"encoder.points.0.weight": ((8, 10), (8, 5))}
    assert encoder.coverage == pytest.approx(1 - 80 / sum(values.values()))
    assert "encoder" not in report.left_at_initialisation


def test_table_has_a_line_a_module_and_never_rounds_up() -> None:
    state, target = _source(), _network(0)
    key = next(
        k for k in state if k.startswith("network.neck") and k.endswith("num_batches_tracked")
    )
    del state[key]
    lines = transfer_weights(state, target, min_coverage=0.5).table().splitlines()
    assert lines[0].split() == ["module", "loaded", "missing", "shape", "differs", "coverage"]
    assert [line.split()[0] for line in lines[1:5]] == list(_PRETRAINED)
    assert lines[1].endswith("100.0 %")
    assert lines[2].endswith("99.9 %")
    assert lines[2].split()[2] == "1"
    assert lines[5] == "left at initialisation: map_fusion, detection, prediction"
