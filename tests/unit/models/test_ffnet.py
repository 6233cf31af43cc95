"""FFNet: extrapolation, flow and its loss, codec, joining, bytes."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_contexts import chosen_agents, made_context
from tests.helpers.made_models import tiny_args
from turbotrain_plugin.config import FusionConfig, PretrainConfig
from turbotrain_plugin.models import build_model
from turbotrain_plugin.models.fusion.ffnet import (
    FFNet,
    FlowNetwork,
    MapCodec,
    extrapolate,
    flow_loss,
)
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.structures import FrameMaps, FusionContext, UserError

C, SHAPE = 8, (5, 6)


def ffnet(*, codec: bool = False, flow_weight: float = 0.1) -> FFNet:
    torch.manual_seed(0)
    return FFNet(FusionConfig(core_method="ffnet", codec=codec, flow_weight=flow_weight), C)


def without_correction(fusion: FFNet) -> FFNet:
    """Leave of the flow what needs no learning: the difference of the frames."""
    nn.init.zeros_(fusion.flow.correction.weight)
    return fusion


def linear_frames(agents: int = 3, count: int = 3) -> tuple[Tensor, Tensor]:
    """Return (sum A, T, C, H, W) frames that change by a constant, and one interval's change."""
    torch.manual_seed(1)
    newest, change = torch.randn(2, agents, C, *SHAPE).unbind()
    back = torch.arange(count - 1, -1, -1.0).view(1, -1, 1, 1, 1)
    return newest.unsqueeze(1) - back * change.unsqueeze(1), change


def fused(fusion: FFNet, frames: Tensor, context: FusionContext) -> Tensor:
    found: Tensor = fusion(frames[:, -1], context).features
    return found


# -------------------------------------------------------------------------------------- extrapolate


@pytest.mark.parametrize("steps", [0.5, 1.0, 2.5])
def test_linear_features_are_extrapolated_up_to_the_mean(steps: float) -> None:
    frames, change = linear_frames()
    true = frames[:, -1] + steps * change
    found = extrapolate(frames[:, -1], change, torch.full((3,), steps))
    size = frames[:, -1].abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, true * size / true.abs().mean((1, 2, 3), keepdim=True))
    assert not torch.allclose(found, frames[:, -1], atol=0.1)


def test_the_rescaling_is_the_papers_on_features_that_are_nowhere_negative() -> None:
    frames, change = linear_frames()
    latest, flow = frames[:, -1].abs(), change.abs()
    found = extrapolate(latest, flow, torch.ones(3))
    torch.testing.assert_close(found.mean((1, 2, 3)), latest.mean((1, 2, 3)))


def test_no_step_is_the_identity_in_both_directions() -> None:
    frames, change = linear_frames()
    latest = frames[:, -1].clone().requires_grad_()
    found = extrapolate(latest, change, torch.zeros(3))
    assert torch.equal(found, latest)
    weight = torch.randn_like(latest)
    (found * weight).sum().backward()
    assert latest.grad is not None
    torch.testing.assert_close(latest.grad, weight)


def test_the_rescaling_is_a_constant_to_the_gradient() -> None:
    frames, change = linear_frames()
    latest = frames[:, -1].clone().requires_grad_()
    found = extrapolate(latest, change, torch.ones(3))
    weight = torch.randn_like(latest)
    (found * weight).sum().backward()
    assert latest.grad is not None
    with torch.no_grad():
        scale = latest.abs().mean((1, 2, 3)) / (latest + change).abs().mean((1, 2, 3))
    torch.testing.assert_close(latest.grad, weight * scale.view(-1, 1, 1, 1))


def test_an_empty_map_stays_finite() -> None:
    latest = torch.zeros(1, C, *SHAPE, requires_grad=True)
    found = extrapolate(latest, torch.zeros_like(latest), torch.ones(1))
    found.sum().backward()
    assert torch.equal(found, torch.zeros_like(found))
    assert latest.grad is not None
    assert torch.isfinite(latest.grad).all()


def test_every_map_goes_its_own_number_of_steps() -> None:
    frames, change = linear_frames()
    together = extrapolate(frames[:, -1], change, torch.tensor([0.0, 1.0, 2.0]))
    for agent, steps in enumerate((0.0, 1.0, 2.0)):
        one = slice(agent, agent + 1)
        alone = extrapolate(frames[one, -1], change[one], torch.tensor([steps]))
        torch.testing.assert_close(together[one], alone)


# ----------------------------------------------------------------------------------- flow, its loss


def test_the_flow_starts_as_the_difference_of_the_frames() -> None:
    torch.manual_seed(0)
    flow, (frames, change) = FlowNetwork(C), linear_frames()
    found = flow(frames[:, -2], frames[:, -1])
    torch.testing.assert_close(found, change, atol=0.02, rtol=0.0)
    assert not torch.equal(found, change)


