"""Attention of cells, agents and windows against loops over every cell, head and key."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.config import FusionConfig, MapConfig, TemporalConfig
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.models.fusion.v2xpnp import V2XPnP
from turbotrain_plugin.models.fusion.windows import MultiScaleWindows, WindowAttention
from turbotrain_plugin.models.map_encoder import MapFusion
from turbotrain_plugin.models.temporal import TemporalFusion
from turbotrain_plugin.structures import FusionContext, MapTokens

C, HEADS = 8, 2
WIDTH = C // HEADS


def attend(
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    bias: list[float] | None = None,
    head_bias: list[Tensor] | None = None,
) -> Tensor:
    """Return multi-head attention of one query (C,) over a list of keys and values (C,).

    ``bias`` adds one number per key to the scores, ``head_bias`` one number per key and head.
    """
    parts = []
    for head in range(HEADS):
        part = slice(WIDTH * head, WIDTH * head + WIDTH)
        scores = [float(query[part] @ key[part]) / math.sqrt(WIDTH) for key in keys]
        if bias is not None:
            scores = [score + extra for score, extra in zip(scores, bias, strict=True)]
        if head_bias is not None:
            extras = [float(extra[head]) for extra in head_bias]
            scores = [score + extra for score, extra in zip(scores, extras, strict=True)]
        exponentials = [math.exp(score) for score in scores]
        total = sum(exponentials)
        parts.append(
            sum(
                (e / total * value[part] for e, value in zip(exponentials, values, strict=True)),
                start=torch.zeros(WIDTH),
            )
        )
    return torch.cat(parts)


def randomise(module: nn.Module) -> None:
    """Give biases and norms values, too, so that none can hide."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
