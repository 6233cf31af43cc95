"""Masked pretraining on the real network: what it sees, what it trains, what it reports."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.config import (
    EncoderConfig,
    FusionConfig,
    MapConfig,
    MaskConfig,
    MessageConfig,
    ModelArgs,
    NeckConfig,
    OccupancyHeadConfig,
    PointHeadConfig,
    PretrainConfig,
    TemporalConfig,
)
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.pretraining import MaskedPretrainer, column_index, mask_columns
from turbotrain_plugin.structures import Batch, FusionContext, FusionOutput, UserError

_GRID = small_grid(8)
_SECOND_GRID = small_grid(8, stride=8, voxel_z=0.2)
_FRAMES = 2


def _args(**changes: object) -> ModelArgs:
    small = ModelArgs(
        channels=16,
        encoder=EncoderConfig(core_method="pillars", pillar_channels=8, pillar_blocks=(1, 1)),
        neck=NeckConfig(layers=(1,), filters=(16,), upsample_filters=(16,)),
        temporal=TemporalConfig(heads=2, ffn=16, dropout=0.0),
        fusion=FusionConfig(windows=(2,), window_heads=(2,), heads=2, ffn=16, dropout=0.0),
        compression=MessageConfig(ratio=4),
        map=MapConfig(heads=2, ffn=16, dropout=0.0),
    )
    return replace(small, **changes)  # type: ignore[arg-type]


def _pretrainer(
    config: PretrainConfig | None = None, args: ModelArgs | None = None
) -> MaskedPretrainer:
    torch.manual_seed(0)
    network = build_model(
        args or _args(), _GRID, hist_frames=_FRAMES, future_steps=6, anchors_per_cell=2
    )
    return MaskedPretrainer(network, _GRID, config or PretrainConfig())


def _network(pretrainer: MaskedPretrainer) -> CooperativeNetwork:
    assert isinstance(pretrainer.network, CooperativeNetwork)
    return pretrainer.network


def _batch(seed: int = 0, record_len: tuple[int, ...] = (2, 1), grid: BevGrid = _GRID) -> Batch:
    shape = MadeShape(voxels_per_map=60)
    return make_batch(grid=grid, record_len=record_len, hist_frames=_FRAMES, seed=seed, shape=shape)


def _second(config: PretrainConfig) -> MaskedPretrainer:
    pytest.importorskip("spconv")
    torch.manual_seed(0)
    args = _args(encoder=EncoderConfig(core_method="second", widths=(4, 4, 8, 8)))
    network = build_model(
        args, _SECOND_GRID, hist_frames=_FRAMES, future_steps=6, anchors_per_cell=2
    )
    return MaskedPretrainer(network, _SECOND_GRID, config)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _mask(batch: Batch, ratio: float = 0.7) -> Tensor:
    voxels = batch.voxels
    return mask_columns(voxels.coordinates, _GRID, ratio, _seeded(), map_count=voxels.map_count)


_MODES = pytest.mark.parametrize("mode", ["token_sites", "drop"])


# ---------------------------------------------------------------------------------- what it sees


@_MODES
@pytest.mark.parametrize("training", [True, False])
def test_ratio_zero_is_the_fine_tuning_feature_bit_by_bit(mode: str, training: bool) -> None:
    config = PretrainConfig(mask=MaskConfig(ratio=0.0, mode=mode))
    pretrainer = _pretrainer(config, _args(compression=MessageConfig(ratio=0))).train(training)
    batch = _batch()
    expected = _network(pretrainer).fused_features(batch).features
    features, _ = pretrainer.fused_features(batch, _mask(batch, ratio=0.0))
    assert torch.equal(features, expected)


@_MODES
def test_hidden_points_are_not_seen(mode: str) -> None:
    pretrainer, batch = _pretrainer(PretrainConfig(mask=MaskConfig(mode=mode))), _batch()
    masked = _mask(batch)
    expected, _ = pretrainer.fused_features(batch, masked)
    batch.voxels.points[masked] = 1e6
    batch.voxels.point_counts[masked] = 1
    features, _ = pretrainer.fused_features(batch, masked)
    assert torch.equal(features, expected)


@_MODES
def test_visible_points_are_seen(mode: str) -> None:
    pretrainer, batch = _pretrainer(PretrainConfig(mask=MaskConfig(mode=mode))), _batch()
    masked = _mask(batch)
    before, _ = pretrainer.fused_features(batch, masked)
    batch.voxels.points[~masked, :, 2] += 1.0
    after, _ = pretrainer.fused_features(batch, masked)
    assert not torch.equal(before, after)


def test_drop_equals_a_batch_without_the_hidden_voxels() -> None:
    pretrainer, batch = _pretrainer(PretrainConfig(mask=MaskConfig(mode="drop"))), _batch()
    masked = _mask(batch)
    features, _ = pretrainer.fused_features(batch, masked)
    for name in ("points", "coordinates", "point_counts"):
        setattr(batch.voxels, name, getattr(batch.voxels, name)[~masked])
    nothing = torch.zeros(len(batch.voxels.points), dtype=torch.bool)
    expected, _ = pretrainer.fused_features(batch, nothing)
    assert torch.equal(features, expected)


def test_the_token_stands_at_hidden_sites_only() -> None:
    pretrainer, batch = _pretrainer(), _batch()
    seen: list[Tensor] = []
    _network(pretrainer).encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].detach())
    )
    assert pretrainer.mask_token is not None
    with torch.no_grad():
        pretrainer.mask_token.copy_(torch.arange(8.0) - 3)
    masked = _mask(batch)
    pretrainer.fused_features(batch, masked)
    plain = _network(pretrainer).voxel_features(batch.voxels).detach()
    assert torch.equal(seen[0][masked], (torch.arange(8.0) - 3).expand(int(masked.sum()), -1))
    torch.testing.assert_close(seen[0][~masked], plain[~masked])


def test_drop_mode_has_no_token() -> None:
    assert _pretrainer(PretrainConfig(mask=MaskConfig(mode="drop"))).mask_token is None


def test_without_agent_fusion_only_the_ego_speaks() -> None:
    pretrainer = _pretrainer(PretrainConfig(agent_fusion=False)).eval()
    batch = _batch()
    nothing = torch.zeros(len(batch.voxels.points), dtype=torch.bool)
    before, _ = pretrainer.fused_features(batch, nothing)
    of_neighbour = torch.isin(batch.voxels.coordinates[:, 0] // _FRAMES, torch.tensor([1]))
    batch.voxels.points[of_neighbour] = 0.0
    after, _ = pretrainer.fused_features(batch, nothing)
    torch.testing.assert_close(after, before)
    with_fusion = _pretrainer().eval()
    fused, _ = with_fusion.fused_features(_batch(), nothing)
    fused_without, _ = with_fusion.fused_features(batch, nothing)
    assert not torch.allclose(fused, fused_without)


# ------------------------------------------------------------------------------- what it reports


def test_tasks_outputs_and_shapes() -> None:
    batch = _batch()
    losses, output = _pretrainer()(batch, _seeded())
    assert list(losses.tasks) == ["points", "occupancy"]
    assert all(loss.ndim == 0 and loss > 0 for loss in losses.tasks.values())
    assert output.points.shape == (2, 1, 8, 8, 20, 3)
    assert output.occupancy.shape == (2, 1, 8, 8, 20)
    assert output.region.shape == (2, 1, 8, 8)
    assert output.masked.shape == (len(batch.voxels.points),)
    assert losses.parts["region_cells"] == output.region.sum() > 0
    assert not any(part.requires_grad for part in losses.parts.values())


def test_weights_multiply_the_parts() -> None:
    config = PretrainConfig(points=PointHeadConfig(weight=3.0), occ=OccupancyHeadConfig(weight=0.5))
    losses, _ = _pretrainer(config)(_batch(), _seeded())
    torch.testing.assert_close(losses.tasks["points"].detach(), 3 * losses.parts["chamfer"])
    torch.testing.assert_close(losses.tasks["occupancy"].detach(), losses.parts["focal"] / 2)


def test_the_same_seed_gives_the_same_step() -> None:
    pretrainer, batch = _pretrainer(), _batch()
    one, first = pretrainer(batch, _seeded(4))
    two, second = pretrainer(batch, _seeded(4))
    _, third = pretrainer(batch, _seeded(5))
    assert torch.equal(one.total(), two.total())
    assert torch.equal(first.masked, second.masked)
    assert not torch.equal(first.masked, third.masked)


def test_the_region_is_hidden_current_cells_with_points() -> None:
    pretrainer, batch = _pretrainer(), _batch()
    _, output = pretrainer(batch, _seeded())
    current = batch.voxels.coordinates[:, 0] % _FRAMES == _FRAMES - 1
    coordinates = batch.voxels.coordinates.clone()
    # Agents 0 and 1 belong to sample 0, agent 2 to sample 1.
    coordinates[:, 0] = coordinates[:, 0] // _FRAMES // 2
    expected = torch.unique(column_index(coordinates, _GRID)[current & output.masked])
    assert torch.equal(output.region.view(-1).nonzero().squeeze(1), expected)


def test_points_that_fell_out_of_range_open_no_region() -> None:
    batch = _batch()
    assert batch.reconstruction is not None
    batch.reconstruction.xyz[:, 2] = 100.0
    losses, output = _pretrainer()(batch, _seeded())
    assert not output.region.any()
    assert losses.total() == 0


@pytest.mark.parametrize(("rule", "fewer"), [("any", False), ("all", True)])
def test_the_stricter_region_is_smaller(rule: str, fewer: bool) -> None:
    batch = _batch(record_len=(3, 2))
    _, loose = _pretrainer(PretrainConfig(loss_region="any"))(batch, _seeded())
    _, output = _pretrainer(PretrainConfig(loss_region=rule))(batch, _seeded())
    assert bool(output.region.sum() < loose.region.sum()) is fewer
    assert not (output.region & ~loose.region).any()


def test_labels_and_map_are_not_needed() -> None:
    pretrainer, batch = _pretrainer(), _batch()
    expected, _ = pretrainer(batch, _seeded())
    bare = replace(batch, targets=None, map=None, truth=[None, None])
    losses, _ = pretrainer(bare, _seeded())
    assert torch.equal(losses.total(), expected.total())


def test_a_fusion_with_its_own_loss_adds_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrainer = _pretrainer()
    plain = _network(pretrainer).fuse_agents

    def with_flow(features: Tensor, context: FusionContext) -> FusionOutput:
        return replace(plain(features, context), auxiliary_losses={"flow": features.mean() * 0 + 2})

    monkeypatch.setattr(_network(pretrainer), "fuse_agents", with_flow)
    losses, _ = pretrainer(_batch(), _seeded())
    assert list(losses.tasks) == ["points", "occupancy", "auxiliary"]
    assert losses.tasks["auxiliary"] == 2


def test_empty_cells_are_supervised_as_empty() -> None:
    """With logits that call everything occupied, only empty cells can be wrong everywhere."""
    batch = _batch()
    values = []
    for empty_ratio in (0.0, 1.0):
        config = PretrainConfig(occ=OccupancyHeadConfig(empty_ratio=empty_ratio))
        pretrainer = _pretrainer(config)
        assert pretrainer.occupancy_head is not None
        last = pretrainer.occupancy_head.layers[-1]
        assert isinstance(last, torch.nn.Conv2d)
        assert last.bias is not None
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, 8.0)
        losses, _ = pretrainer(batch, _seeded())
        values.append(losses.parts["focal"].item())
    assert values[1] > values[0]


def test_losses_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, output = _pretrainer()(_batch(), _seeded())
    assert all(loss.dtype == torch.float32 for loss in losses.tasks.values())
    assert output.points.dtype == torch.bfloat16
    assert torch.isfinite(losses.total())


# -------------------------------------------------------------------------------- what it trains


def _with_gradient(pretrainer: MaskedPretrainer) -> set[str]:
    """Top-level parts (network modules by their own name) that a gradient reached."""
    return {
        name.removeprefix("network.").split(".")[0]
        for name, parameter in pretrainer.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def test_gradients_reach_encoder_time_and_agents_but_no_task_head() -> None:
    pretrainer = _pretrainer()
    losses, _ = pretrainer(_batch(), _seeded())
    losses.total().backward()
    expected = {"encoder", "neck", "temporal", "fusion", "mask_token"}
    assert _with_gradient(pretrainer) == expected | {"point_head", "occupancy_head"}


def test_without_agent_fusion_no_gradient_reaches_it() -> None:
    pretrainer = _pretrainer(PretrainConfig(agent_fusion=False))
    losses, _ = pretrainer(_batch(), _seeded())
    losses.total().backward()
    assert "fusion" not in _with_gradient(pretrainer)
    assert "temporal" in _with_gradient(pretrainer)


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (PretrainConfig(points=PointHeadConfig(weight=0.0)), "occupancy"),
        (PretrainConfig(occ=OccupancyHeadConfig(weight=0.0)), "points"),
    ],
)
def test_a_head_of_weight_zero_does_not_exist(config: PretrainConfig, left: str) -> None:
    pretrainer = _pretrainer(config)
    losses, output = pretrainer(_batch(), _seeded())
    assert list(losses.tasks) == [left]
    assert (output.points is None) == (pretrainer.point_head is None) == (left == "occupancy")
    assert (output.occupancy is None) == (pretrainer.occupancy_head is None) == (left == "points")


def test_an_empty_region_gives_zero_losses_with_the_graph_intact() -> None:
    pretrainer = _pretrainer(PretrainConfig(mask=MaskConfig(ratio=0.0)))
    losses, output = pretrainer(_batch(), _seeded())
    losses.total().backward()
    assert not output.region.any()
    assert losses.total() == 0
    trained = [p for n, p in pretrainer.named_parameters() if n.split(".")[0].endswith("head")]
    assert all(p.grad is not None and not p.grad.any() for p in trained)
    encoder = list(_network(pretrainer).encoder.parameters())
    assert all(p.grad is not None and not p.grad.any() for p in encoder)


def test_steps_on_one_batch_lower_both_losses() -> None:
    pretrainer, batch = _pretrainer(), _batch()
    optimizer = torch.optim.AdamW(pretrainer.parameters(), lr=2e-3, weight_decay=1e-2)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        losses, _ = pretrainer(batch, _seeded())
        losses.total().backward()
        optimizer.step()
        history.append([loss.item() for loss in losses.tasks.values()])
    assert history[-1][0] < 0.8 * history[0][0]
    assert history[-1][1] < 0.8 * history[0][1]


# ------------------------------------------------------------------------------ the paper's encoder


@_MODES
def test_second_at_ratio_zero_is_the_fine_tuning_feature_bit_by_bit(mode: str) -> None:
    pretrainer = _second(PretrainConfig(mask=MaskConfig(ratio=0.0, mode=mode))).eval()
    batch = _batch(grid=_SECOND_GRID)
    nothing = torch.zeros(len(batch.voxels.points), dtype=torch.bool)
    network = _network(pretrainer)
    agents = network.fuse_time(network.encode(batch.voxels), batch.frame_valid)
    expected = network.fuse_agents(agents, network.context(batch)).features
    features, _ = pretrainer.fused_features(batch, nothing)
    assert torch.equal(features, expected)


@_MODES
def test_second_is_trained_through_time_and_agents(mode: str) -> None:
    pretrainer = _second(PretrainConfig(mask=MaskConfig(mode=mode)))
    losses, _ = pretrainer(_batch(grid=_SECOND_GRID), _seeded())
    losses.total().backward()
    trained = _with_gradient(pretrainer)
    assert {"encoder", "neck", "temporal", "fusion"} <= trained
    assert ("mask_token" in trained) is (mode == "token_sites")


@_MODES
@pytest.mark.parametrize("encoder", ["pillars", "second"])
def test_maps_of_one_column_are_hidden_whole(mode: str, encoder: str) -> None:
    """With one column per map nothing is left to see; the step must still be sound."""
    config = PretrainConfig(mask=MaskConfig(mode=mode))
    grid = _GRID if encoder == "pillars" else _SECOND_GRID
    pretrainer = _pretrainer(config) if encoder == "pillars" else _second(config)
    batch = _batch(grid=grid)
    first = torch.diff(batch.voxels.coordinates[:, 0], prepend=torch.tensor([-1])) != 0
    for name in ("points", "coordinates", "point_counts"):
        setattr(batch.voxels, name, getattr(batch.voxels, name)[first])
    losses, output = pretrainer(batch, _seeded())
    losses.total().backward()
    assert output.masked.all()
    assert torch.isfinite(losses.total())


# -------------------------------------------------------------------------------------- refusals


def test_both_heads_off_is_refused() -> None:
    config = PretrainConfig(points=PointHeadConfig(weight=0.0), occ=OccupancyHeadConfig(weight=0.0))
    with pytest.raises(ValueError, match=r"must be above 0\. Found 0\.0 and 0\.0"):
        _pretrainer(config)


def test_a_batch_without_points_to_rebuild_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`batch\.reconstruction` must hold.*'pretrain'"):
        _pretrainer()(replace(_batch(), reconstruction=None), _seeded())


def test_impossible_focal_constants_are_refused_at_construction() -> None:
    config = PretrainConfig(occ=OccupancyHeadConfig(alpha_balanced=True))
    with pytest.raises(UserError, match=r"turbotrain\.pretrain\.occ"):
        _pretrainer(config)


# ------------------------------------------------------------------------------------------ keys


def test_the_compressor_takes_part_where_asked() -> None:
    trained = {}
    for compression in (False, True):
        pretrainer = _pretrainer(PretrainConfig(compression=compression))
        losses, _ = pretrainer(_batch(), _seeded())
        losses.total().backward()
        trained[compression] = "compressor" in _with_gradient(pretrainer)
    assert trained == {False: False, True: True}


@pytest.mark.parametrize("scope", ["independent", "tube", "shared"])
def test_the_scope_of_the_keys_is_the_mask_s(scope: str) -> None:
    """All maps of a batch that hold one another's columns: who hides alike says the scope."""
    batch = _batch()
    one = batch.voxels.coordinates[batch.voxels.coordinates[:, 0] == 0]
    count, maps = len(one), batch.voxels.map_count
    coordinates = one.repeat(maps, 1)
    coordinates[:, 0] = torch.arange(maps, dtype=one.dtype).repeat_interleave(count)
    batch.voxels.coordinates = coordinates
    batch.voxels.points = torch.zeros(len(coordinates), 5, 4)
    batch.voxels.point_counts = torch.ones(len(coordinates), dtype=torch.int32)
    config = PretrainConfig(mask=MaskConfig(scope=scope))
    parts = _pretrainer(config).draw_mask(batch, _seeded()).view(maps, count)
    number = {tuple(part.tolist()): index for index, part in reversed(list(enumerate(parts)))}
    alike = [number[tuple(part.tolist())] for part in parts]
    # Agents 0 and 1 are one sample's, agent 2 the other's; two frames each.
    expected = {
        "independent": [0, 1, 2, 3, 4, 5],
        "tube": [0, 0, 2, 2, 4, 4],
        "shared": [0, 0, 0, 0, 4, 4],
    }
    assert alike == expected[scope]
