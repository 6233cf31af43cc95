"""The check after the first epoch of pretraining: has the occupancy task become trivial?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from turbotrain_plugin.engine.records import LOG, METRICS
from turbotrain_plugin.pretraining import collapse_warning

_STEPS: Final = 50
"""Last steps that are averaged."""


def warn_of_collapse(folder: Path, stage: str) -> bool:
    """Warn when the occupancy loss is next to nothing; return whether it is.

    Args:
        folder: Run folder, its ``metrics.jsonl`` flushed.
        stage: Name of the pretraining stage.
    """
    file = folder / METRICS
    if not file.is_file():
        return False
    steps = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    parts = [step["parts"] for step in steps if step.get("stage") == stage and "parts" in step]
    warning = collapse_warning(parts[-_STEPS:])
    if warning:
        LOG.warning("%s", warning)
    return bool(warning)
