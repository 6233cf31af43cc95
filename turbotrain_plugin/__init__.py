"""TurboTrain for cooperative perception and prediction: masked pretraining, balanced fine-tuning.

The public names are resolved on first use, so that importing the package loads neither torch nor
a host framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from turbotrain_plugin.balancing import GradientBalancer
    from turbotrain_plugin.config import RunConfig, load_hypes
    from turbotrain_plugin.models import CooperativeNetwork
    from turbotrain_plugin.pretraining import MaskedPretrainer

__version__ = "0.1.0"

_DOORS: Final[dict[str, str]] = {
    "GradientBalancer": "turbotrain_plugin.balancing",
    "MaskedPretrainer": "turbotrain_plugin.pretraining",
    "CooperativeNetwork": "turbotrain_plugin.models",
    "RunConfig": "turbotrain_plugin.config",
    "load_hypes": "turbotrain_plugin.config",
}

__all__ = [
    "CooperativeNetwork",
    "GradientBalancer",
    "MaskedPretrainer",
    "RunConfig",
    "__version__",
    "load_hypes",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module attribute can be anything
    """Import a public name from its room on first use (PEP 562)."""
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)
