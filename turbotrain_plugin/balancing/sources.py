"""Where balanced steps take the gradients of the tasks from: the names, and what each costs.

``exact_low_memory``
    The gradient of every task for every shared parameter, pushed through the graph piece by piece:
    one further backward pass through the shared part for every task beyond the first, hardly more
    memory than a plain backward pass.
``exact``
    The same numbers by one ordinary backward pass a task; all but the last keep the whole graph.
    Better under gradient checkpointing, where every piece recomputes the region it lies in.
``cut``
    Exact gradients for the shared parameters above a cut, over which alone the tasks are weighed;
    one backward pass of the weighed gradient below it. Our choice of default cut: the encoder.
``feature``
    The tasks are weighed by their gradients at the feature where their paths meet; one backward
    pass from there. As cheap as a free step, but whether two tasks conflict at the feature says
    little about whether they do over the parameters: a baseline, not a substitute.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CUT", "EXACT", "FEATURE", "LOW_MEMORY", "SOURCES"]

EXACT: Final = "exact"
LOW_MEMORY: Final = "exact_low_memory"
CUT: Final = "cut"
FEATURE: Final = "feature"

SOURCES: Final = (EXACT, LOW_MEMORY, CUT, FEATURE)
"""Names in YAML (``turbotrain.balance.source``)."""
