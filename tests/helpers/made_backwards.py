"""Identities whose backward pass tells or spoils something; set ``passes`` to 0 before use."""

from __future__ import annotations

import torch
from torch import Tensor


class CountBackward(torch.autograd.Function):
    """Identity that counts the backward passes through it."""

    passes = 0

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # noqa: ARG004
        CountBackward.passes += 1
        return gradient


class Unrepeatable(torch.autograd.Function):
    """Wrong from the second backward pass on, as an in-place custom operator would be."""

    passes = 0

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # noqa: ARG004
        Unrepeatable.passes += 1
        return gradient / Unrepeatable.passes
