"""The 2-D BEV network: size, odd maps, recomputation."""

import copy

import pytest
import torch
from torch import nn

from turbotrain_plugin.config import NeckConfig
from turbotrain_plugin.models.neck import BevNeck
from turbotrain_plugin.structures import UserError


def tiny_neck(*, checkpoint: bool = False, levels: int = 2) -> BevNeck:
    torch.manual_seed(0)
    args = NeckConfig(
        layers=(2,) * levels,
        filters=(8, 12, 16)[:levels],
        upsample_filters=(6,) * levels,
        checkpoint=checkpoint,
    )
    return BevNeck(args, 4, 10)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_count_at_full_width() -> None:
    neck = BevNeck(NeckConfig(), 256, 256)
    assert count(neck.levels) + count(neck.ups) == 4_576_768
    assert count(neck.project) == 1_180_160


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (5, 2)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_size_is_kept(size: tuple[int, int], levels: int) -> None:
    neck = tiny_neck(levels=levels).eval()
    assert neck(torch.randn(2, 4, *size)).shape == (2, 10, *size)


@pytest.mark.parametrize(
    "args",
    [
        NeckConfig(layers=(1,)),
        NeckConfig(layers=(1, 0)),
        NeckConfig(filters=(8, 8, 8)),
        NeckConfig(layers=(), filters=(), upsample_filters=()),
    ],
)
def test_lists_of_different_length_are_refused(args: NeckConfig) -> None:
    with pytest.raises(UserError, match="need one positive number per level"):
        BevNeck(args, 4, 4)


def test_checkpoint_gives_the_same_step_and_moves_statistics_once() -> None:
    plain, saving = tiny_neck(), tiny_neck(checkpoint=True)
    maps = torch.randn(3, 4, 8, 8)
    results = []
    for neck in (plain, saving):
        given = maps.clone().requires_grad_()
        out = neck(given)
        out.square().sum().backward()
        results.append((out, given.grad, [p.grad for p in neck.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(dict(plain.named_buffers()), dict(saving.named_buffers()))
    assert saving.project[1].num_batches_tracked == 1


def test_checkpoint_computes_the_levels_again_in_backward() -> None:
    neck = tiny_neck(checkpoint=True)
    calls = []
    neck.levels[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    out = neck(torch.randn(1, 4, 4, 4, requires_grad=True))
    assert len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2


def test_checkpoint_leaves_frozen_statistics_alone() -> None:
    neck = tiny_neck(checkpoint=True).eval()
    before = copy.deepcopy(neck.state_dict())
    neck(torch.randn(1, 4, 4, 4, requires_grad=True)).sum().backward()
    torch.testing.assert_close(neck.state_dict(), before)


def test_checkpoint_without_gradients_runs_plainly() -> None:
    neck = tiny_neck(checkpoint=True)
    with torch.no_grad():
        assert neck(torch.randn(1, 4, 4, 4)).shape == (1, 10, 4, 4)
