"""Agent fusion against loops over cells, agents and pairs that follow the formulas literally."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_fusions import fusion_args, fusion_for
from turbotrain_plugin.models.fusion.agent_attention import AgentAttention
from turbotrain_plugin.models.fusion.v2vnet import ConvGRU, V2VNet
from turbotrain_plugin.models.fusion.v2xvit import V2XViT
from turbotrain_plugin.structures import FusionContext

AGENTS, C, H, W = 3, 8, 3, 4
HEADS = 2
TYPES = [0, 1, 0]


def randomise(module: nn.Module) -> None:
    """Give every parameter and statistic a value of its own, so that none can hide."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


def scene() -> tuple[Tensor, FusionContext]:
    """Return features (A, C, H, W) and a context with random views and delays."""
    torch.manual_seed(2)
    context = FusionContext(
        record_len=torch.tensor([AGENTS]),
        agent_types=torch.tensor(TYPES),
        roi=torch.rand(AGENTS, 1, H, W) > 0.3,
        time_offset_s=torch.tensor([0.0, 0.1, 0.35]),
        ego_SE3_agent=torch.eye(4).repeat(AGENTS, 1, 1),
    )
    return torch.randn(AGENTS, C, H, W), context


def sees(context: FusionContext, agent: int, row: int, column: int) -> bool:
    return agent == 0 or bool(context.roi[agent, 0, row, column])


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_attfuse_against_all_rows_of_the_attention_matrix() -> None:
    features, context = scene()
    fused = fusion_for("attfuse", channels=C)(features, context).features[0]
    for row in range(H):
        for column in range(W):
            seeing = [a for a in range(AGENTS) if sees(context, a, row, column)]
            x = torch.stack([features[a, :, row, column] for a in seeing])
            attended = torch.softmax(x @ x.T / math.sqrt(C), dim=1) @ x
            close(fused[:, row, column], attended[0])


@torch.no_grad()
@pytest.mark.parametrize("last_relu", [True, False])
def test_disconet_against_a_network_on_concatenated_pairs(last_relu: bool) -> None:
    args = replace(fusion_args("disconet"), last_relu=last_relu)
    fusion = fusion_for("disconet", channels=C, args=args).eval()
    randomise(fusion)
    features, context = scene()
    fused = fusion(features, context).features[0]
    named = dict(fusion.named_parameters())
    stats = dict(fusion.named_buffers())

    def normalised(x: Tensor, name: str) -> Tensor:
        spread = (stats[f"{name}.running_var"] + 1e-3).sqrt()
        centred = (x - stats[f"{name}.running_mean"]) / spread
        return (centred * named[f"{name}.weight"] + named[f"{name}.bias"]).clamp(min=0.0)

    def score(pair: Tensor) -> float:
        hidden = normalised(named["compare.weight"] @ pair, "judge.0.0")
        hidden = normalised(named["judge.1.weight"] @ hidden, "judge.2.0")
        hidden = normalised(named["judge.3.weight"] @ hidden, "judge.4.0")
        value = float(named["judge.5.weight"] @ hidden)
        return max(value + float(named["judge.5.bias"]), 0.0) if last_relu else value

    for row in range(H):
        for column in range(W):
            seeing = [a for a in range(AGENTS) if sees(context, a, row, column)]
            cells = [features[a, :, row, column] for a in seeing]
            weights = softmax([score(torch.cat([cell, cells[0]])) for cell in cells])
            expected = sum(
                (w * cell for w, cell in zip(weights, cells, strict=True)), torch.zeros(C)
            )
            close(fused[:, row, column], expected)


# ------------------------------------------------------------------------------------- V2VNet


