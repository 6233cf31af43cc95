"""Small agent fusions and what they are called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion import FUSIONS, AgentFusion
from turbotrain_plugin.structures import FusionContext

CHANNELS, HEIGHT, WIDTH = 8, 5, 6
"""No window of ``fusion_args`` divides the map's sides."""


def fusion_args(method: str, depth: int = 1) -> FusionConfig:
    """Return ``model.args.fusion`` of a fusion that runs in milliseconds; no dropout."""
    return FusionConfig(
        core_method=method,
        windows=(3, 4),
        window_heads=(4, 2),
        heads=2,
        ffn=16,
        depth=depth,
        dropout=0.0,
        codec=False,  # untrained, one channel wide, it would pass nothing on
    )


def fusion_for(
    method: str, depth: int = 1, *, channels: int = CHANNELS, args: FusionConfig | None = None
) -> AgentFusion:
    """Return a freshly started fusion, always the same one."""
    torch.manual_seed(0)
    keys = fusion_args(method, depth) if args is None else args
    fusion: AgentFusion = FUSIONS[method](keys, channels)
    return fusion


def context_for(
    record_len: Sequence[int],
    types: Sequence[int] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> FusionContext:
    """Return a context in which every agent sees everything; all vehicles unless given."""
    total = sum(record_len)
    return FusionContext(
        record_len=torch.tensor(record_len),
        agent_types=torch.tensor([0] * total if types is None else types),
        roi=torch.ones(total, 1, *size, dtype=torch.bool),
        time_offset_s=torch.zeros(total),
        ego_SE3_agent=torch.eye(4).repeat(total, 1, 1),
    )


def maps(
    agents: int, *, channels: int = CHANNELS, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Tensor:
    """Return random maps (agents, channels, height, width)."""
    return torch.randn(agents, channels, *size)


def rows(context: FusionContext, index: Sequence[int], record_len: Sequence[int]) -> FusionContext:
    """Return the context of some agents only, whatever else it holds per agent."""
    chosen: dict[str, Any] = {
        field.name: value[list(index)]
        for field in fields(context)
        if field.name != "record_len" and isinstance(value := getattr(context, field.name), Tensor)
    }
    return replace(context, record_len=torch.tensor(record_len), **chosen)
