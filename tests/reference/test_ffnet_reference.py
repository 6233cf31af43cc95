"""FFNet against loops over agents, cells and kernel taps, and against its paper's formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_contexts import INTERVAL_S, made_context
from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.ffnet import FFNet, flow_loss

C, SHAPE = 3, (4, 5)


def randomised(codec: bool) -> FFNet:
    """Return a network in evaluation with random weights and batch statistics."""
    torch.manual_seed(0)
    fusion = FFNet(FusionConfig(core_method="ffnet", codec=codec), C)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.4)
    for name, buffer in fusion.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2.0)
    return fusion.eval()


def convolved(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 3x3 convolution with zero padding of (C, H, W), tap by tap."""
    _, height, width = maps.shape
    result = torch.zeros(len(weight), height, width)
    for y in range(height):
        for x in range(width):
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        result[:, y, x] += weight[:, :, dy + 1, dx + 1] @ maps[:, y + dy, x + dx]
    return result if bias is None else result + bias[:, None, None]


def normed_relu(maps: Tensor, norm: nn.Module) -> Tensor:
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = norm.get_parameter("weight") / (var + 1e-3).sqrt()
    shifted = (maps - mean[:, None, None]) * scale[:, None, None]
    return (shifted + norm.get_parameter("bias")[:, None, None]).relu()


def block(maps: Tensor, module: nn.Module) -> Tensor:
    convolution, norm, _ = module.children()
    return normed_relu(convolved(maps, convolution.get_parameter("weight"), None), norm)


def flow_of(fusion: FFNet, older: Tensor, newer: Tensor) -> Tensor:
    hidden = torch.cat([older, newer])
    for module in fusion.flow.hidden.children():
        hidden = block(hidden, module)
    last = fusion.flow.correction
    return newer - older + convolved(hidden, last.weight, last.bias)


def received_of(fusion: FFNet, frames: Tensor, late_s: float) -> Tensor:
    """Return f_1 + f' (t_2 - t_1) / (t_1 - t_0) at the mean size of f_1, for (T, C, H, W)."""

    def coded(maps: Tensor) -> Tensor:
        decoded: Tensor = maps.unsqueeze(0)
        if fusion.codec is not None:
            decoded = fusion.codec(decoded)
        return decoded[0]

    latest = coded(frames[-1])
    moved = latest + coded(flow_of(fusion, frames[-2], frames[-1])) * late_s / INTERVAL_S
    sizes = [float(sum(abs(v) for v in maps.flatten().tolist())) for maps in (latest, moved)]
    return moved * (sizes[0] / sizes[1])


@torch.no_grad()
@pytest.mark.parametrize("codec", [False, True])
def test_the_whole_fusion(codec: bool) -> None:
    fusion = randomised(codec)
    frames = torch.randn(4, 3, C, *SHAPE)
    late_s = [0.0, 0.0, 0.25, 1.0]
    context = made_context([4], frames, SHAPE, late_s=late_s)
    context.roi[1:] = torch.rand(3, 1, *SHAPE) > 0.4
    context.roi[1:, :, 0, 0] = False
    found = fusion(frames[:, -1], context).features[0]
    arrived = [received_of(fusion, frames[agent], late_s[agent]) for agent in range(4)]
    joined = []
    for agent in range(4):
        other = arrived[0].clone()
        for y in range(SHAPE[0]):
            for x in range(SHAPE[1]):
                if context.roi[agent, 0, y, x]:
                    other[:, y, x] = arrived[agent][:, y, x]
        joined.append(block(torch.cat([frames[0, -1], other]), fusion.join))
    for y in range(SHAPE[0]):
        for x in range(SHAPE[1]):
            seen = [agent for agent in (1, 2, 3) if context.roi[agent, 0, y, x]] or [0]
            expected = torch.stack([joined[agent][:, y, x] for agent in seen]).amax(0)
            torch.testing.assert_close(found[:, y, x], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_flow_loss_number_by_number() -> None:
    frames = torch.randn(3, 4, C, *SHAPE)
    context = made_context([3], frames, SHAPE)
    assert context.frames is not None
    context.frames.valid[1, -2] = False
    context.frames.valid[2, 0] = False
    flow = torch.randn(3, C, *SHAPE)
    terms = []
    for agent in (0, 2):
        predicted = (frames[agent, -2] + flow[agent]).flatten().tolist()
        true = frames[agent, -1].flatten().tolist()
        product = sum(a * b for a, b in zip(predicted, true, strict=True))
        sizes = math.hypot(*predicted) * math.hypot(*true)
        terms.append((1 - product / sizes) ** 2)
    assert flow_loss(context.frames, flow).item() == pytest.approx(sum(terms) / 2, rel=1e-5)
