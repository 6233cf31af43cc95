"""Pretraining around modules of one's own: what they must have, what they are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch, small_grid
from turbotrain_plugin.config import MaskConfig, PretrainConfig
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.structures import Batch, Voxels

_GRID = small_grid(8)
_FRAMES = 2


class Plain(nn.Module):
    """A ``BevModule``: counts voxels of the ego's current frame per cell."""

    head_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, self.head_channels)
        self.given: list[Batch] = []

    def forward(self, batch: Batch) -> Tensor:
        self.given.append(batch)
        egos = (batch.record_len.cumsum(0) - batch.record_len) * _FRAMES + _FRAMES - 1
        index, _, y, x = batch.voxels.coordinates.long().unbind(1)
        maps = torch.zeros(batch.voxels.map_count, _GRID.height, _GRID.width)
        cell = (index, y // _GRID.stride, x // _GRID.stride)
        maps = maps.index_put(cell, torch.ones(len(index)), accumulate=True)
        lifted: Tensor = self.lift(maps[egos].unsqueeze(-1)).permute(0, 3, 1, 2)
        return lifted


class Tokened(nn.Module):
    """A ``TokenModule``: sums voxel features per cell."""

    head_channels = 4
    feature_width = 3

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, self.head_channels)
        self.features: list[Tensor] = []
        self.given: list[Batch] = []

    def voxel_features(self, voxels: Voxels) -> Tensor:
        return voxels.points.sum(1)[:, :3]

    def forward(self, batch: Batch, voxel_features: Tensor | None = None) -> Tensor:
        assert voxel_features is not None
        self.given.append(batch)
        self.features.append(voxel_features.detach())
        egos = (batch.record_len.cumsum(0) - batch.record_len) * _FRAMES + _FRAMES - 1
        index, _, y, x = batch.voxels.coordinates.long().unbind(1)
        maps = torch.zeros(batch.voxels.map_count, _GRID.height, _GRID.width, 3)
        cell = (index, y // _GRID.stride, x // _GRID.stride)
        maps = maps.index_put(cell, voxel_features, accumulate=True)
        lifted: Tensor = self.lift(maps[egos]).permute(0, 3, 1, 2)
        return lifted


def _config(mode: str, **changes: Any) -> PretrainConfig:  # noqa: ANN401
    return PretrainConfig(mask=MaskConfig(mode=mode), **changes)


def _batch() -> Batch:
    shape = MadeShape(voxels_per_map=60)
    return make_batch(grid=_GRID, record_len=[2, 1], hist_frames=_FRAMES, seed=0, shape=shape)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_plain_module_gets_the_visible_voxels_and_no_answer() -> None:
    module, batch = Plain(), _batch()
    losses, found = MaskedPretrainer(module, _GRID, _config("drop"))(batch, _seeded())
    (given,) = module.given
    assert torch.equal(given.voxels.coordinates, batch.voxels.coordinates[~found.masked])
    assert torch.equal(given.voxels.points, batch.voxels.points[~found.masked])
    assert given.reconstruction is None
    assert given.targets is None
    assert given.truth == [None, None]
    assert batch.reconstruction is not None  # the caller's batch is as before
    assert set(losses.tasks) == {"points", "occupancy"}


def test_a_plain_module_learns() -> None:
    module = Plain()
    pretrainer = MaskedPretrainer(module, _GRID, _config("drop"))
    losses, _ = pretrainer(_batch(), _seeded())
    torch.autograd.backward(losses.total())
    assert module.lift.weight.grad is not None
    assert module.lift.weight.grad.any()
    assert {name.split(".")[0] for name in pretrainer.state_dict()} == {
        "network", "point_head", "occupancy_head"
    }  # fmt: skip


def test_a_token_stands_in_hidden_rows_and_hidden_points_are_not_handed_over() -> None:
    module, batch = Tokened(), _batch()
    pretrainer = MaskedPretrainer(module, _GRID, _config("token_sites"))
    assert pretrainer.mask_token is not None
    with torch.no_grad():
        pretrainer.mask_token.copy_(torch.tensor([5.0, 6.0, 7.0]))
    _, found = pretrainer(batch, _seeded())
    (features,), (given,) = module.features, module.given
    own = batch.voxels.points.sum(1)[:, :3]
    assert torch.equal(features[~found.masked], own[~found.masked])
    assert (features[found.masked] == torch.tensor([5.0, 6.0, 7.0])).all()
    assert given.voxels.points.numel() == 0
    assert not given.voxels.point_counts.any()
    assert torch.equal(given.voxels.coordinates, batch.voxels.coordinates)


def test_the_token_learns() -> None:
    pretrainer = MaskedPretrainer(Tokened(), _GRID, _config("token_sites"))
    losses, _ = pretrainer(_batch(), _seeded())
    torch.autograd.backward(losses.total())
    assert pretrainer.mask_token is not None
    assert pretrainer.mask_token.grad is not None
    assert pretrainer.mask_token.grad.any()


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (_config("token_sites"), "feature_width, voxel_features"),
        (_config("drop", target_frames="all"), "hist_frames"),
    ],
)
def test_what_a_module_lacks_is_named(config: PretrainConfig, missing: str) -> None:
    with pytest.raises(TypeError, match=f"Plain lacks {missing}; mask.mode drop"):
        MaskedPretrainer(Plain(), _GRID, config)


