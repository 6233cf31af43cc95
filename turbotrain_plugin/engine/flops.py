"""Floating-point operations of a forward pass, module by module, sparse convolutions included.

A multiply-add counts as two. Dense layers and attention are counted by ``torch.utils.flop_counter``
(matrix products and convolutions; element by element operations are left out, as usual). A sparse
convolution costs 2 P C_in C_out, where P is the number of pairs of an input site and an output
site that a kernel offset joins. P follows from the sites alone, so the count is the same for every
algorithm of spconv; what its matrix products add to torch's counter is taken out again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_flops(network: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Return the operations of ``run``: the network's children by name, ``other``, ``total``.

    Args:
        network: Whose modules are watched.
        run: Calls the network once; no gradient is recorded.
    """
    sparse: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(_recorder(sparse, name))
        for name, module in network.named_modules()
        if hasattr(module, "indice_key")  # spconv's convolutions, without importing it
    ]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(network).__name__
    counts = {
        child: by_module.get(f"{root}.{child}", 0) + _correction(child, sparse, by_module, root)
        for child, _ in network.named_children()
    }
    others = by_module.get(root, 0) - sum(by_module.get(f"{root}.{child}", 0) for child in counts)
    return {**counts, "other": others, "total": sum(counts.values()) + others}


def _correction(child: str, sparse: dict[str, int], by_module: dict[str, int], root: str) -> int:
    """Return what the child's sparse convolutions cost beyond what torch's counter saw of them."""
    inside = [name for name in sparse if name == child or name.startswith(f"{child}.")]
    return sum(sparse[name] - by_module.get(f"{root}.{name}", 0) for name in inside)


def _recorder(sparse: dict[str, int], name: str) -> Callable[..., None]:
    def record(module: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        pairs = kernel_pairs(
            inputs[0].indices,
            output.indices,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=tuple(_padding(module)),
        )
        cost = 2 * pairs * module.in_channels * module.out_channels
        sparse[name] = sparse.get(name, 0) + cost

    return record


def _padding(module: Any) -> list[int]:  # noqa: ANN401 - spconv's convolution
    """Return the padding; a submanifold convolution centres its kernel whatever it is told."""
    if module.subm:
        return [size // 2 for size in module.kernel_size]
    return list(module.padding)


def kernel_pairs(
    inputs: Tensor,
    outputs: Tensor,
    *,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> int:
    """Return the pairs (input site, output site) that some offset of the kernel joins.

    Output o reads input o * stride - padding + k for every k of the kernel.

    Args:
        inputs: (N, 4) integer sites: map, z, y, x.
        outputs: (M, 4) integer sites.
        kernel: Sizes along z, y, x.
        stride: Steps along z, y, x.
        padding: Padding along z, y, x.
    """
    reach = torch.cat([inputs, outputs * torch.tensor([1, *stride], device=outputs.device)])
    margin = max(*kernel, *padding) + 1
    size = (reach.long().amax(0) + 2 * margin).tolist() if len(reach) else [1, 1, 1, 1]

    def keys(sites: Tensor) -> Tensor:
        moved = sites.long() + sites.new_tensor([0, margin, margin, margin]).long()
        index, z, y, x = moved.unbind(1)
        return ((index * size[1] + z) * size[2] + y) * size[3] + x

    occupied = keys(inputs)
    pairs = 0
    for offset in product(*(range(length) for length in kernel)):
        shift = [k - pad for k, pad in zip(offset, padding, strict=True)]
        read = outputs.long() * outputs.new_tensor([1, *stride]).long()
        read = read + outputs.new_tensor([0, *shift]).long()
        pairs += int(torch.isin(keys(read), occupied).sum())
    return pairs
