"""The whole network: steps, variants, invariances, saving."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_models import second_grid, tiny_args
from turbotrain_plugin.config import FusionConfig, MapConfig, ModelArgs
from turbotrain_plugin.config.keys import CHOICES
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models import ENCODERS, FUSIONS, CooperativeNetwork, build_model
from turbotrain_plugin.structures import Batch, Predictions, UserError, Voxels

FRAMES = 3
OF_MAPS = sorted(set(FUSIONS) - {"early", "late"})


def network_for(args: ModelArgs | None = None, grid: BevGrid | None = None) -> CooperativeNetwork:
    torch.manual_seed(0)
    return build_model(
        args or tiny_args(),
        grid or small_grid(),
        hist_frames=FRAMES,
        future_steps=6,
        anchors_per_cell=2,
    )


def batch_for(
    record_len: Sequence[int] = (3, 1), grid: BevGrid | None = None, *, map_stride: int = 2
) -> Batch:
    return make_batch(
        grid=grid or small_grid(),
        record_len=record_len,
        hist_frames=FRAMES,
        seed=0,
        shape=MadeShape(voxels_per_map=80, map_stride=map_stride),
    )


def total(predictions: Predictions) -> Tensor:
    parts = [predictions.class_logits.sum(), predictions.box_codes.square().sum()]
    if predictions.trajectories is not None:
        parts.append(predictions.trajectories.square().sum())
    return torch.stack([*parts, *predictions.auxiliary_losses.values()]).sum()


def plausible_bytes(fusion: str, ratio: int) -> range:
    """Return how many bytes a neighbour may send: what its map takes, a code, or some cells."""
    one = 16 * 16 * 16 * 4 // max(1, ratio)
    two_codes = 2 * 2 * 2 * 4
    bits_and_objects = 16 * 16 // 8 + 2 * 12 * 16 * 16
    return {
        "no_fusion": range(1),
        "ffnet": range(two_codes, two_codes + 1),
        "cobevflow": range(16 * 16 // 8, one + bits_and_objects),
    }.get(fusion, range(one, one + 1))


def assert_same(found: Predictions, expected: Predictions) -> None:
    for name in ("class_logits", "box_codes", "trajectories"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-4
        )


def only_voxels(voxels: Voxels, keep: Tensor, map_count: int) -> Voxels:
    return Voxels(
        voxels.points[keep], voxels.coordinates[keep], voxels.point_counts[keep], map_count
    )


def test_tables_cover_the_configured_names() -> None:
    assert set(ENCODERS) == {"second", "pillars"}
    choices = {field.name: field.metadata[CHOICES] for field in fields(FusionConfig)}
    assert set(FUSIONS) == set(choices["core_method"])


@pytest.mark.parametrize("fusion", OF_MAPS)
@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
@pytest.mark.parametrize("ratio", [0, 4])
def test_every_variant_trains_and_evaluates(fusion: str, neck: str, ratio: int) -> None:
    network = network_for(tiny_args(fusion=fusion, neck=neck, ratio=ratio))
    batch = batch_for()
    predictions = network(batch)
    assert predictions.class_logits.shape == (2, 16, 16, 2)
    assert predictions.box_codes.shape == (2, 16, 16, 2, 7)
    assert predictions.trajectories is not None
    assert predictions.trajectories.shape == (2, 16, 16, 2, 6, 2)
    assert predictions.message_bytes in plausible_bytes(fusion, ratio)
    torch.autograd.backward(total(predictions))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        assert torch.isfinite(total(network.eval()(batch)))


def test_heads_read_what_a_neck_behind_fusion_gives() -> None:
    args = tiny_args(neck="post_fusion")
    wide = replace(args, neck=replace(args.neck, out_channels=24))
    network = network_for(wide)
    assert network.head_channels == 24
    assert network.fused_features(batch_for()).features.shape[1] == 24
    predictions = network(batch_for())
    torch.autograd.backward(total(predictions))
    assert all(p.grad is not None for p in network.parameters())
    assert network_for(args).head_channels == args.channels


def test_a_neck_before_fusion_cannot_change_the_channels() -> None:
    args = tiny_args(neck="pre_temporal")
    with pytest.raises(UserError, match=r"neck\.out_channels must be 0 or .* Found 24"):
        network_for(replace(args, neck=replace(args.neck, out_channels=24)))


@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
def test_second_trains_and_evaluates(neck: str) -> None:
    pytest.importorskip("spconv.pytorch")
    grid = second_grid()
    network = network_for(tiny_args(encoder="second", neck=neck), grid)
    batch = batch_for([2], grid)
    torch.autograd.backward(total(network(batch)))
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        assert torch.isfinite(total(network.eval()(batch)))


def test_parameter_counts_at_full_width() -> None:
    pytest.importorskip("spconv.pytorch")
    grid = BevGrid((-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), (0.1, 0.1, 0.2), 8)
    network = build_model(ModelArgs(), grid, hist_frames=5, future_steps=6, anchors_per_cell=2)
    counts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in network.named_children()
    }
    assert counts == {
        "encoder": 2_694_880,
        "neck": 4_576_768 + 1_180_160,
        "temporal": 528_424,
        "fusion": 1_315_027 + 823_040,
        "map_fusion": 42_240 + 768 + 527_104,
        "detection": 514 + 3_598,
        "prediction": 596_504,
    }


# ------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("fusion", OF_MAPS)
def test_samples_do_not_mix(fusion: str) -> None:
    network = network_for(tiny_args(fusion=fusion)).eval()
    both = batch_for((3, 1))
    first_maps = both.voxels.coordinates[:, 0] < 3 * FRAMES
    assert both.map is not None
    first = replace(
        both,
        record_len=both.record_len[:1],
        agent_types=both.agent_types[:3],
        frame_valid=both.frame_valid[:3],
        time_offset_s=both.time_offset_s[:3],
        ego_SE3_agent=both.ego_SE3_agent[:3],
        voxels=only_voxels(both.voxels, first_maps, 3 * FRAMES),
        map=replace(both.map, nearest=both.map.nearest[:1]),
    )
    together, alone = network(both), network(first)
    torch.testing.assert_close(together.box_codes[:1], alone.box_codes, atol=1e-4, rtol=1e-4)
    assert together.trajectories is not None
    torch.testing.assert_close(together.trajectories[:1], alone.trajectories, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fusion", OF_MAPS)
def test_an_agent_without_any_frame_changes_nothing(fusion: str) -> None:
    network = network_for(tiny_args(fusion=fusion)).eval()
    batch = batch_for((3,))
    batch.frame_valid[2] = False
    seen = only_voxels(batch.voxels, batch.voxels.coordinates[:, 0] < 2 * FRAMES, 2 * FRAMES)
    without = replace(
        batch,
        record_len=torch.tensor([2]),
        agent_types=batch.agent_types[:2],
        frame_valid=batch.frame_valid[:2],
        time_offset_s=batch.time_offset_s[:2],
        ego_SE3_agent=batch.ego_SE3_agent[:2],
        voxels=seen,
    )
    assert_same(network(batch), network(without))


def test_voxels_of_invalid_frames_change_nothing() -> None:
    network = network_for().eval()
    batch = batch_for((2,))
    batch.frame_valid[0, 1] = False
    in_frame = batch.voxels.coordinates[:, 0] == 1
    assert in_frame.any()
    without = replace(batch, voxels=only_voxels(batch.voxels, ~in_frame, batch.voxels.map_count))
    assert_same(network(batch), network(without))


def test_far_agents_are_seen_where_their_range_reaches() -> None:
    network = network_for(tiny_args(fusion="fcooper"))
    batch = batch_for((2,))
    batch.ego_SE3_agent[1] = torch.eye(4)
    batch.ego_SE3_agent[1, :, 0, 3] = 0.8 * 4
    roi = network.context(batch).roi
    assert roi.shape == (2, 1, 16, 16)
    assert roi[0].all()
    assert not roi[1, :, :, :4].any()
    assert roi[1, :, :, 4:].all()


def test_a_single_frame_network_works() -> None:
    torch.manual_seed(0)
    grid = small_grid()
    network = build_model(tiny_args(), grid, hist_frames=1, future_steps=6, anchors_per_cell=2)
    batch = make_batch(grid=grid, record_len=[2, 1], hist_frames=1, seed=0)
    assert torch.isfinite(total(network(batch)))


# ------------------------------------------------------------------------------------------ steps


def test_forward_is_the_sum_of_its_steps() -> None:
    network = network_for(tiny_args(neck="pre_temporal", ratio=4)).eval()
    batch = batch_for()
    maps = network.encode(batch.voxels, network.voxel_features(batch.voxels))
    assert maps.shape == (4 * FRAMES, 16, 16, 16)
    current = network.fuse_time(maps, batch.frame_valid)
    assert current.shape == (4, 16, 16, 16)
    fused = network.fuse_agents(network.compress(current), network.context(batch))
    assert_same(network.heads(fused.features, batch.map), network(batch))


def test_given_voxel_features_are_used() -> None:
    network = network_for().eval()
    batch = batch_for()
    plain = network.fused_features(batch).features
    own = network.fused_features(batch, network.voxel_features(batch.voxels)).features
    blank = network.fused_features(batch, torch.zeros(len(batch.voxels.points), 8)).features
    assert torch.equal(own, plain)
    assert not torch.allclose(blank, plain, atol=1e-3)


def test_without_a_map_that_step_is_left_out() -> None:
    network = network_for().eval()
    batch = batch_for(map_stride=2)
    with_map, without = network(batch), network(replace(batch, map=None))
    assert torch.equal(with_map.box_codes, without.box_codes)
    assert with_map.trajectories is not None
    assert without.trajectories is not None
    assert not torch.allclose(with_map.trajectories, without.trajectories, atol=1e-4)


def test_the_map_can_feed_both_heads() -> None:
    args = tiny_args()
    network = network_for(replace(args, map=replace(args.map, feed="both"))).eval()
    batch = batch_for()
    with_map, without = network(batch), network(replace(batch, map=None))
    assert not torch.allclose(with_map.box_codes, without.box_codes, atol=1e-5)


def test_map_and_prediction_can_be_switched_off() -> None:
    args = replace(tiny_args(), prediction=False, map=MapConfig(enabled=False))
    network = network_for(args)
    predictions = network(batch_for())
    assert predictions.trajectories is None
    assert not any("map" in name or "prediction" in name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("neck", "ratio", "names"),
    [
        ("pre_temporal", 0, ["encoder", "neck", "temporal", "fusion"]),
        ("post_fusion", 4, ["encoder", "projection", "neck", "temporal", "compressor", "fusion"]),
    ],
)
def test_shared_modules_are_all_but_the_heads(neck: str, ratio: int, names: list[str]) -> None:
    network = network_for(tiny_args(neck=neck, ratio=ratio))
    assert list(network.shared_modules()) == names
    shared = {id(p) for m in network.shared_modules().values() for p in m.parameters()}
    rest = {name.split(".")[0] for name, p in network.named_parameters() if id(p) not in shared}
    assert rest == {"map_fusion", "detection", "prediction"}


# ---------------------------------------------------------------------------------- practicalities


def test_bfloat16_autocast_trains_on_cpu() -> None:
    network = network_for(tiny_args(neck="pre_temporal"))
    batch = batch_for()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = network(batch)
    assert predictions.class_logits.dtype == torch.float32
    torch.autograd.backward(total(predictions))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_weights_survive_a_file_read_with_weights_only(tmp_path: Path) -> None:
    network, other = network_for(), network_for(tiny_args())
    batch = batch_for()
    network(batch)
    torch.save(network.state_dict(), tmp_path / "net.pth")
    other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    assert_same(other.eval()(batch), network.eval()(batch))


def test_the_same_seed_gives_the_same_network_and_result() -> None:
    batch = batch_for()
    assert_same(network_for().eval()(batch), network_for().eval()(batch))


def test_checkpointing_the_neck_changes_no_gradient_and_no_statistic() -> None:
    args = tiny_args(neck="pre_temporal")
    saving = replace(args, neck=replace(args.neck, checkpoint=True))
    states = []
    for given in (args, saving):
        network = network_for(given)
        torch.autograd.backward(total(network(batch_for())))
        states.append((network.state_dict(), [p.grad for p in network.parameters()]))
    torch.testing.assert_close(states[0], states[1])
