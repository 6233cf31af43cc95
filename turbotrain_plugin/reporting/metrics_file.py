"""``metrics.jsonl``, what a run says of every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from turbotrain_plugin.errors import UserError

__all__ = ["read_metrics"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return its lines; a last line cut short by a killed run is ignored.

    Raises:
        UserError: When the file is missing or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}).") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the run was killed while writing
                break
            raise UserError(f"{path}:{number}: not a JSON object: {error}.") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int | float):
            raise UserError(f"{path}:{number}: must be a JSON object with a `step`.")
        records.append(record)
    return records