def convolve(layer: nn.Module, image: Tensor) -> Tensor:
    """Return a 3x3 convolution of (C, H, W) with zero padding, cell by cell."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    height, width = image.shape[1:]
    out = torch.zeros(len(weight), height, width)
    for row in range(height):
        for column in range(width):
            value = bias.clone()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    y, x = row + dy, column + dx
                    if 0 <= y < height and 0 <= x < width:
                        value += weight[:, :, dy + 1, dx + 1] @ image[:, y, x]
            out[:, row, column] = value
    return out


def gru_step(gru: ConvGRU, inputs: Tensor, state: Tensor) -> Tensor:
    gates = convolve(gru.gates, torch.cat([inputs, state]))
    update, reset = (
        1 / (1 + torch.exp(-gates[: len(state)])),
        1 / (1 + torch.exp(-gates[len(state) :])),
    )
    candidate = torch.tanh(convolve(gru.candidate, torch.cat([inputs, reset * state])))
    return (1 - update) * state + update * candidate


@torch.no_grad()
def test_conv_gru_against_a_hand_written_one() -> None:
    gru = ConvGRU(4, 3)
    randomise(gru)
    inputs, state = torch.randn(2, 4, H, W), torch.randn(2, 3, H, W)
    found = gru(inputs, state)
    for index in range(2):
        close(found[index], gru_step(gru, inputs[index], state[index]))


@torch.no_grad()
@pytest.mark.parametrize("gru_state", ["map", "zero"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_v2vnet_against_messages_of_every_pair(gru_state: str, rounds: int) -> None:
    args = replace(fusion_args("v2vnet"), gru_state=gru_state, rounds=rounds)
    fusion = fusion_for("v2vnet", channels=C, args=args)
    assert isinstance(fusion, V2VNet)
    randomise(fusion)
    features, context = scene()
    seen = context.roi.float()
    seen[0] = 1.0
    nodes = [features[a] * seen[a] for a in range(AGENTS)]
    for _ in range(rounds):
        updated = []
        for own in nodes:
            messages = [
                convolve(fusion.message, torch.cat([other, own])) * seen[sender]
                for sender, other in enumerate(nodes)
            ]
            mean = sum(messages, torch.zeros(C, H, W)) / seen.sum(0)
            state = own if gru_state == "map" else torch.zeros_like(own)
            updated.append(gru_step(fusion.gru, torch.cat([own, mean]), state))
        nodes = updated
    weight, bias = fusion.output.weight[:, :, 0, 0], fusion.output.bias
    assert bias is not None
    expected = torch.einsum("oc,chw->ohw", weight, nodes[0]) + bias[:, None, None]
    close(fusion(features, context).features[0], expected)


# ------------------------------------------------------------------------------------ V2X-ViT


def heterogeneous(
    attention: AgentAttention, cells: list[Tensor], i: int, seen: list[bool]
) -> Tensor:
    """Return out_i of one cell: every pair and head on its own, matrices applied one by one."""
    assert attention.value_relation is not None
    width = C // HEADS
    normed = [attention.norm(cell) for cell in cells]

    def project(name: str, agent: int, x: Tensor) -> Tensor:
        layer = attention.get_submodule(name)
        kind = TYPES[agent]
        return layer.get_parameter("weight")[kind] @ x + layer.get_parameter("bias")[kind]

    senders = [j for j in range(AGENTS) if seen[j] or j == i]
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        query = project("query", i, normed[i])[part]
        scores, values = [], []
        for j in senders:
            edge = 2 * TYPES[i] + TYPES[j]
            key = attention.relation[edge, head] @ project("key", j, normed[j])[part]
            scores.append(float(query @ key) / math.sqrt(width))
            values.append(
                attention.value_relation[edge, head] @ project("value", j, normed[j])[part]
            )
        weighed = zip(softmax(scores), values, strict=True)
        heads.append(sum((w * value for w, value in weighed), torch.zeros(width)))
    return cells[i] + project("output", i, torch.cat(heads))


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_v2xvit_against_a_loop_over_pairs(depth: int) -> None:
    """HMSA pair by pair; windows and feed-forward have references of their own and are reused."""
    fusion = fusion_for("v2xvit", depth, channels=C)
    assert isinstance(fusion, V2XViT)
    assert fusion.delay is not None
    randomise(fusion)
    features, context = scene()
    delays = fusion.delay(context.time_offset_s)
    cells = torch.zeros(AGENTS, H, W, C)
    for a in range(AGENTS):
        for row in range(H):
            for column in range(W):
                if sees(context, a, row, column):
                    cells[a, row, column] = features[a, :, row, column] + delays[a]
    for layer in fusion.layers:
        attention = layer.get_submodule("attention")
        assert isinstance(attention, AgentAttention)
        mixed = torch.zeros_like(cells)
        for row in range(H):
            for column in range(W):
                here = [cells[a, row, column] for a in range(AGENTS)]
                seen = [bool(context.roi[a, 0, row, column]) for a in range(AGENTS)]
                for a in range(AGENTS):
                    mixed[a, row, column] = heterogeneous(attention, here, a, seen)
        mixed = mixed + layer.get_submodule("windows")(mixed)
        cells = mixed + layer.get_submodule("feed_forward")(mixed)
    close(fusion(features, context).features[0].permute(1, 2, 0), cells[0])
