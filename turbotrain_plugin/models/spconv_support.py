"""spconv where it is installed: what it gets wrong on CPU is put right here, and proven.

spconv 2.3.8 on CPU has three faults: with two or more threads its results are wrong (upstream
issue 679), its backward asks for a CUDA stream, and biased convolutions fail in evaluation mode.
All go through functions of ``spconv.pytorch.ops``, forward and backward alike, so wrapping those
mends every user of spconv in the process, a host framework's models included.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from turbotrain_plugin.structures import UserError

__all__ = [
    "SelfTest",
    "load_spconv",
    "mend_spconv",
    "set_algorithm",
    "single_thread",
    "spconv_self_test",
]

_MENDED: Final = "_turbotrain_mended"
_GUARDED: Final = (
    "get_indice_pairs",
    "indice_conv",
    "indice_conv_backward",
    "indice_maxpool",
    "indice_maxpool_backward",
)
"""The operations of ``spconv.pytorch.ops`` that run on CPU."""

_TOLERANCE: Final = 1e-4
"""Relative error that passes the self-test; right results differ by 1e-6, wrong ones by 5e-2."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Outcome of ``spconv_self_test``.

    Attributes:
        ok: Whether spconv agrees with dense convolution.
        message: One sentence for the user.
        max_error: Largest relative error found; infinite when nothing could be run.
    """

    ok: bool
    message: str
    max_error: float


def load_spconv() -> Any:  # noqa: ANN401 - an untyped library
    """Import ``spconv.pytorch``, mended.

    Raises:
        UserError: When it is missing or broken, naming the extra to install.
    """
    try:
        spconv = importlib.import_module("spconv.pytorch")
    except (ImportError, OSError) as error:
        raise UserError(
            f"The SECOND encoder needs spconv, which cannot be imported ({error}). Install it with "
            'pip install "turbotrain_plugin[cpu]", or for a GPU the extra of its CUDA version: '
            "[cu118], [cu120], [cu124] or [cu126]; or set model.args.encoder.core_method: pillars."
        ) from error
    mend_spconv(importlib.import_module("spconv.pytorch.ops"))
    return spconv


def mend_spconv(ops: Any) -> None:  # noqa: ANN401 - an untyped module
    """Wrap the operations of ``spconv.pytorch.ops``; a second call does nothing."""
    if getattr(ops, _MENDED, False):
        return
    ops.indice_conv = _add_bias_after(ops.indice_conv)
    for name in _GUARDED:
        setattr(ops, name, _run_single_threaded(getattr(ops, name)))
    ops.get_current_stream = _stream_or_zero(ops.get_current_stream)
    setattr(ops, _MENDED, True)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch's operations of this Python thread on one core, then restore the number."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_single_threaded(operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    def guarded(first: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        if first.is_cuda:
            return operation(first, *args, **kwargs)
        with single_thread():
            return operation(first, *args, **kwargs)

    return guarded


def _add_bias_after(indice_conv: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(indice_conv)
    def with_bias(
        features: Tensor,
        *args: Any,  # noqa: ANN401 - passed on
        bias: Tensor | None = None,
        **kwargs: Any,  # noqa: ANN401 - passed on
    ) -> Tensor:
        if features.is_cuda or bias is None:
            return indice_conv(features, *args, bias=bias, **kwargs)
        return indice_conv(features, *args, **kwargs) + bias

    return with_bias


def _stream_or_zero(get_current_stream: Callable[[], int]) -> Callable[[], int]:
    @functools.wraps(get_current_stream)
    def stream() -> int:
        return get_current_stream() if torch.cuda.is_available() else 0

    return stream


# ----------------------------------------------------------------------------------- self-test


def spconv_self_test(device: str = "cpu") -> SelfTest:
    """Compare a submanifold and a strided convolution with dense ones, forward and backward.

    Takes well under a second once spconv is imported.

    Args:
        device: Where to run it.
    """
    try:
        spconv = load_spconv()
    except UserError as error:
        return SelfTest(False, str(error), float("inf"))
    errors = [_worst_error(spconv, torch.device(device), training) for training in (True, False)]
    if max(errors) <= _TOLERANCE:
        return SelfTest(True, f"spconv agrees with dense convolution on {device}.", max(errors))
    return SelfTest(
        False,
        f"spconv on {device} differs from dense convolution by {max(errors):.1e}; do not "
        "train with this build. Reinstall it, or set model.args.encoder.core_method: pillars.",
        max(errors),
    )


def _worst_error(spconv: Any, device: torch.device, training: bool) -> float:  # noqa: ANN401
    """Return the largest relative error of results and gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (8, 24, 24)
    occupied = torch.rand(2, *shape, generator=generator) < 0.3
    # `nonzero` returns transposed memory, which spconv would misread without a word.
    sites = occupied.nonzero().int().contiguous().to(device)
    features = torch.randn(len(sites), 4, generator=generator).to(device).requires_grad_()
    layers = [
        spconv.SubMConv3d(4, 8, 3, padding=1, bias=True),
        spconv.SparseConv3d(8, 8, 3, stride=2, padding=1, bias=True),
    ]
    sparse = spconv.SparseConvTensor(features, sites, list(shape), 2)
    for layer in layers:
        layer.to(device).train(training)
        set_algorithm(spconv, layer, device)
        sparse = layer(sparse)
    dense, dense_input = _dense_twin(layers, features, occupied.to(device))
    at_outputs = sparse.indices.long().unbind(1)
    expected = dense.permute(0, 2, 3, 4, 1)[at_outputs]
    probe = torch.randn(expected.shape, generator=generator).to(device)
    weights = [layer.weight for layer in layers]
    found = torch.autograd.grad((sparse.features * probe).sum(), [features, *weights])
    true = torch.autograd.grad((expected * probe).sum(), [dense_input, *weights])
    true_features = true[0].permute(0, 2, 3, 4, 1)[sites.long().unbind(1)]
    pairs = [
        (sparse.features.detach(), expected.detach()),
        (found[0], true_features),
        *zip(found[1:], true[1:], strict=True),
    ]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _dense_twin(layers: list[Any], features: Tensor, occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dense result and its (N, C, D, H, W) input."""
    canvas = features.new_zeros(*occupied.shape, features.shape[1])
    canvas[occupied] = features.detach()
    dense_input = canvas.permute(0, 4, 1, 2, 3).requires_grad_()
    # spconv keeps weights as (out, depth, height, width, in).
    weights = [layer.weight.permute(0, 4, 1, 2, 3) for layer in layers]
    mask = occupied.unsqueeze(1)
    middle = F.conv3d(dense_input, weights[0], layers[0].bias, padding=1) * mask
    return F.conv3d(middle, weights[1], layers[1].bias, stride=2, padding=1), dense_input


def set_algorithm(spconv: Any, layer: Any, device: torch.device) -> None:  # noqa: ANN401
    """Let a sparse convolution of a CUDA build run on CPU, where only one algorithm exists."""
    fast = getattr(layer, "_fast_algorithm", layer.algo)
    layer._fast_algorithm = fast
    layer.algo = fast if device.type == "cuda" else spconv.ConvAlgo.Native
