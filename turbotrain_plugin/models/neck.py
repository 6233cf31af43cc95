"""The 2-D BEV network (the RPN of SECOND, as OpenCOOD uses it) and the projection before fusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from turbotrain_plugin.config import NeckConfig
from turbotrain_plugin.models.layers import ConvNormReLU, batch_norm
from turbotrain_plugin.structures import UserError

__all__ = ["BevNeck"]


class BevNeck(nn.Module):
    """(N, C_in, H, W) -> (N, C_out, H, W): levels of convolutions, brought up, joined, projected.

    Each level after the first halves the map; every level is brought back to H x W by a transposed
    convolution, and a 3x3 convolution maps their concatenation to ``out_channels``. At 256
    channels and the default keys: 4.577 M + 1.180 M parameters.

    Args:
        args: ``model.args.neck``.
        in_channels: Channels that come in.
        out_channels: Channels that go out.

    Raises:
        UserError: When layers, filters and upsample_filters differ in length.
    """

    def __init__(self, args: NeckConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        _check_lengths(args)
        self._checkpoint = args.checkpoint
        self.levels = nn.ModuleList()
        self.ups = nn.ModuleList()
        width = in_channels
        for level, (count, filters, up) in enumerate(
            zip(args.layers, args.filters, args.upsample_filters, strict=True)
        ):
            first = ConvNormReLU(width, filters, stride=1 if level == 0 else 2)
            rest = [ConvNormReLU(filters, filters) for _ in range(count - 1)]
            self.levels.append(nn.Sequential(first, *rest))
            self.ups.append(_bring_up(filters, up, scale=2**level))
            width = filters
        self.project = ConvNormReLU(sum(args.upsample_filters), out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (N, C_out, H, W) for any H and W."""
        if not (self._checkpoint and torch.is_grad_enabled()):
            return self._forward(maps)
        recomputed: Tensor = checkpoint(
            self._forward, maps, use_reentrant=False, context_fn=self._checkpoint_contexts
        )
        return recomputed

    def _forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        brought_up = []
        for level, up in zip(self.levels, self.ups, strict=True):
            maps = level(maps)
            # A level of odd size comes back one cell too large.
            brought_up.append(up(maps)[..., :height, :width])
        projected: Tensor = self.project(torch.cat(brought_up, dim=1))
        return projected

    def _checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self._frozen_statistics()

    @contextmanager
    def _frozen_statistics(self) -> Iterator[None]:
        """Let a forward pass write its statistics to copies.

        The second pass of a checkpoint would move the running statistics twice a step. It has to
        save the same tensors as the first, so tracking cannot simply be switched off.
        """
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kept = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
        for norm, buffers in kept:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())
        try:
            yield
        finally:
            for norm, buffers in kept:
                for name, buffer in buffers.items():
                    setattr(norm, name, buffer)


def _bring_up(in_channels: int, out_channels: int, scale: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(in_channels, out_channels, scale, stride=scale, bias=False)
    return nn.Sequential(up, batch_norm(out_channels), nn.ReLU(inplace=True))


def _check_lengths(args: NeckConfig) -> None:
    lengths = {len(args.layers), len(args.filters), len(args.upsample_filters)}
    if len(lengths) != 1 or not args.layers or min(args.layers) < 1:
        raise UserError(
            "model.args.neck layers, filters and upsample_filters need one positive number per "
            f"level each. Found {list(args.layers)}, {list(args.filters)} and "
            f"{list(args.upsample_filters)}."
        )