@pytest.mark.parametrize("codec", [False, True])
def test_the_flow_loss_of_the_network_is_that_of_its_parts(codec: bool) -> None:
    fusion, (frames, _) = ffnet(codec=codec), linear_frames()
    context = made_context([3], frames, SHAPE)
    losses = fusion(frames[:, -1], context).auxiliary_losses
    assert list(losses) == ["flow"]
    past = fusion.flow(frames[:, -3], frames[:, -2])
    if fusion.codec is not None:
        past = fusion.codec(torch.cat([frames[:, -1], past]))[3:]
    assert context.frames is not None
    torch.testing.assert_close(losses["flow"], 0.1 * flow_loss(context.frames, past))


@pytest.mark.parametrize("kind", ["static", "linear"])
def test_the_flow_loss_is_zero_where_the_difference_says_all(kind: str) -> None:
    frames, _ = linear_frames()
    if kind == "static":
        frames = frames[:, -1:].expand(-1, 3, -1, -1, -1)
    context = made_context([3], frames, SHAPE)
    loss = without_correction(ffnet())(frames[:, -1], context).auxiliary_losses["flow"]
    assert loss.item() < 1e-10


def test_the_flow_loss_sees_a_change_of_course() -> None:
    frames, change = linear_frames()
    frames[:, -1] += 2 * change.flip(1)
    context = made_context([3], frames, SHAPE)
    loss = without_correction(ffnet())(frames[:, -1], context).auxiliary_losses["flow"]
    assert loss.item() > 0.01


def test_the_flow_loss_by_hand() -> None:
    """Predicted (1, 1), true (1, 0): cos = 1 / sqrt(2). The second agent lacks a frame."""
    maps = torch.zeros(2, 3, 2, 1, 1)
    maps[:, 1, 0], maps[:, 2, 0] = 1.0, 1.0
    flow = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 1, 1)
    valid = torch.tensor([[True, True, True], [False, True, True]])
    frames = FrameMaps(maps, valid, 0.5, (0.8, 0.8))
    expected = (1 - 0.5**0.5) ** 2
    assert flow_loss(frames, flow).item() == pytest.approx(expected, rel=1e-5)
    none = replace(frames, valid=torch.zeros_like(valid))
    assert flow_loss(none, flow).item() == 0.0


def test_the_flow_loss_trains_flow_and_codec_and_nothing_before_them() -> None:
    fusion, (frames, _) = ffnet(codec=True), linear_frames()
    frames = frames.requires_grad_()
    context = made_context([3], frames, SHAPE)
    loss = fusion(frames[:, -1], context).auxiliary_losses["flow"]
    loss.backward()
    assert frames.grad is None
    assert fusion.codec is not None
    for name, parameter in (*fusion.flow.named_parameters(), *fusion.codec.named_parameters()):
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in fusion.join.parameters())


@pytest.mark.parametrize("why", ["evaluation", "weight", "two frames", "no frames"])
def test_where_no_flow_is_learned_there_is_no_loss(why: str) -> None:
    fusion = ffnet(flow_weight=0.0 if why == "weight" else 0.1).train(why != "evaluation")
    frames, _ = linear_frames(count=2 if why == "two frames" else 3)
    context = made_context([3], None if why == "no frames" else frames, SHAPE)
    assert fusion(frames[:, -1], context).auxiliary_losses == {}


# -------------------------------------------------------------------------------------------- codec


