"""The one exception that is shown to the user as a sentence instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave us: one sentence, exit code 2, no traceback."""