@pytest.mark.parametrize("valid", [[True, True, True], [False, True, True], [True, False, True]])
def test_temporal_fusion_is_attention_of_the_current_frame(valid: list[bool]) -> None:
    fusion = TemporalFusion(TemporalConfig(heads=HEADS, ffn=12, dropout=0.0), C, 3)
    randomise(fusion)
    layer: Any = fusion.layers[0]
    features = torch.randn(3, C, 2, 3)
    fused = fusion(features, torch.tensor([valid]))
    for row in range(2):
        for column in range(3):
            frames = [features[t, :, row, column] + fusion.time_embedding[t] for t in range(3)]
            normed = [layer.norm(frame) for frame in frames]
            seen = [x for x, ok in zip(normed, valid, strict=True) if ok]
            attended = attend(
                layer.query(normed[-1]),
                [layer.key(x) for x in seen],
                [layer.value(x) for x in seen],
                head_bias=[layer.time_bias[t, 0] for t in range(3) if valid[t]],
            )
            kept = frames[-1] + layer.output(attended)
            expected = kept + layer.feed_forward(kept)
            torch.testing.assert_close(fused[0, :, row, column], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_agent_attention_follows_the_formula(depth: int) -> None:
    """out_i = sum_j softmax_j(q_i^T W_ij k_j / sqrt(d)) v_j with weights by type and edge."""
    args = FusionConfig(
        windows=(2,), window_heads=(HEADS,), heads=HEADS, ffn=12, dropout=0.0, depth=depth
    )
    fusion = V2XPnP(args, C)
    randomise(fusion)
    types = [0, 1, 0]
    features, roi = torch.randn(3, C, 2, 2), torch.rand(3, 1, 2, 2) > 0.3
    context = FusionContext(
        torch.tensor([3]), torch.tensor(types), roi, torch.zeros(3), torch.eye(4).expand(3, 4, 4)
    )
    fused = fusion(features, context).features
    refined = fusion.refine(features.permute(0, 2, 3, 1))
    for row in range(2):
        for column in range(2):
            cells = [refined[agent, row, column] for agent in range(3)]
            visible = [bool(roi[agent, 0, row, column]) for agent in range(3)]
            for layer in fusion.layers:
                cells = [_agent_step(layer, cells, types, visible, i) for i in range(3)]
            torch.testing.assert_close(fused[0, :, row, column], cells[0], atol=1e-5, rtol=1e-4)


def _agent_step(
    layer: nn.Module, cells: list[Tensor], types: list[int], visible: list[bool], i: int
) -> Tensor:
    def typed(linear: nn.Module) -> Callable[[Tensor, int], Tensor]:
        weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
        return lambda x, kind: weight[kind] @ x + bias[kind]

    norm, output = layer.get_submodule("norm"), typed(layer.get_submodule("output"))
    query, key = typed(layer.get_submodule("query")), typed(layer.get_submodule("key"))
    value, relation = typed(layer.get_submodule("value")), layer.get_parameter("relation")
    normed = [norm(cell) for cell in cells]
    keys, values = [], []
    for j in range(len(cells)):
        if not visible[j] and j != i:
            continue
        k = key(normed[j], types[j]).view(HEADS, WIDTH)
        edge = 2 * types[i] + types[j]
        keys.append(torch.cat([relation[edge, head] @ k[head] for head in range(HEADS)]))
        values.append(value(normed[j], types[j]))
    attended = attend(query(normed[i], types[i]), keys, values)
    kept: Tensor = cells[i] + output(attended, types[i])
    fed: Tensor = kept + layer.get_submodule("feed_forward")(kept)
    return fed


@torch.no_grad()
@pytest.mark.parametrize("size", [(6, 6), (4, 5), (2, 7)])
def test_window_attention_sees_exactly_its_window(size: tuple[int, int]) -> None:
    window = 3
    attention = WindowAttention(C, window, HEADS, dropout=0.0)
    randomise(attention)
    cells = torch.randn(1, *size, C)
    attended = attention(cells)
    split = [
        attention.query_key_value(cells[0]) @ torch.eye(3 * C)[:, C * i : C * i + C]
        for i in (0, 1, 2)
    ]
    for row in range(size[0]):
        for column in range(size[1]):
            inside = [
                (y, x)
                for y in range(row // window * window, row // window * window + window)
                for x in range(column // window * window, column // window * window + window)
                if y < size[0] and x < size[1]
            ]
            bias = [
                float(
                    attention.bias[
                        (row - y + window - 1) * (2 * window - 1) + column - x + window - 1
                    ]
                )
                for y, x in inside
            ]
            value = attend(
                split[0][row, column],
                [split[1][at] for at in inside],
                [split[2][at] for at in inside],
                bias,
            )
            torch.testing.assert_close(
                attended[0, row, column], attention.output(value), atol=1e-5, rtol=1e-4
            )


@torch.no_grad()
def test_split_attention_weighs_scales_per_channel() -> None:
    windows = MultiScaleWindows(C, (2, 3), (HEADS, HEADS), 0.0)
    randomise(windows)
    cells = torch.randn(2, 4, 5, C)
    mixed = windows(cells)
    parts = [scale(windows.norm(cells)) for scale in windows.scales]
    for sample in range(2):
        pooled = sum((part[sample].mean(dim=(0, 1)) for part in parts), start=torch.zeros(C))
        logits = windows.excite(windows.squeeze(pooled))
        for channel in range(C):
            weights = torch.softmax(logits[[channel, C + channel]], dim=0)
            expected = weights[0] * parts[0][sample, ..., channel]
            expected = expected + weights[1] * parts[1][sample, ..., channel]
            torch.testing.assert_close(mixed[sample, ..., channel], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_map_fusion_attends_to_the_near_segments() -> None:
    grid = BevGrid((0.0, -1.6, -5.0, 2.4, 0.0, 3.0), (0.8, 0.8, 8.0), 1)
    fusion = MapFusion(MapConfig(heads=HEADS, ffn=12, dropout=0.0, stride=1), C, grid)
    randomise(fusion)
    points, valid = torch.randn(4, 10, 7), torch.rand(4, 10) > 0.3
    valid[:, 0] = True
    nearest = torch.randint(-1, 4, (1, 2, 3, 5))
    nearest[0, 0, 0] = -1
    features = torch.randn(1, C, 2, 3)
    out = fusion(features, MapTokens(points, valid, nearest))
    torch.testing.assert_close(out[0, :, 0, 0], features[0, :, 0, 0])
    tokens, centres = fusion.segments(points, valid)
    for row in range(2):
        for column in range(3):
            near = [s for s in nearest[0, row, column].tolist() if s >= 0]
            if not near:
                continue
            cell = features[0, :, row, column]
            place = torch.tensor([0.8 * (column + 0.5), -1.6 + 0.8 * (row + 0.5)])
            lanes = [tokens[s] + fusion.position((centres[s] - place) / 10.0) for s in near]
            normed = [fusion.norm(token) for token in (cell, *lanes)]
            pairs = [fusion.key_value(x) for x in normed]
            attended = attend(
                fusion.query(normed[0]), [p[:C] for p in pairs], [p[C:] for p in pairs]
            )
            kept = cell + fusion.output(attended)
            expected = kept + fusion.feed_forward(kept)
            torch.testing.assert_close(out[0, :, row, column], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_segments_are_the_maximum_over_their_valid_points() -> None:
    grid = BevGrid((0.0, 0.0, -5.0, 0.8, 0.8, 3.0), (0.8, 0.8, 8.0), 1)
    encoder = MapFusion(MapConfig(heads=HEADS), C, grid).segments
    randomise(encoder)
    points, valid = torch.randn(3, 10, 7), torch.rand(3, 10) > 0.4
    valid[:, 0] = True
    tokens, centres = encoder(points, valid)
    for row in range(3):
        kept = points[row][valid[row]]
        centre = kept[:, :2].mean(0)
        shifted = torch.cat(
            [(kept[:, :2] - centre) / 10, kept[:, 2:5], (kept[:, 5:] - centre) / 10], dim=1
        )
        expected = encoder.project(encoder.points(shifted).amax(0))
        torch.testing.assert_close(tokens[row], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(centres[row], centre)