@pytest.mark.parametrize("shape", [(8, 16), (5, 6), (13, 9), (1, 1)])
def test_the_codec_keeps_the_shape_and_reports_its_code(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    codec, maps = MapCodec(64), torch.randn(2, 64, *shape)
    codes: list[Tensor] = []
    codec.encoder.register_forward_hook(lambda _module, _inputs, code: codes.append(code))
    assert codec(maps).shape == maps.shape
    assert codec.code_bytes(maps) == codes[0][0].numel() * 4
    assert codes[0].shape[1] == 2


def test_the_codec_can_decode_negative_values() -> None:
    torch.manual_seed(0)
    decoded = MapCodec(32)(torch.randn(2, 32, 16, 16))
    assert (decoded < 0).any()
    assert (decoded > 0).any()


def test_the_codec_learns_to_pass_a_blob_on() -> None:
    torch.manual_seed(0)
    codec = MapCodec(32)
    optimizer = torch.optim.Adam(codec.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        maps = torch.zeros(4, 32, 16, 16)
        for sample, place in enumerate(torch.randint(0, 2, (4,)).tolist()):
            maps[sample, :, 8 * place : 8 * place + 8] = 1.0
        loss = (codec(maps) - maps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


# ------------------------------------------------------------------------------------------- fusion


def test_parameters_are_those_of_the_facts() -> None:
    fusion = FFNet(FusionConfig(core_method="ffnet"), 256)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in fusion.named_children()}
    assert counts == {"codec": 747_792, "flow": 2_360_576, "join": 1_180_160}
    assert sum(counts.values()) == 4_288_528
    bare = FFNet(FusionConfig(core_method="ffnet", codec=False), 256)
    assert sum(p.numel() for p in bare.parameters()) == 2_360_576 + 1_180_160


@pytest.mark.parametrize("codec", [False, True])
def test_a_punctual_message_is_not_touched_by_the_flow(codec: bool) -> None:
    fusion, (frames, _) = ffnet(codec=codec).eval(), linear_frames()
    context = made_context([3], frames, SHAPE)
    without = fused(fusion, frames, replace(context, frames=None))
    assert torch.equal(fused(fusion, frames, context), without)
    late = replace(context, time_offset_s=torch.tensor([0.0, 0.0, 0.5]))
    one = chosen_agents(late, [0, 1], [2])
    # Someone else is late: the flow of a punctual agent is computed and comes to nothing.
    beside = replace(late, roi=context.roi & torch.tensor([1, 1, 0]).bool().view(-1, 1, 1, 1))
    torch.testing.assert_close(fused(fusion, frames, beside), fused(fusion, frames[:2], one))


def test_a_late_message_of_linear_features_is_as_good_as_a_punctual_one() -> None:
    fusion = without_correction(ffnet()).eval()
    # As much is added as is taken away, so that the mean stays and the rescaling is 1.
    change = torch.where(torch.arange(C * 30).view(C, *SHAPE) % 2 == 0, 0.25, -0.25)
    frames = 1.0 + change * torch.arange(-2.0, 1.0).view(1, 3, 1, 1, 1).expand(2, 3, C, *SHAPE)
    now = frames[:, -1] + 1.5 * change
    late = made_context([2], frames, SHAPE, late_s=[0.0, 0.75])
    received = torch.stack([frames[0, -1], now[1]])
    expected = fusion(received, made_context([2], None, SHAPE)).features
    torch.testing.assert_close(fused(fusion, frames, late), expected)
    stale = fusion(frames[:, -1], made_context([2], None, SHAPE)).features
    assert not torch.allclose(stale, expected, atol=1e-2)


@pytest.mark.parametrize("missing", [-1, -2])
def test_without_two_frames_a_late_map_is_taken_as_it_is(missing: int) -> None:
    fusion, (frames, _) = ffnet().eval(), linear_frames()
    context = made_context([3], frames, SHAPE, late_s=[0.0, 0.5, 0.5])
    assert context.frames is not None
    context.frames.valid[:, missing] = False
    punctual = made_context([3], None, SHAPE)
    expected = fused(fusion, frames, punctual)
    torch.testing.assert_close(fused(fusion, frames, context), expected)
    single = made_context([3], frames[:, -1:], SHAPE, late_s=[0.0, 0.5, 0.5])
    torch.testing.assert_close(fused(fusion, frames, single), expected)


@pytest.mark.parametrize("codec", [False, True])
def test_one_agent_is_paired_with_itself(codec: bool) -> None:
    fusion, (frames, _) = ffnet(codec=codec).eval(), linear_frames(1)
    features = frames[:, -1]
    other = features if fusion.codec is None else fusion.codec(features)
    expected = fusion.join(torch.cat([features, other], dim=1))
    torch.testing.assert_close(fused(fusion, frames, made_context([1], frames, SHAPE)), expected)


def test_two_agents_are_the_papers_pair() -> None:
    fusion, (frames, _) = ffnet().eval(), linear_frames(2)
    expected = fusion.join(frames[:, -1].flatten(0, 1).unsqueeze(0))
    torch.testing.assert_close(fused(fusion, frames, made_context([2], frames, SHAPE)), expected)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_an_agent_that_sees_nothing_changes_nothing(late: float) -> None:
    fusion, (frames, _) = ffnet(codec=True).eval(), linear_frames()
    context = made_context([3], frames, SHAPE, late_s=[0.0, late, late])
    context.roi[1] = False
    frames[1] *= 100
    without = chosen_agents(context, [0, 2], [2])
    torch.testing.assert_close(
        fused(fusion, frames, context), fused(fusion, frames[[0, 2]], without)
    )


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_the_order_of_neighbours_does_not_matter(late: float) -> None:
    fusion, (frames, _) = ffnet(codec=True).eval(), linear_frames(4)
    context = made_context([4], frames, SHAPE, late_s=[0.0, late, 0.0, 2 * late])
    context.roi[1, :, :2] = False
    order = [0, 3, 1, 2]
    torch.testing.assert_close(
        fused(fusion, frames[order], chosen_agents(context, order, [4])),
        fused(fusion, frames, context),
    )


def test_nothing_crosses_the_border_of_a_neighbours_view() -> None:
    fusion, (frames, _) = ffnet().eval(), linear_frames(2)
    context = made_context([2], frames, SHAPE)
    context.roi[1, :, :, 3:] = False
    other = frames.clone()
    other[1, :, :, :, 3:] += 100.0
    assert torch.equal(fused(fusion, other, context), fused(fusion, frames, context))


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_every_parameter_learns(late: float) -> None:
    fusion, (frames, _) = ffnet(codec=True), linear_frames(4)
    output = fusion(frames[:, -1], made_context([3, 1], frames, SHAPE, late_s=[0, late, late, 0]))
    (output.features.square().sum() + sum(output.auxiliary_losses.values())).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# ------------------------------------------------------------------------------- bytes, the network


@pytest.mark.parametrize(("frames", "maps"), [(1, 1), (2, 2), (3, 2)])
def test_bytes_are_those_of_feature_and_flow(frames: int, maps: int) -> None:
    features = torch.zeros(2, C, 20, 9)
    context = made_context([2], torch.zeros(2, frames, C, 20, 9), (20, 9))
    coded = ffnet(codec=True)(features, context)
    assert (coded.message_bytes, coded.side_bytes) == (0, maps * 1 * 3 * 2 * 4)
    plain = ffnet()(features, context)
    one = C * 20 * 9 * 4
    assert (plain.message_bytes, plain.side_bytes) == (one, (maps - 1) * one)


def test_bytes_at_full_size_are_the_facts_two_codes() -> None:
    maps = torch.zeros(0, 256, 100, 256, device="meta")
    assert MapCodec(256).code_bytes(maps) == 8 * 13 * 32 * 4 == 13 * 1024


@pytest.mark.parametrize(
    ("codec", "ratio", "sent"), [(True, 4, 2 * 16), (False, 4, 16384 * 5 // 4)]
)
def test_the_network_adds_what_it_does_not_compress(codec: bool, ratio: int, sent: int) -> None:
    args = tiny_args(fusion="ffnet", ratio=ratio)
    args = replace(args, fusion=replace(args.fusion, codec=codec))
    network = build_model(
        args, small_grid(), hist_frames=3, future_steps=6, anchors_per_cell=2
    ).eval()
    batch = make_batch(grid=small_grid(), record_len=[2], hist_frames=3, seed=0)
    assert network(batch).message_bytes == sent


def test_the_network_compensates_by_its_own_interval() -> None:
    torch.manual_seed(0)
    args = tiny_args(fusion="ffnet")
    network = build_model(
        replace(args, fusion=replace(args.fusion, codec=False)),
        small_grid(),
        hist_frames=3,
        future_steps=6,
        anchors_per_cell=2,
        frame_interval_s=0.2,
    ).eval()
    batch = make_batch(
        grid=small_grid(), record_len=[2], hist_frames=3, seed=0, shape=MadeShape(voxels_per_map=80)
    )
    maps = network.encode(batch.voxels)
    frames = network.context(batch, maps).frames
    assert frames is not None
    assert frames.interval_s == 0.2
    assert torch.equal(frames.maps.flatten(0, 1), maps)
    assert network.context(batch).frames is None
    punctual = network(batch).box_codes
    batch.time_offset_s[1] = 0.2
    assert not torch.allclose(network(batch).box_codes, punctual, rtol=1e-3, atol=1e-5)


def test_a_fusion_that_does_not_ask_gets_no_frames() -> None:
    network = build_model(
        tiny_args(), small_grid(), hist_frames=3, future_steps=6, anchors_per_cell=2
    )
    batch = make_batch(grid=small_grid(), record_len=[2], hist_frames=3, seed=0)
    assert network.context(batch, network.encode(batch.voxels)).frames is None


def test_pretraining_keeps_the_flow_loss_on() -> None:
    torch.manual_seed(0)
    grid = small_grid()
    network = build_model(
        tiny_args(fusion="ffnet", neck="pre_temporal"),
        grid,
        hist_frames=3,
        future_steps=6,
        anchors_per_cell=2,
    )
    batch = replace(make_batch(grid=grid, record_len=[2], hist_frames=3, seed=0), targets=None)
    losses, _ = MaskedPretrainer(network, grid, PretrainConfig())(
        batch, torch.Generator().manual_seed(0)
    )
    assert list(losses.tasks) == ["points", "occupancy", "auxiliary"]
    losses.tasks["auxiliary"].backward()
    flow = cast(FFNet, network.fusion).flow
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.parameters())
    assert all(p.grad is None for p in network.encoder.parameters())


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match=r"fusion.flow_weight must not be negative. Found -1"):
        ffnet(flow_weight=-1.0)
