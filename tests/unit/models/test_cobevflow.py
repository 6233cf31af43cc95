"""CoBEVFlow: what is sent, which objects are followed, where late ones land, what teaches it."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_contexts import CELL_M, INTERVAL_S, chosen_agents, made_context
from tests.helpers.made_models import tiny_args
from turbotrain_plugin.config import FusionConfig, PretrainConfig
from turbotrain_plugin.models import build_model
from turbotrain_plugin.models.fusion.cobevflow import (
    CoBEVFlow,
    Motion,
    carry,
    find_objects,
    follow,
)
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.structures import FusionContext, UserError

C, SHAPE = 4, (20, 24)
CELL = CELL_M[0]


def cobevflow(**keys: object) -> CoBEVFlow:
    torch.manual_seed(0)
    return CoBEVFlow(FusionConfig(core_method="cobevflow", **keys), C)  # type: ignore[arg-type]


def reads_first_channel(fusion: CoBEVFlow, gain: float = 10.0) -> CoBEVFlow:
    """Make the confidence sigma(gain * (channel 0 - 0.5)): boxes of ones are certain objects."""
    nn.init.zeros_(fusion.confidence.weight)
    with torch.no_grad():
        fusion.confidence.weight[0, 0] = gain
        assert fusion.confidence.bias is not None
        fusion.confidence.bias.fill_(-gain / 2)
    return fusion.eval()


def box_map(rows: slice, columns: slice, mark: float = 0.0) -> Tensor:
    """Return (C, H, W): an object, ones in channel 0, a mark and a texture in the others."""
    values = torch.zeros(C, *SHAPE)
    values[0, rows, columns] = 1.0
    values[1, rows, columns] = mark
    height, width = rows.stop - rows.start, columns.stop - columns.start
    values[2, rows, columns] = torch.arange(1.0, height * width + 1).view(height, width)
    return values


def moving_box(start: tuple[int, int], step: tuple[int, int], frames: int = 3) -> Tensor:
    """Return (T, C, H, W) of a box of 2 x 5 cells that moves ``step`` cells per frame."""
    maps = []
    for frame in range(frames):
        y, x = start[0] + frame * step[0], start[1] + frame * step[1]
        maps.append(box_map(slice(y, y + 2), slice(x, x + 5), mark=5.0))
    return torch.stack(maps)


def scene(neighbours: Sequence[Tensor], late_s: Sequence[float]) -> tuple[Tensor, FusionContext]:
    """Return (A, T, C, H, W) frames of an ego that sees less than nothing and its neighbours."""
    frames = torch.stack([torch.full_like(neighbours[0], -9.0), *neighbours])
    return frames, made_context([len(frames)], frames, SHAPE, late_s=[0.0, *late_s])


def fused(fusion: CoBEVFlow, frames: Tensor, context: FusionContext) -> Tensor:
    found: Tensor = fusion(frames[:, -1], context).features
    return found


# ------------------------------------------------------------------------------------------ objects


@pytest.mark.parametrize("place", [(3, 4), (0, 0), (16, 17)])
def test_a_box_is_one_object_in_its_middle(place: tuple[int, int]) -> None:
    y, x = place
    confidence = torch.zeros(1, *SHAPE)
    confidence[0, y : y + 2, x : x + 5] = 0.9
    peaks, places = find_objects(confidence, CELL_M, 0.2, 2.75)
    assert int(peaks.sum()) == 1
    found = places[peaks][0]
    torch.testing.assert_close(found, torch.tensor([(x + 2) * CELL, (y + 0.5) * CELL]))


def test_places_are_found_between_cells() -> None:
    confidence = torch.zeros(1, *SHAPE)
    confidence[0, 5, 5:7] = torch.tensor([0.3, 0.6])
    peaks, places = find_objects(confidence, CELL_M, 0.2, 2.75)
    torch.testing.assert_close(places[peaks], torch.tensor([[(5 + 2 / 3) * CELL, 5 * CELL]]))


def test_objects_need_the_score_and_room_of_their_own() -> None:
    confidence = torch.full((1, *SHAPE), 0.1)
    confidence[0, 4, 4], confidence[0, 4, 7], confidence[0, 4, 12] = 0.9, 0.8, 0.5
    peaks, _ = find_objects(confidence, CELL_M, 0.2, 2.75)
    assert peaks.nonzero().tolist() == [[0, 4, 4], [0, 4, 12]]
    peaks, _ = find_objects(confidence, CELL_M, 0.6, 0.8)
    assert peaks.nonzero().tolist() == [[0, 4, 4], [0, 4, 7]]
    assert not find_objects(confidence, CELL_M, 0.95, 2.75)[0].any()


def test_cells_need_not_be_square() -> None:
    confidence = torch.zeros(1, *SHAPE)
    confidence[0, 5, 6], confidence[0, 8, 6], confidence[0, 5, 9] = 0.9, 0.8, 0.8
    peaks, places = find_objects(confidence, (0.5, 2.0), 0.2, 2.0)
    assert peaks.nonzero().tolist() == [[0, 5, 6], [0, 8, 6]]
    torch.testing.assert_close(places[0, 8, 6], torch.tensor([3.0, 16.0]))


def test_pairs_are_each_others_nearest_within_reach() -> None:
    older = torch.tensor([[0.0, 0.0], [10.0, 0.0], [30.0, 0.0]])
    newer = torch.tensor([[10.5, 0.0], [1.0, 2.0], [36.0, 0.0], [12.0, 0.0]])
    motion = follow(newer, older, 5.0)
    assert motion.matched.tolist() == [True, True, False, False]
    torch.testing.assert_close(
        motion.step, torch.tensor([[0.5, 0.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    )
    assert follow(newer, older, 6.5).matched.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("newer", "older"), [(0, 3), (3, 0), (0, 0)])
def test_without_a_partner_nothing_moves(newer: int, older: int) -> None:
    motion = follow(torch.rand(newer, 2), torch.rand(older, 2), 5.0)
    assert motion.step.shape == (newer, 2)
    assert not motion.step.any()
    assert not motion.matched.any()


# --------------------------------------------------------------------------------------- late boxes


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (-1, 2), (2, -1)])
@pytest.mark.parametrize("late_frames", [1, 2])
def test_a_moving_box_lands_on_the_right_cells(step: tuple[int, int], late_frames: int) -> None:
    fusion, box = reads_first_channel(cobevflow()), moving_box((8, 9), step)
    frames, context = scene([box], [late_frames * INTERVAL_S])
    y, x = (at + (2 + late_frames) * by for at, by in zip((8, 9), step, strict=True))
    expected = box_map(slice(y, y + 2), slice(x, x + 5), mark=5.0)
    on_box = expected[0] > 0
    found = fused(fusion, frames, context)[0]
    torch.testing.assert_close(found[:, on_box], expected[:, on_box], atol=1e-4, rtol=1e-4)
    assert (found[:3, ~on_box] < 1e-3).all()


def test_half_an_interval_moves_half_as_far() -> None:
    fusion, box = reads_first_channel(cobevflow()), moving_box((8, 5), (0, 2))
    frames, context = scene([box], [INTERVAL_S / 2])
    found = fused(fusion, frames, context)[0]
    assert (found[0, 8:10, 10:15] > 0.999).all()
    assert (found[0, 8:10, 9] < 1e-3).all()


@pytest.mark.parametrize("background", ["keep", "drop"])
def test_a_punctual_message_is_not_touched(background: str) -> None:
    fusion = reads_first_channel(cobevflow(background=background))
    frames, context = scene([moving_box((8, 9), (1, 1))], [0.0])
    assert torch.equal(
        fused(fusion, frames, context), fused(fusion, frames, replace(context, frames=None))
    )
    # One that is late beside it changes nothing of it either.
    both, late = scene([moving_box((8, 9), (1, 1)), torch.full_like(frames[0], -5.0)], [0.0, 0.5])
    late.roi[2] = False
    assert torch.equal(fused(fusion, both, late), fused(fusion, frames, context))


def test_a_standing_box_stays_where_it_is() -> None:
    fusion = reads_first_channel(cobevflow())
    frames, context = scene([moving_box((8, 9), (0, 0))], [1.0])
    punctual = replace(context, time_offset_s=torch.zeros(2))
    assert torch.equal(fused(fusion, frames, context), fused(fusion, frames, punctual))


def test_what_is_no_object_stays_and_what_was_left_shows_nothing() -> None:
    """The square around the object takes its ground along; the rest keeps its own."""
    fusion = reads_first_channel(cobevflow(roi_half_m=2 * CELL, confidence=0.0))
    box = moving_box((8, 9), (0, 1))
    box[:, 3] = 7.0
    frames, context = scene([box], [3 * INTERVAL_S])
    found = fused(fusion, frames, context)[0, 3]
    # Newest: columns 11-15, centre 13, rows 8-9, centre 8.5. Three intervals on: centre 16.
    assert (found[7:11, 14:19] == 7.0).all()
    assert (found[7:11, 11:14] == -9.0).all()
    assert (found[7:11, :11] == 7.0).all()
    assert (found[:7] == 7.0).all()


def test_background_can_be_dropped_with_objects_nobody_followed() -> None:
    box, lonely = moving_box((4, 5), (0, 1)), moving_box((14, 12), (0, 0))
    lonely[:-1] = 0.0  # seen in the newest frame only
    frames, context = scene([box + lonely], [INTERVAL_S])
    kept = fused(reads_first_channel(cobevflow()), frames, context)[0, 0]
    dropped = fused(reads_first_channel(cobevflow(background="drop")), frames, context)[0, 0]
    assert (kept[4:6, 8:13] > 0.99).all()
    assert (dropped[4:6, 8:13] > 0.99).all()
    assert (kept[14:16, 12:17] == 1.0).all()
    assert (dropped[14:16, 12:17] == -9.0).all()
    assert (dropped[:, :4] == -9.0).all()


def test_the_reach_of_matching_is_a_key() -> None:
    box = moving_box((8, 5), (0, 4))
    frames, context = scene([box], [INTERVAL_S])
    near = fused(reads_first_channel(cobevflow(match_m=3.0)), frames, context)[0, 0]
    far = fused(reads_first_channel(cobevflow(match_m=3.3)), frames, context)[0, 0]
    assert (near[8:10, 13:18] == 1.0).all()
    assert (far[8:10, 17:22] > 0.99).all()
    assert (far[8:10, 13:17] < 1e-3).all()


@pytest.mark.parametrize("missing", [-1, -2])
def test_without_two_frames_a_late_map_is_taken_as_it_is(missing: int) -> None:
    fusion = reads_first_channel(cobevflow())
    frames, context = scene([moving_box((8, 9), (0, 1))], [0.5])
    stale = fused(fusion, frames, replace(context, frames=None))
    assert context.frames is not None
    context.frames.valid[1, missing] = False
    assert torch.equal(fused(fusion, frames, context), stale)
    single = made_context([2], frames[:, -1:], SHAPE, late_s=[0.0, 0.5])
    assert torch.equal(fused(fusion, frames, single), stale)


def test_objects_beyond_the_view_are_neither_followed_nor_sent() -> None:
    fusion = reads_first_channel(cobevflow())
    frames, context = scene([moving_box((8, 9), (0, 1))], [INTERVAL_S])
    context.roi[1, :, :, 13:] = False  # the object's middle in the newest frame
    output = fusion(frames[:, -1], context)
    assert output.side_bytes == 20 * 24 // 8 + 12
    assert (output.features[0, 0, 8:10, 11:13] == 1.0).all()
    assert (output.features[0, 0, :, 13:] == -9.0).all()


def test_of_two_objects_the_nearer_one_rules() -> None:
    features = torch.zeros(1, 1, 12)
    features[0, 0, 2], features[0, 0, 8] = 3.0, 8.0
    motion = Motion(
        torch.tensor([[2.0, 0.0], [8.0, 0.0]]),
        torch.tensor([[4.0, 0.0], [0.0, 0.0]]),
        torch.tensor([True, True]),
    )
    moved, shown = carry(
        features,
        torch.ones(1, 1, 12, dtype=torch.bool),
        motion,
        (1.0, 1.0),
        half_m=1.5,
        keep_background=True,
    )
    assert moved[0, 0].tolist() == pytest.approx([0, 0, 3, 0, 0, 0, 3, 0, 8, 0, 0, 0], abs=1e-5)
    assert shown[0, 0].tolist() == [True, False, False, False, *[True] * 8]


def test_gradients_travel_with_the_features() -> None:
    fusion = reads_first_channel(cobevflow())
    frames, context = scene([moving_box((8, 5), (0, 1))], [2 * INTERVAL_S])
    features = frames[:, -1].clone().requires_grad_()
    fusion(features, context).features[0, 1, 8, 9].backward()
    assert features.grad is not None
    torch.testing.assert_close(features.grad[1, 1, 8, 7], torch.tensor(1.0), atol=1e-4, rtol=0.0)
    torch.testing.assert_close(features.grad.abs().sum(), torch.tensor(1.0), atol=1e-3, rtol=0.0)


# -------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_an_agent_that_sees_nothing_changes_nothing(late: float) -> None:
    fusion = reads_first_channel(cobevflow())
    boxes = [moving_box((8, 9), (0, 1)), moving_box((3, 4), (1, 0))]
    frames, context = scene(boxes, [late, late])
    context.roi[1] = False
    without = chosen_agents(context, [0, 2], [2])
    both, alone = fusion(frames[:, -1], context), fusion(frames[[0, 2], -1], without)
    assert torch.equal(both.features, alone.features)
    assert (both.message_bytes, both.side_bytes) == (alone.message_bytes, alone.side_bytes)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_the_order_of_neighbours_does_not_matter(late: float) -> None:
    fusion = reads_first_channel(cobevflow())
    boxes = [moving_box((8, 9), (0, 1)), moving_box((3, 4), (1, 0)), moving_box((14, 14), (0, -1))]
    frames, context = scene(boxes, [late, 0.0, 2 * late])
    order = [0, 3, 1, 2]
    assert torch.equal(
        fused(fusion, frames[order], chosen_agents(context, order, [4])),
        fused(fusion, frames, context),
    )


@pytest.mark.parametrize("training", [True, False])
def test_one_agent_is_the_identity_and_sends_nothing(training: bool) -> None:
    fusion = cobevflow(confidence=0.99).train(training)
    frames = torch.randn(2, 3, C, *SHAPE)
    output = fusion(frames[:, -1], made_context([1, 1], frames, SHAPE))
    assert torch.equal(output.features, frames[:, -1])
    assert (output.message_bytes, output.side_bytes) == (0, 0)


# ----------------------------------------------------------------------------------- mask and bytes


def test_only_confident_cells_and_their_surroundings_arrive() -> None:
    """A bell of deviation 1 keeps 0.70 of a straight edge's inside, 0.30 beyond, 0.05 after that.

    (0.403 + 0.244 + 0.054 of the weight lies on this side, the rest beyond; corners multiply.)
    """
    fusion = reads_first_channel(cobevflow(confidence=0.4), gain=100.0)
    box = torch.zeros(C, *SHAPE)
    box[0, 8:13, 8:13] = 1.0
    frames, context = scene([box.expand(3, -1, -1, -1)], [0.0])
    arrived = fused(fusion, frames, context)[0, 0] > -9.0
    expected = box[0] > 0
    assert torch.equal(arrived, expected)
    loose = reads_first_channel(cobevflow(confidence=0.25), gain=100.0)
    expected[7:14, 8:13], expected[8:13, 7:14] = True, True
    expected[8, 7] = expected[12, 7] = expected[8, 13] = expected[12, 13] = False
    expected[7, 8] = expected[7, 12] = expected[13, 8] = expected[13, 12] = False
    assert torch.equal(fused(loose, frames, context)[0, 0] > -9.0, expected)


@pytest.mark.parametrize(
    ("training", "labelled", "threshold", "masked"),
    [
        (False, False, 0.9, True),
        (True, True, 0.9, True),
        (True, False, 0.9, False),
        (False, False, 0.0, False),
    ],
)
def test_when_the_mask_is_on(
    training: bool, labelled: bool, threshold: float, masked: bool
) -> None:
    fusion = reads_first_channel(cobevflow(confidence=threshold)).train(training)
    frames, context = scene([torch.zeros(3, C, *SHAPE)], [0.0])
    if labelled:
        context = replace(context, labels=torch.zeros(1, *SHAPE, 2, dtype=torch.int8))
    arrived = fused(fusion, frames, context) > -9.0
    assert arrived.any() == (not masked)
    assert arrived.all() == (not masked)


def test_bytes_of_cells_mask_and_objects() -> None:
    fusion = reads_first_channel(cobevflow(confidence=0.5), gain=100.0)
    one, two = torch.zeros(2, 3, C, *SHAPE).unbind()
    one[:, 0, 5:12, 5:12] = 1.0
    two[:, 0, 0:20, 0:24] = 1.0
    two[:, 0, :, 10:13] = 0.0
    frames, context = scene([one], [0.0])
    output = fusion(frames[:, -1], context)
    cells = int((output.features[0, 0] > -9.0).sum())
    assert 0 < cells < 100
    assert output.message_bytes == cells * C * 4
    # A square of 7 x 7 is one object, in each of two frames.
    assert output.side_bytes == math.ceil(20 * 24 / 8) + 2 * 12
    frames, context = scene([one, two], [0.0, 0.0])
    busier = fusion(frames[:, -1], context)
    assert busier.message_bytes > output.message_bytes


def test_a_full_map_needs_no_list_of_cells() -> None:
    fusion = cobevflow(confidence=0.0, roi_score=0.9)
    frames, context = scene([torch.zeros(1, C, *SHAPE)], [0.0])
    output = fusion(frames[:, -1], context)
    assert (output.message_bytes, output.side_bytes) == (C * 20 * 24 * 4, 0)


# --------------------------------------------------------------------------------------- confidence


def test_parameters_are_one_per_channel_and_a_bias() -> None:
    fusion = CoBEVFlow(FusionConfig(core_method="cobevflow"), 256)
    assert sum(p.numel() for p in fusion.parameters()) == 257


def test_everything_is_sent_at_the_start() -> None:
    fusion = cobevflow().eval()
    frames, context = scene([torch.zeros(3, C, *SHAPE)], [0.0])
    assert (fused(fusion, frames, context) == 0.0).all()


def test_the_confidence_loss_by_hand() -> None:
    """One positive, one negative, one undecided and one unseen cell, all at logit 0."""
    fusion = cobevflow(confidence_weight=1.0)
    nn.init.zeros_(fusion.confidence.weight)
    assert fusion.confidence.bias is not None
    nn.init.zeros_(fusion.confidence.bias)
    labels = torch.tensor([[1, -1], [0, 0], [0, -1], [1, 0]], dtype=torch.int8).view(1, 1, 4, 2)
    context = made_context([2], None, (1, 4), labels=labels)
    context.roi[1] = torch.tensor([True, True, True, False])
    context.roi[0] = False  # the ego is taught everywhere in any case
    loss = fusion(torch.randn(2, C, 1, 4), context).auxiliary_losses["confidence"]
    one = 0.25 * math.log(2)
    expected = (one * (0.25 * 3 + 0.75 * 2)) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_late_agents_and_missing_frames_teach_nothing() -> None:
    fusion = cobevflow()
    frames = torch.randn(2, 3, C, *SHAPE)
    labels = torch.zeros(1, *SHAPE, 2, dtype=torch.int8)
    labels[0, 5, 5, 1] = 1
    context = made_context([2], frames, SHAPE, labels=labels, late_s=[0.0, 0.5])
    assert context.frames is not None
    context.frames.valid[0, -1] = False
    loss = fusion(frames[:, -1], context).auxiliary_losses["confidence"]
    ego = made_context([1], None, SHAPE, labels=labels)
    expected = fusion(frames[:1, -1], ego).auxiliary_losses["confidence"]
    torch.testing.assert_close(loss, expected / 2)


def test_a_batch_without_positive_cells_is_finite() -> None:
    fusion, frames = cobevflow(), torch.randn(1, 3, C, *SHAPE) * 100
    labels = torch.full((1, *SHAPE, 2), -1, dtype=torch.int8)
    context = made_context([1], frames, SHAPE, labels=labels)
    loss = fusion(frames[:, -1], context).auxiliary_losses["confidence"]
    assert loss.item() == 0.0
    loss.backward()
    assert fusion.confidence.weight.grad is not None
    assert torch.isfinite(fusion.confidence.weight.grad).all()


@pytest.mark.parametrize("why", ["evaluation", "labels"])
def test_where_nothing_is_taught_there_is_no_loss(why: str) -> None:
    fusion = cobevflow().train(why == "labels")
    frames = torch.randn(1, 3, C, *SHAPE)
    labels = None if why == "labels" else torch.zeros(1, *SHAPE, 2, dtype=torch.int8)
    context = made_context([1], frames, SHAPE, labels=labels)
    assert fusion(frames[:, -1], context).auxiliary_losses == {}


def test_the_confidence_learns_where_objects_are() -> None:
    fusion = cobevflow(confidence=0.05)
    optimizer = torch.optim.Adam(fusion.parameters(), 0.05)
    frames = moving_box((8, 9), (0, 1)).expand(2, 3, C, *SHAPE)
    labels = torch.zeros(1, *SHAPE, 2, dtype=torch.int8)
    labels[0, 8:10, 11:16, 0] = 1
    context = made_context([2], frames, SHAPE, labels=labels)
    for _ in range(150):
        optimizer.zero_grad()
        fusion(frames[:, -1], context).auxiliary_losses["confidence"].backward()
        optimizer.step()
    score = fusion.confidence(frames[0, -1:]).sigmoid()[0, 0]
    assert score[8:10, 11:16].min() > 0.5
    assert score[0].max() < 0.05
    sent = fusion.eval()(frames[:, -1], context).message_bytes // (C * 4)
    assert 10 <= sent < 80


# -------------------------------------------------------------------------------------- the network


def network_for(neck: str = "pre_temporal") -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        tiny_args(fusion="cobevflow", neck=neck),
        small_grid(),
        hist_frames=3,
        future_steps=6,
        anchors_per_cell=2,
    )


@pytest.mark.parametrize("neck", ["pre_temporal", "post_fusion"])
def test_the_network_teaches_it_by_the_labels_of_the_batch(neck: str) -> None:
    network = network_for(neck)
    batch = make_batch(grid=small_grid(), record_len=[2, 1], hist_frames=3, seed=0)
    losses = network(batch).auxiliary_losses
    assert list(losses) == ["confidence"]
    losses["confidence"].backward()
    for name, parameter in network.get_submodule("fusion").named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert network(replace(batch, targets=None)).auxiliary_losses == {}


def test_pretraining_sees_no_labels_and_masks_nothing() -> None:
    network = network_for()
    batch = make_batch(
        grid=small_grid(), record_len=[2], hist_frames=3, seed=0, shape=MadeShape(voxels_per_map=80)
    )
    assert batch.targets is not None
    pretrainer = MaskedPretrainer(network, small_grid(), PretrainConfig())
    losses, _ = pretrainer(batch, torch.Generator().manual_seed(0))
    assert list(losses.tasks) == ["points", "occupancy"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"confidence_weight": 0.0}, "confidence_weight must be above 0 while confidence is"),
        ({"roi_half_m": 0.0}, r"roi_half_m must be above 0. Found 0.0"),
        ({"match_m": -1.0}, r"match_m must be above 0. Found -1.0"),
    ],
)
def test_impossible_keys_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cobevflow(**keys)