def test_a_module_without_width_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`network` must have head_channels .*Linear lacks"):
        MaskedPretrainer(nn.Linear(2, 2), _GRID, _config("drop"))


def test_frames_of_a_module_that_knows_them() -> None:
    module = Plain()
    module.hist_frames = _FRAMES  # type: ignore[assignment]
    pretrainer = MaskedPretrainer(module, _GRID, _config("drop", target_frames="all"))
    _, found = pretrainer(_batch(), _seeded())
    assert found.points.shape[:2] == (2, _FRAMES)


def test_maps_of_a_wrong_shape_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Plain()
    right = module.forward
    monkeypatch.setattr(module, "forward", lambda batch: right(batch)[:, :, :-1])
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\).*Found \(2, 4, 7, 8\)"):
        MaskedPretrainer(module, _GRID, _config("drop"))(_batch(), _seeded())


# --------------------------------------------------------------------------------- target frames


def _all_frames() -> MaskedPretrainer:
    torch.manual_seed(0)
    module = Plain()
    module.hist_frames = _FRAMES  # type: ignore[assignment]
    return MaskedPretrainer(module, _GRID, _config("drop", target_frames="all"))


def test_every_frame_has_outputs_and_targets_of_its_own() -> None:
    batch = _batch()
    _, found = _all_frames()(batch, _seeded())
    assert found.points.shape == (2, _FRAMES, 8, 8, 20, 3)
    assert found.occupancy.shape == (2, _FRAMES, 8, 8, 20)
    assert found.region.shape == (2, _FRAMES, 8, 8)
    assert found.region.any(dim=(2, 3)).all()
    assert not torch.equal(found.region[:, 0], found.region[:, 1])
    assert not torch.equal(found.points[:, 0], found.points[:, 1])


def test_past_points_are_targets_of_all_and_not_of_current() -> None:
    batch = _batch()
    assert batch.reconstruction is not None
    points = batch.reconstruction
    kept = points.age == 0
    current = replace(
        batch,
        reconstruction=replace(
            points,
            xyz=points.xyz[kept],
            sample=points.sample[kept],
            agent=points.agent[kept],
            age=points.age[kept],
        ),
    )
    alone = MaskedPretrainer(Plain(), _GRID, _config("drop"))
    assert torch.equal(alone(batch, _seeded())[0].total(), alone(current, _seeded())[0].total())
    every = _all_frames()
    assert not torch.equal(every(batch, _seeded())[0].total(), every(current, _seeded())[0].total())
    assert not every(current, _seeded())[1].region[:, 0].any()


def test_frames_that_nobody_recorded_are_not_called_empty() -> None:
    """Logits that call everything taken cost nothing where nothing is known."""
    batch = _batch()
    recorded = batch.frame_valid.clone()
    recorded[:, 0] = False
    old = batch.voxels.coordinates[:, 0] % _FRAMES == 0
    assert batch.reconstruction is not None
    points = batch.reconstruction
    kept = points.age == 0
    missing = replace(
        batch,
        frame_valid=recorded,
        voxels=replace(
            batch.voxels,
            points=batch.voxels.points[~old],
            coordinates=batch.voxels.coordinates[~old],
            point_counts=batch.voxels.point_counts[~old],
        ),
        reconstruction=replace(
            points,
            xyz=points.xyz[kept],
            sample=points.sample[kept],
            agent=points.agent[kept],
            age=points.age[kept],
        ),
    )
    pretrainer = _all_frames()
    assert pretrainer.occupancy_head is not None
    losses, found = pretrainer(missing, _seeded())
    torch.autograd.backward(losses.tasks["occupancy"])
    last = pretrainer.occupancy_head.layers[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    assert last.bias.grad is not None
    by_frame = last.bias.grad.view(_FRAMES, -1)
    assert found.region[:, 1].any()
    assert not by_frame[0].any()
    assert by_frame[1].all()
