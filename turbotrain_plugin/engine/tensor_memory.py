"""Peak memory of tensors during a call, without what the process holds beside them."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak_tensor_bytes(step: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes of tensors that ``step`` has allocated at one time, above the start.

    On CUDA the allocator is asked; on the CPU every allocation is taken from torch's profiler.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    if profile.kineto_results is None:
        raise RuntimeError("torch's profiler recorded nothing")
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.kineto_results.events()
        if event.name() == "[memory]"
    ]
    current = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        current += change
        peak = max(peak, current)
    return peak
