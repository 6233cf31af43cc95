"""Hidden content reaches nothing, through any fusion and encoder; hidden places are measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from tests.helpers.made_models import second_grid, tiny_args
from turbotrain_plugin.config import MaskConfig, PretrainConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.losses import PRINTED, STANDARD, FocalShape
from turbotrain_plugin.models import CooperativeNetwork, build_model
from turbotrain_plugin.models.fusion import FUSIONS
from turbotrain_plugin.pretraining import (
    MaskedPretrainer,
    cell_points,
    collapse_warning,
    masked_region,
    occupied_bins,
    prior_loss,
    sites_iou,
)
from turbotrain_plugin.structures import Batch

_FRAMES = 3
_PILLARS, _SECOND = small_grid(8), second_grid(8)

_FUSIONS = pytest.mark.parametrize("fusion", sorted(FUSIONS))
_ENCODERS = pytest.mark.parametrize("encoder", ["pillars", "second"])
_MODES = pytest.mark.parametrize("mode", ["token_sites", "drop"])


def _grid(encoder: str) -> BevGrid:
    return _SECOND if encoder == "second" else _PILLARS


def _pretrainer(fusion: str, encoder: str, config: PretrainConfig) -> MaskedPretrainer:
    if encoder == "second":
        pytest.importorskip("spconv")
    torch.manual_seed(0)
    args = tiny_args(encoder=encoder, fusion=fusion, stride=_grid(encoder).stride)
    network = build_model(
        args, _grid(encoder), hist_frames=_FRAMES, future_steps=2, anchors_per_cell=2
    )
    return MaskedPretrainer(network, _grid(encoder), config)


def _batch(encoder: str) -> Batch:
    """Two and one agents over three frames; one of them is late, which moves FFNet, CoBEVFlow."""
    shape = MadeShape(voxels_per_map=50)
    batch = make_batch(
        grid=_grid(encoder), record_len=[2, 1], hist_frames=_FRAMES, seed=0, shape=shape
    )
    batch.time_offset_s[1] = 0.2
    return batch


def _with_token(pretrainer: MaskedPretrainer) -> None:
    """As after some steps: a token of zeros would hide that it stands somewhere."""
    if pretrainer.mask_token is not None:
        with torch.no_grad():
            pretrainer.mask_token.copy_(torch.linspace(-1, 1, len(pretrainer.mask_token)))


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _disturbed(batch: Batch, masked: Tensor) -> Batch:
    """The batch with other points, counts and intensities in every hidden voxel."""
    points, counts = batch.voxels.points.clone(), batch.voxels.point_counts.clone()
    points[masked] = 17.0 + torch.randn(points[masked].shape, generator=_seeded())
    counts[masked] = points.shape[1] - counts[masked]
    return replace(batch, voxels=replace(batch.voxels, points=points, point_counts=counts))


# ------------------------------------------------------------------------------ content, exhaustive


@_FUSIONS
@_ENCODERS
@_MODES
def test_hidden_points_change_the_targets_and_nothing_else(
    fusion: str, encoder: str, mode: str
) -> None:
    """In training mode, where batch statistics are one more way in."""
    config = PretrainConfig(mask=MaskConfig(mode=mode))
    pretrainer, batch = _pretrainer(fusion, encoder, config), _batch(encoder)
    _with_token(pretrainer)
    buffers = {name: b.clone() for name, b in pretrainer.named_buffers()}
    losses, before = pretrainer(batch, _seeded())
    pretrainer.load_state_dict(buffers, strict=False)
    other = _disturbed(batch, before.masked)
    assert other.reconstruction is not None
    moved = replace(other.reconstruction, xyz=other.reconstruction.xyz * 0.99)
    other_losses, after = pretrainer(replace(other, reconstruction=moved), _seeded())
    assert before.masked.any()
    assert torch.equal(before.points, after.points)
    assert torch.equal(before.occupancy, after.occupancy)
    assert losses.tasks["points"] != other_losses.tasks["points"]


@pytest.mark.parametrize("fusion", ["fcooper", "v2xpnp"])
@_ENCODERS
@_MODES
def test_no_gradient_reaches_hidden_points(fusion: str, encoder: str, mode: str) -> None:
    config = PretrainConfig(mask=MaskConfig(mode=mode))
    pretrainer, batch = _pretrainer(fusion, encoder, config), _batch(encoder)
    _with_token(pretrainer)
    points = batch.voxels.points.clone().requires_grad_()
    seen = replace(batch, voxels=replace(batch.voxels, points=points))
    masked = pretrainer.draw_mask(seen, _seeded())
    features, _ = pretrainer.fused_features(seen, masked)
    weights = torch.randn(features.shape, generator=_seeded())
    (gradient,) = torch.autograd.grad((features * weights).sum(), points)
    assert not gradient[masked].any()
    assert gradient[~masked].any()


@_FUSIONS
@_ENCODERS
def test_ratio_zero_is_the_fine_tuning_feature_bit_by_bit(fusion: str, encoder: str) -> None:
    config = PretrainConfig(mask=MaskConfig(ratio=0.0))
    pretrainer, batch = _pretrainer(fusion, encoder, config), replace(_batch(encoder), targets=None)
    network = pretrainer.network
    assert isinstance(network, CooperativeNetwork)
    for training in (False, True):
        pretrainer.train(training)
        expected = network.fused_features(batch).features
        found, _ = pretrainer.fused_features(batch, pretrainer.draw_mask(batch, _seeded()))
        assert torch.equal(found, expected)


@_FUSIONS
@_ENCODERS
def test_every_fusion_learns_from_reconstruction(fusion: str, encoder: str) -> None:
    """Its own losses join where it has any; encoder and time learn in any case."""
    pretrainer = _pretrainer(fusion, encoder, PretrainConfig())
    losses, output = pretrainer(_batch(encoder), _seeded())
    torch.autograd.backward(losses.total())
    assert torch.isfinite(losses.total())
    assert output.region.any()
    expected = {"points", "occupancy"} | ({"auxiliary"} if fusion == "ffnet" else set())
    assert set(losses.tasks) == expected
    network = pretrainer.network
    assert isinstance(network, CooperativeNetwork)
    for module in (network.encoder, network.temporal):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    learning = [p for p in network.fusion.parameters() if p.grad is not None and p.grad.any()]
    has_any = any(True for _ in network.fusion.parameters())
    assert bool(learning) == (has_any and fusion != "cobevflow")  # whose head asks for labels


# --------------------------------------------------------------------------------- places, measured


def test_places_of_hidden_voxels_are_known_with_tokens_and_gone_when_dropped() -> None:
    changed = {}
    for mode in ("token_sites", "drop"):
        pretrainer = _pretrainer("fcooper", "pillars", PretrainConfig(mask=MaskConfig(mode=mode)))
        pretrainer.eval()
        _with_token(pretrainer)
        batch = _batch("pillars")
        masked = pretrainer.draw_mask(batch, _seeded())
        before, _ = pretrainer.fused_features(batch, masked)
        hidden = int(masked.nonzero()[-1])
        moved = batch.voxels.coordinates.clone()
        moved[hidden, 2:] = torch.tensor([0, 0], dtype=moved.dtype)
        other = replace(batch, voxels=replace(batch.voxels, coordinates=moved))
        after, _ = pretrainer.fused_features(other, masked)
        changed[mode] = not torch.equal(before, after)
    assert changed == {"token_sites": True, "drop": False}


def _iou(given: Tensor, batch: Batch, masked: Tensor, grid: BevGrid, frames: int = 1) -> float:
    assert batch.reconstruction is not None
    region = masked_region(batch, masked, grid, "any", target_frames=frames)
    found = cell_points(batch.reconstruction, grid, frames)
    occupied = occupied_bins(found, region.numel(), 20)
    return float(sites_iou(batch, given, grid, region, occupied))


@pytest.mark.parametrize("frames", [1, _FRAMES])
def test_places_of_fine_voxels_are_the_whole_answer(frames: int) -> None:
    """SECOND: 40 heights of 0.2 m on 20 bins of 0.4 m."""
    batch = _batch("second")
    masked = torch.ones(len(batch.voxels.coordinates), dtype=torch.bool)
    assert _iou(masked, batch, masked, _SECOND, frames) == 1.0
    assert _iou(~masked, batch, masked, _SECOND, frames) == 0.0


def test_places_of_tall_voxels_tell_no_height() -> None:
    """One voxel over the whole height touches all 20 bins, of which the points fill a few."""
    batch = _batch("pillars")
    masked = torch.ones(len(batch.voxels.coordinates), dtype=torch.bool)
    assert 0.05 < _iou(masked, batch, masked, _PILLARS) < 0.6


def test_what_other_agents_see_counts_as_given() -> None:
    batch = _batch("second")
    of_second = batch.voxels.coordinates[:, 0] // _FRAMES == 1
    # The second agent's voxels now lie where the first one's do, a frame later each.
    shared = _iou(of_second, batch, ~of_second, _SECOND)
    assert 0.0 <= shared < 0.5


def test_steps_report_both_numbers() -> None:
    found = {}
    for mode in ("token_sites", "drop"):
        mask = MaskConfig(mode=mode, scope="shared")
        losses, _ = _pretrainer("fcooper", "second", PretrainConfig(mask=mask))(
            _batch("second"), _seeded()
        )
        found[mode] = float(losses.parts["sites_iou"])
        assert losses.parts["prior"] > 0
    assert found["token_sites"] == 1.0
    assert found["drop"] < 0.3


# --------------------------------------------------------------------------------- prior, collapse


@pytest.mark.parametrize("shape", [PRINTED, STANDARD, FocalShape(1.0, 0.0)])
def test_no_constant_prediction_beats_the_prior_much(shape: FocalShape) -> None:
    """For cross-entropy the base rate is the best constant; for focal losses within a factor."""
    occupied = torch.rand(4000, 1, generator=_seeded()) < 0.2
    prior = float(prior_loss(occupied, shape))
    constants = torch.linspace(-4, 4, 81)
    losses = [float(prior_like(occupied, float(logit), shape)) for logit in constants]
    assert prior <= min(losses) * (1.001 if shape.gamma == 0 else 2)
    assert prior >= min(losses) * 0.999


def prior_like(occupied: Tensor, logit: float, shape: FocalShape) -> Tensor:
    """The loss of one logit everywhere, written from the definition."""
    probability = torch.sigmoid(torch.tensor(logit, dtype=torch.float64))
    truth = torch.where(occupied, probability, 1 - probability)
    return (-shape.alpha * (1 - truth) ** shape.gamma * truth.log()).mean()


def test_the_prior_of_nothing_and_of_constants_is_finite() -> None:
    assert prior_loss(torch.zeros(0, 20, dtype=torch.bool), PRINTED) == 0
    for value in (True, False):
        assert torch.isfinite(prior_loss(torch.full((5, 20), value), PRINTED))


def _steps(focal: float, prior: float) -> list[dict[str, float]]:
    return [{"focal": focal, "prior": prior, "sites_iou": 0.97}] * 3


def test_a_collapsed_task_is_told_from_a_hard_one() -> None:
    warning = collapse_warning(_steps(0.003, 0.1))
    assert "3.0%" in warning
    assert "0.97" in warning
    assert "mask.mode=drop" in warning
    assert collapse_warning(_steps(0.02, 0.1)) == ""


@pytest.mark.parametrize("steps", [[], [{"chamfer": 1.0}], [{"focal": 0.0, "prior": 0.0}]])
def test_without_an_occupancy_loss_nothing_has_collapsed(steps: list[dict[str, float]]) -> None:
    assert collapse_warning(steps) == ""
